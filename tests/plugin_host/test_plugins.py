"""Plugins: the three sources, who may have written them, and what isolates a faulty one."""

from __future__ import annotations

import os
import random
import re
import signal
import sys
from pathlib import Path

import pytest
from plugin_files import BRIEF, EVERY_HOOK, JUDGES, info, load, put

from thumbwise.errors import NotFound, ThumbwiseError
from thumbwise.home import Home
from thumbwise.plugin_host import sources
from thumbwise.plugin_host.manager import BUILTINS, PluginManager

ROOT = Path(__file__).parents[2]
README = (ROOT / "plugins" / "README.md").read_text()


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home.find(tmp_path / "home")


def install(site: Path, distribution: str, point: str, module: str, source: str) -> None:
    """Lay a package with one entry point into `site`, as pip would."""
    meta = site / f"{distribution}-1.2.3.dist-info"
    meta.mkdir(parents=True)
    (meta / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.2.3\n")
    (meta / "entry_points.txt").write_text(f"[thumbwise]\n{point} = {module}\n")
    (site / f"{module}.py").write_text(source)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    return folder


# --- the three sources -------------------------------------------------------------------------------


def test_every_built_in_plugin_loads(home: Home) -> None:
    infos = PluginManager(home).load(quiet=True).list()
    assert [i.name for i in infos] == [module.rpartition(".")[2] for module in BUILTINS]
    assert {(i.source, i.status, i.reason) for i in infos} == {("builtin", "on", "")}


def test_every_built_in_plugin_is_named_in_the_readme() -> None:
    files = {path.name for path in (ROOT / "plugins").glob("[!_]*.py")}
    assert {f"{module.rpartition('.')[2]}.py" for module in BUILTINS} == files
    assert [name for name in files if f"| `{name}` |" not in README] == []


def test_a_missing_built_in_fails_alone(home: Home) -> None:
    manager = PluginManager(home, ("thumbwise.plugins.nowhere", *JUDGES)).load(quiet=True)
    assert info(manager, "nowhere").status == "failed"
    assert "No module named 'thumbwise.plugins.nowhere'" in info(manager, "nowhere").reason
    assert list(manager.judges) == ["sentiment", "concise"]


def test_the_readmes_example_is_a_whole_plugin(home: Home) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    put(home, "brief", example)
    manager = load(home)
    assert info(manager, "brief").provides == {"judges": ("brief",)}
    assert manager.get("judges", "brief")("Hello?", ["one two", "one"]) == [-2, -1]


def test_a_files_version_is_its_content(home: Home) -> None:
    put(home, "brief", BRIEF)
    first = info(load(home), "brief").version
    put(home, "brief", BRIEF + "\n# changed\n")
    assert re.fullmatch(r"sha256:[0-9a-f]{12}", first)
    assert info(load(home), "brief").version != first


def test_an_installed_plugin_is_not_even_imported_until_it_is_enabled(home: Home, site: Path) -> None:
    marker = site / "imported"
    install(site, "thumbwise-brief", "brief", "brief_plugin", f"open({str(marker)!r}, 'w')\n{BRIEF}")
    off = info(load(home), "brief")
    assert (off.source, off.status, off.version) == ("entry point", "off", "1.2.3")
    assert "thumbwise plugins enable brief" in off.reason
    assert not marker.exists()

    sources.enable(home, "brief")
    manager = load(home)
    assert info(manager, "brief").status == "on"
    assert "brief" in manager.judges
    assert (home.plugins / "enabled.txt").read_text() == "brief\n"

    sources.disable(home, "brief")
    assert info(load(home), "brief").status == "off"


def test_only_installed_plugins_can_be_enabled_and_only_enabled_ones_disabled(home: Home, site: Path) -> None:
    install(site, "thumbwise-brief", "brief", "brief_plugin", BRIEF)
    with pytest.raises(NotFound, match=r"named 'breif' \(installed: brief\)"):
        sources.enable(home, "breif")
    with pytest.raises(NotFound, match=r"'brief' is not enabled \(enabled: none\)"):
        sources.disable(home, "brief")
    assert not (home.plugins / "enabled.txt").exists()


def test_an_enabled_plugin_that_was_uninstalled_is_listed_as_failed(home: Home) -> None:
    put_list(home, "gone\n")
    assert info(load(home), "gone").status == "failed"
    assert "thumbwise plugins disable gone" in info(load(home), "gone").reason


def test_a_list_of_enabled_plugins_that_is_no_text_enables_none(home: Home, site: Path) -> None:
    install(site, "thumbwise-brief", "brief", "brief_plugin", BRIEF)
    (home.plugins / "enabled.txt").write_bytes(b"\xff\n")
    (off,) = [found for found in load(home).list() if found.source == "entry point"]
    assert (off.status, "is not text: remove it" in off.reason) == ("off", True)


def test_a_name_that_two_packages_bring_runs_neither(home: Home, site: Path) -> None:
    install(site, "first", "brief", "brief_one", BRIEF)
    install(site, "second", "brief", "brief_two", BRIEF)
    put_list(home, "brief\n")
    manager = load(home)
    assert [i.status for i in manager.list() if i.name == "brief"] == ["failed", "failed"]
    assert "brief_one" not in sys.modules
    assert "brief" not in manager.judges


def put_list(home: Home, text: str) -> None:
    path = home.plugins / "enabled.txt"
    path.write_text(text)
    path.chmod(0o600)


# --- who may have written it --------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [0o620, 0o602])
def test_a_file_that_others_can_write_is_refused_with_the_fix(home: Home, mode: int) -> None:
    put(home, "brief", BRIEF)
    (home.plugins / "brief.py").chmod(mode)
    manager = load(home)
    assert info(manager, "brief").status == "failed"
    assert "brief.py can be written by others" in info(manager, "brief").reason
    assert "chmod go-w" in info(manager, "brief").reason
    assert "brief" not in manager.judges


@pytest.mark.parametrize("mode", [0o770, 0o707])
def test_a_folder_that_others_can_write_turns_off_files_and_entry_points(home: Home, site: Path, mode: int) -> None:
    install(site, "thumbwise-extra", "extra", "extra_plugin", BRIEF)
    put(home, "brief", BRIEF)
    sources.enable(home, "extra")
    home.plugins.chmod(mode)
    manager = load(home)
    assert info(manager, "brief").status == "failed"
    assert info(manager, "extra").status == "off"
    assert "chmod go-w" in info(manager, "extra").reason
    assert list(manager.judges) == ["sentiment", "concise"]


def test_a_file_that_belongs_to_someone_else_is_refused(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    put(home, "brief", BRIEF)
    if os.getuid() == 0:
        os.chown(home.plugins / "brief.py", 4242, 4242)
    else:
        monkeypatch.setattr(os, "getuid", lambda: 4242)
    assert "belongs to another user" in info(load(home), "brief").reason


def test_a_link_is_judged_by_where_it_points(home: Home, tmp_path: Path) -> None:
    open_folder = tmp_path / "open"
    open_folder.mkdir()
    (open_folder / "brief.py").write_text(BRIEF)
    (open_folder / "brief.py").chmod(0o600)
    open_folder.chmod(0o777)
    (home.plugins / "brief.py").symlink_to(open_folder / "brief.py")
    assert f"{open_folder} can be written by others" in info(load(home), "brief").reason


# --- faulty plugins ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("import nowhere_at_all", "ModuleNotFoundError: No module named 'nowhere_at_all'"),
        ("def broken(:", "SyntaxError"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
        ("import asyncio\nraise asyncio.CancelledError", "CancelledError"),
        ("x = 1", "it implements no hook: put @hookimpl before its functions"),
        (BRIEF.replace("register_judges", "register_judge"), "no hook register_judge: did you mean register_judges?"),
        (BRIEF.replace("(register)", "(registry)"), "PluginValidationError"),
        (BRIEF + "    raise RuntimeError('halfway')", "RuntimeError: halfway"),
        (BRIEF + "    register('brief', brief)", "plugins bad and bad both register a judge named brief"),
        (BRIEF.replace('"brief", brief', '"brief", 3'), "judge brief must be a function or class, not 3"),
        (BRIEF.replace('"brief", brief', '"", brief'), "a judge's name must be a word, not ''"),
        (BRIEF.replace('"brief"', '"sentiment"'), "plugins judges and bad both register a judge named sentiment"),
    ],
)
def test_a_faulty_plugin_is_taken_out_whole_and_the_others_work(home: Home, source: str, reason: str) -> None:
    put(home, "bad", source)
    put(home, "good", BRIEF.replace('"brief"', '"good"'))
    manager = load(home)
    assert info(manager, "bad").status == "failed"
    assert reason in info(manager, "bad").reason
    assert "\n" not in info(manager, "bad").reason
    assert sorted(manager.judges) == ["concise", "good", "sentiment"]
    assert [name for name, _ in manager.pluggy.list_name_plugin()] == ["judges", "good"]


def test_a_ctrl_c_while_a_plugin_loads_ends_the_command(home: Home) -> None:
    put(home, "slow", "import signal\nsignal.raise_signal(signal.SIGINT)")
    as_it_was = signal.signal(signal.SIGINT, signal.default_int_handler)  # tests in the background ignore it
    try:
        with pytest.raises(KeyboardInterrupt):
            load(home)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, as_it_was)


def test_what_a_plugin_registered_before_it_failed_is_gone(home: Home) -> None:
    put(home, "bad", EVERY_HOOK.replace('register("five", lambda evidence: None)', "1 / 0"))
    manager = load(home)
    assert info(manager, "bad").reason == "ZeroDivisionError: division by zero"
    assert "ZeroDivisionError" in info(manager, "bad").traceback
    left = [manager.judges.keys(), manager.reward_models, manager.policy_algorithms]
    assert left == [{"sentiment", "concise"}, {}, {}]
    with pytest.raises(ThumbwiseError, match="No plugin chooses"):
        manager.candidates([], ["a"], 1, random.Random(0))


def test_two_plugins_of_one_name_are_told_apart(home: Home) -> None:
    put(home, "judges", BRIEF)
    manager = load(home)
    assert [(i.source, i.status) for i in manager.list()] == [("builtin", "on"), ("file", "failed")]
    assert "a builtin plugin is named judges too" in manager.list()[1].reason


def test_failures_are_logged_with_the_plugins_name(home: Home, caplog: pytest.LogCaptureFixture) -> None:
    put(home, "bad", "1 / 0")
    PluginManager(home, JUDGES).load()
    assert "plugin bad (file) failed and is off: ZeroDivisionError" in caplog.text


def test_an_unknown_name_is_answered_with_the_known_ones(home: Home) -> None:
    with pytest.raises(NotFound, match=r"no judge named 'sentimant' \(known: concise, sentiment\)"):
        load(home).get("judges", "sentimant")
    with pytest.raises(NotFound, match=r"no policy algorithm named 'x' \(known: none\)"):
        load(home).get("policy_algorithms", "x")


# --- the built-in judges --------------------------------------------------------------------------------


def test_the_sentiment_judge_orders_replies_by_tone(home: Home) -> None:
    judge = load(home).get("judges", "sentiment")
    good, flat, bad = judge("How was it?", ["I love it, wonderful!", "It was on Monday.", "Awful. I hate it."])
    assert 1 >= good > flat == 0 > bad >= -1
    assert judge("How was it?", []) == []


@pytest.mark.parametrize(
    ("response", "score"),
    [
        (" ".join(["word"] * 25) + ".", 0.0),
        (" ".join(["word"] * 25), -30.0),
        (" ".join(["word"] * 25) + ",", -30.0),
        (" ".join(["word"] * 28) + "!", -3.0),
        (" ".join(["word"] * 20) + "?", -5.0),
        (" ".join(["word"] * 8) + ".", -17.0),
        (" ".join(["word"] * 7) + ".", -48.0),
        (" ".join(["word"] * 60) + ".", -35.0),
        (" ".join(["word"] * 60), -65.0),
        ("\n" + "word \n" * 24 + " word. \n", 0.0),
        ("Yes.", -54.0),
        ("", -55.0),
    ],
)
def test_the_concise_judge_wants_a_finished_reply_of_25_words(home: Home, response: str, score: float) -> None:
    judge = load(home).get("judges", "concise")
    assert judge("Why?", [response, "Yes."]) == [score, -54.0]
    assert judge("Why?", []) == []

"""Other users of the machine: what they could write, own or exchange is refused or closed to them, and told."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from plugin_files import BRIEF

from thumbwise.cli import doctor
from thumbwise.cli.main import main
from thumbwise.errors import ThumbwiseError
from thumbwise.home import Home, HomeLock, running_url
from thumbwise.plugin_host.sources import read_trusted
from thumbwise.system import trust

as_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can give a file to another user")
OTHER = 4242


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    monkeypatch.setenv("THUMBWISE_HOME", str(tmp_path / "home"))
    return Home.find()


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def found(name: str) -> dict[str, str]:
    result = CliRunner().invoke(main, ["doctor", "--json"])
    (row,) = [row for row in json.loads(result.stdout) if row["name"] == name]
    assert result.exit_code == int(row["status"] == "error"), result.output
    return row


@pytest.mark.parametrize("part", ["root", "plugins", "policies", "snapshots", "cache", "config", "lock", "database"])
def test_what_others_could_write_in_a_home_is_closed_to_them_and_told_before(home: Home, part: str) -> None:
    path: Path = getattr(home, part)
    path.touch()
    path.chmod(0o777 if path.is_dir() else 0o666)
    row = found("home")
    assert row["status"] == "error"
    assert f"Other users can write {path}: `chmod go-w" in row["detail"]
    assert mode(path) & 0o022  # doctor only looks
    Home.find()
    assert mode(path) & 0o022 == 0
    assert found("home")["status"] != "error"


@pytest.mark.parametrize("exposed", [0o666, 0o644, 0o640])
@pytest.mark.parametrize("secret", ["job_token", "cookie_secret"])
def test_a_secret_that_others_could_read_is_made_again_by_the_next_assistant(
    home: Home, secret: str, exposed: int
) -> None:
    path = {"job_token": home.token, "cookie_secret": home.browser_secret}[secret]
    first = getattr(home, secret)()
    path.chmod(exposed)
    assert found("home")["status"] in ("error", "warning")
    with HomeLock(home):
        second = getattr(home, secret)()
    assert second != first
    assert mode(path) == 0o600
    with HomeLock(home):
        assert getattr(home, secret)() == second


def test_the_lock_is_private_whatever_the_umask(home: Home) -> None:
    before = os.umask(0)
    try:
        with HomeLock(home):
            assert mode(home.lock) == 0o600
            home.lock.chmod(0o666)
            with pytest.raises(ThumbwiseError, match="or others can write it"):
                running_url(home)
    finally:
        os.umask(before)


@as_root
@pytest.mark.parametrize("part", ["root", "plugins", "token", "lock", "database", "config"])
def test_what_belongs_to_another_user_is_refused_in_a_sentence(home: Home, part: str) -> None:
    path: Path = getattr(home, part)
    path.touch()
    os.chown(path, OTHER, OTHER)
    assert "belongs to another user (4242): run this as that user" in found("home")["detail"]
    for command in (["serve"], ["train"], ["policies", "list"], ["keys", "list"]):
        result = CliRunner().invoke(main, command)
        assert (result.exit_code, result.output.count("\n")) == (1, 1), result.output
        assert f"{path} belongs to another user" in result.output


@as_root
def test_a_link_that_another_user_put_there_is_refused_wherever_it_leads(home: Home, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("{}")
    home.lock.symlink_to(tmp_path / "mine")
    Home.find()
    os.lchown(home.lock, OTHER, OTHER)
    with pytest.raises(ThumbwiseError, match="lock belongs to another user"):
        Home.find()


@pytest.mark.parametrize("above", [1, 2])
def test_a_home_that_others_could_exchange_is_refused(tmp_path: Path, above: int) -> None:
    root = tmp_path / "a" / "b" / "home"
    Home.find(root)
    open_folder = root.parents[above - 1]
    open_folder.chmod(0o777)
    with pytest.raises(ThumbwiseError, match=rf"{open_folder} can be written by others, who could put something else"):
        Home.find(root)
    open_folder.chmod(0o1777)  # as /tmp
    assert Home.find(root).root == root


def test_so_is_one_behind_a_link_in_such_a_folder(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "real").mkdir()
    (tmp_path / "open" / "link").symlink_to(tmp_path / "real")
    assert Home.find(tmp_path / "open" / "link").root == tmp_path / "real"
    (tmp_path / "open").chmod(0o777)
    with pytest.raises(ThumbwiseError, match="open can be written by others"):
        Home.find(tmp_path / "open" / "link")
    assert Home.find(tmp_path / "real")


def test_a_folder_of_a_group_of_ones_own_is_nobody_elses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the umask is 002, as on many systems, each user has such a group."""
    (tmp_path / "share").mkdir()
    (tmp_path / "share").chmod(0o775)
    monkeypatch.setattr(trust, "_own_group", lambda gid: True)
    Home.find(tmp_path / "share" / "home")
    monkeypatch.setattr(trust, "_own_group", lambda gid: False)
    with pytest.raises(ThumbwiseError, match="share can be written by others"):
        Home.find(tmp_path / "share" / "home")


# --- plugins -----------------------------------------------------------------------------------------


def in_an_open_grandparent(tmp_path: Path, plugins: Path) -> Path:
    far = tmp_path / "open" / "mine"
    far.mkdir(parents=True)
    (far / "brief.py").write_text(BRIEF)
    (far / "brief.py").chmod(0o600)
    (plugins / "brief.py").symlink_to(far / "brief.py")
    return tmp_path / "open"


def over_an_open_folder(tmp_path: Path, plugins: Path) -> Path:
    real, between = tmp_path / "real", tmp_path / "open"
    real.mkdir()
    between.mkdir()
    (real / "brief.py").write_text(BRIEF)
    (real / "brief.py").chmod(0o600)
    (between / "link").symlink_to(real)
    (plugins / "brief.py").symlink_to(between / "link" / "brief.py")
    return between


def below_an_open_home(tmp_path: Path, plugins: Path) -> Path:
    (plugins / "brief.py").write_text(BRIEF)
    (plugins / "brief.py").chmod(0o600)
    return plugins.parent


@pytest.mark.parametrize("how", [in_an_open_grandparent, over_an_open_folder, below_an_open_home])
def test_a_plugin_is_run_only_where_nobody_else_could_exchange_it(
    home: Home, tmp_path: Path, how: Callable[[Path, Path], Path]
) -> None:
    open_folder = how(tmp_path, home.plugins)
    path = home.plugins / "brief.py"
    assert read_trusted(path) == BRIEF.encode()
    open_folder.chmod(0o777)
    with pytest.raises(ThumbwiseError, match=f"{open_folder} can be written by others"):
        read_trusted(path)
    if os.getuid() == 0:
        open_folder.chmod(0o755)
        os.chown(open_folder, OTHER, OTHER)
        with pytest.raises(ThumbwiseError, match=f"{open_folder} belongs to another user"):
            read_trusted(path)


def test_links_in_a_circle_are_told(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    with pytest.raises(ThumbwiseError, match="circle of links"):
        read_trusted(tmp_path / "a")


def test_the_way_to_a_file_is_what_the_system_goes(tmp_path: Path) -> None:
    (tmp_path / "x" / "y").mkdir(parents=True)
    (tmp_path / "x" / "y" / "file").touch()
    (tmp_path / "up").symlink_to("x/y/..")
    passed = list(trust.passed(tmp_path / "up" / "y" / "file"))
    tail = [path.relative_to(tmp_path) for path in passed if path.is_relative_to(tmp_path)][1:]
    assert [str(path) for path in tail] == ["up", "x", "x/y", "x/y", "x/y/file"]
    assert passed[-1] == (tmp_path / "up" / "y" / "file").resolve()


# --- doctor ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("mode", "status"), [(0o755, "warning"), (0o777, "error"), (0o700, "ok")])
def test_a_home_open_to_others_is_told(home: Home, mode: int, status: str) -> None:
    home.root.chmod(mode)
    assert doctor.check_home(home).status == status


def test_a_token_that_others_can_read_is_told(home: Home) -> None:
    home.job_token()
    assert doctor.check_home(home).status == "ok"
    home.token.chmod(0o644)
    assert f"Other users can read {home.token}" in doctor.check_home(home).detail


def test_doctor_makes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THUMBWISE_HOME", str(tmp_path / "none"))
    assert "will be made at the first start" in found("home")["detail"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("model", "status", "detail"),
    [
        ("/no/such/folder", "error", "There is no model '/no/such/folder'"),
        ("nothing", "error", "There is no model 'nothing'"),
        ("{empty}", "error", "has no config.json"),
        ("org/name", "ok", "to be downloaded at the first start"),
    ],
)
def test_doctor_looks_at_the_model_that_is_set(
    home: Home, tmp_path: Path, model: str, status: str, detail: str
) -> None:
    (tmp_path / "empty").mkdir()
    home.config.write_text(f"model = {json.dumps(model.format(empty=tmp_path / 'empty'))}\n")
    row = found("model")
    assert (row["status"], detail in row["detail"]) == (status, True), row


@pytest.mark.parametrize(
    ("holds", "status", "detail"),
    [
        (None, "ok", "will be made at the first start"),
        (b"", "ok", "0 MiB"),
        (b"SQLite format 3\0 and so on", "ok", "0 MiB"),
        (b"my shopping list, restored by mistake", "error", "is not a database"),
    ],
)
def test_doctor_looks_at_the_database(home: Home, holds: bytes | None, status: str, detail: str) -> None:
    if holds is not None:
        home.database.write_bytes(holds)
        home.database.chmod(0o600)
    row = found("database")
    assert (row["status"], detail in row["detail"]) == (status, True), row


def test_a_home_on_a_disk_that_cannot_be_written_is_one_sentence(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, rights: False)  # root may write everything but such a disk
    assert "it cannot be written): set THUMBWISE_HOME" in found("home")["detail"]
    result = CliRunner().invoke(main, ["serve"])
    assert (result.exit_code, result.output.count("\n")) == (1, 1), result.output


@pytest.mark.parametrize("part", ["lock", "token", "database", "config"])
def test_a_file_that_this_user_may_not_use_is_named(home: Home, monkeypatch: pytest.MonkeyPatch, part: str) -> None:
    path: Path = getattr(home, part)
    path.touch()
    monkeypatch.setattr(os, "access", lambda asked, rights: asked != path)
    said = f"{path} cannot be used (no right to): the user that runs this must own it."
    assert found("home") == {"name": "home", "status": "error", "detail": said}
    assert CliRunner().invoke(main, ["serve"]).output == f"Error: {said}\n"


def test_a_home_that_cannot_be_made_is_told_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THUMBWISE_HOME", str(tmp_path / "none"))
    monkeypatch.setattr(os, "access", lambda path, rights: path != tmp_path)
    assert f"({tmp_path}: it cannot be written)" in found("home")["detail"]


def test_a_check_that_cannot_look_says_why_and_the_others_do(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(home: Any) -> doctor.Check:
        raise PermissionError(13, "Permission denied", "/some/file")

    denied.__name__ = "check_disk"
    monkeypatch.setattr(doctor, "check_disk", denied)
    assert found("disk")["detail"] == "It cannot be checked: Permission denied (/some/file)."

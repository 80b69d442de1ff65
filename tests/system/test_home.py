"""The home folder: where it is, who holds its lock, and writes that are there whole or not at all."""

from __future__ import annotations

import stat
import subprocess
import sys
from pathlib import Path

import pytest

from thumbwise.errors import Conflict, ThumbwiseError
from thumbwise.home import Home, HomeLock, running_url, write_durably
from thumbwise.serving.auth import is_token

HOLD = """
import sys
from thumbwise.home import Home, HomeLock
lock = HomeLock(Home.find(sys.argv[1]))
lock.announce("http://127.0.0.1:4321")
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home.find(tmp_path / "home")


def hold_elsewhere(home: Home) -> subprocess.Popen[str]:
    """Start a process that holds the home's lock until its standard input is closed."""
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", HOLD, str(home.root)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_the_home_is_found_by_argument_then_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THUMBWISE_HOME", str(tmp_path / "from-env"))
    assert Home.find(tmp_path / "given").root == tmp_path / "given"
    assert Home.find().root == tmp_path / "from-env"
    monkeypatch.delenv("THUMBWISE_HOME")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("HOME", str(tmp_path))
    assert tmp_path in Home.find().root.parents


def test_a_home_that_cannot_be_is_told_with_the_fix(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for root in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ThumbwiseError, match="set THUMBWISE_HOME to a folder"):
            Home.find(root)


def test_a_new_home_is_for_its_owner_alone(home: Home) -> None:
    for folder in (home.models, home.policies, home.runs, home.snapshots, home.plugins, home.root):
        assert stat.S_IMODE(folder.stat().st_mode) & 0o022 == 0, folder
    assert stat.S_IMODE(home.plugins.stat().st_mode) == 0o700


def test_the_jobs_token_is_made_once_and_private(home: Home) -> None:
    token = home.job_token()
    assert len(token) >= 32
    assert home.job_token() == token
    assert stat.S_IMODE(home.token.stat().st_mode) == 0o600


def test_a_token_that_a_crash_left_empty_is_made_again_and_an_empty_one_opens_nothing(home: Home) -> None:
    home.token.touch()
    assert len(home.job_token()) >= 32
    assert home.job_token() == home.token.read_text()
    assert not is_token(None, "")
    assert not is_token("Bearer ", "")


def test_a_second_holder_is_refused_and_told_where_the_first_listens(home: Home) -> None:
    process = hold_elsewhere(home)
    try:
        assert running_url(home) == "http://127.0.0.1:4321"
        with pytest.raises(Conflict, match=r"already runs on .* at http://127.0.0.1:4321"):
            HomeLock(home)
    finally:
        process.communicate()
    with HomeLock(home):
        assert running_url(home) is None  # held, but nobody listens yet


def test_a_lock_left_by_a_killed_process_means_nothing(home: Home) -> None:
    process = hold_elsewhere(home)
    process.kill()
    process.communicate()
    assert "4321" in home.lock.read_text()
    assert running_url(home) is None
    HomeLock(home).close()


def test_no_lock_file_means_nothing_runs(home: Home) -> None:
    assert running_url(home) is None


def test_a_lock_caught_between_truncate_and_write_tells_no_url(home: Home) -> None:
    with HomeLock(home):
        home.lock.write_text('{"url": "htt')
        assert running_url(home) is None


def test_a_durable_write_replaces_the_whole_file_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "note"
    write_durably(path, b"a long first version")
    write_durably(path, b"second")
    assert path.read_bytes() == b"second"
    assert list(tmp_path.iterdir()) == [path]


def test_a_durable_write_that_fails_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "note"
    write_durably(path, b"first")

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("thumbwise.home.os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_durably(path, b"second")
    assert path.read_bytes() == b"first"
    assert list(tmp_path.iterdir()) == [path]

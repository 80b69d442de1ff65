"""`feedback forget` and `users delete`: what somebody said is gone, whether an assistant runs or not."""

from __future__ import annotations

import json
from contextlib import closing

import pytest
from click.testing import CliRunner
from fakes import FakeEngine, FakeEngineClient
from live_server import serving
from stored import reply, thumb

from thumbwise.accounts.principal import COMMAND_LINE
from thumbwise.accounts.users import Users
from thumbwise.cli.main import main
from thumbwise.feedback.records import Asker
from thumbwise.feedback.store import Store
from thumbwise.home import Home


def said(home: Home, *users: str) -> None:
    with closing(Store(home.database)) as store:
        for user in users:
            message = reply(store, user, f"answer MARK{user}")
            store.add_feedback(Asker(user, user), "k", thumb(message))


def left(home: Home) -> bytes:
    return b"".join(path.read_bytes() for path in home.root.rglob("*") if path.is_file())


def test_it_asks_first_and_does_nothing_without_a_yes(home: Home) -> None:
    said(home, "local")
    asked = CliRunner().invoke(main, ["feedback", "forget", "local"], input="n\n")
    assert asked.exit_code == 1
    assert "for good" in asked.output
    assert b"MARKlocal" in left(home)


def test_without_an_assistant(home: Home) -> None:
    said(home, "local", "other")
    done = CliRunner().invoke(main, ["feedback", "forget", "local"], input="y\n")
    assert done.exit_code == 0, done.output
    assert "Replies, comparisons and votes removed: 2." in done.output
    assert "No version learned from it." in done.output
    assert b"MARKlocal" not in left(home)
    assert b"MARKother" in left(home)
    again = CliRunner().invoke(main, ["feedback", "forget", "local", "--yes"])
    assert again.exit_code == 1
    assert "Nothing is stored" in again.output


def test_with_a_running_assistant(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    said(home, "local")
    with serving(home, lambda: FakeEngine(FakeEngineClient())) as live:
        monkeypatch.setattr("thumbwise.cli.feedback.running_url", lambda home: live.url)
        done = CliRunner().invoke(main, ["feedback", "forget", "local", "--yes", "--json"])
        assert done.exit_code == 0, done.output
        assert json.loads(done.stdout) == {"items": 2, "snapshots": 0, "learned": [], "finished": True}
        assert b"MARKlocal" not in left(home)


def test_a_deleted_account_is_forgotten_too(home: Home) -> None:
    with closing(Store(home.database)) as store:
        users = Users(store)
        users.create_operator("ops", COMMAND_LINE)
        ann = users.create("ann", "user", COMMAND_LINE).id
    said(home, ann, f"{ann}/below", "local")
    done = CliRunner().invoke(main, ["users", "delete", "ann", "--yes"])
    assert done.exit_code == 0, done.output
    assert f"MARK{ann}".encode() not in left(home)
    assert b"MARKlocal" in left(home)

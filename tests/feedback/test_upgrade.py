"""A database of the released schema opens as before, and an account may adopt it; a newer one is refused."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from team import Team, team

from thumbwise.accounts.principal import COMMAND_LINE
from thumbwise.errors import ThumbwiseError
from thumbwise.feedback import adoption
from thumbwise.feedback.records import Asker, FeedbackRequest
from thumbwise.feedback.store import Store
from thumbwise.home import Home

RELEASED = Path(__file__).parents[1] / "support/homes/released.sql"
KEY = {"Authorization": "Bearer tw-of-the-released-database"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A home with the released database."""
    with closing(sqlite3.connect(Home.find(tmp_path).database)) as db:
        db.executescript(RELEASED.read_text())
    return tmp_path


def owners(here: Team, table: str) -> list[tuple[str, ...]]:
    """Who owns the rows of a table, and whom they count for."""
    person = ", person" if table != "conversations" else ""
    found = here.assistant.store.rows(f"SELECT user_id{person} FROM {table} ORDER BY rowid")
    return [tuple(row.values()) for row in found]


async def test_it_opens_in_local_as_before(folder: Path) -> None:
    async with team(folder, auth="local") as here, here.client() as browser:
        page = (await browser.get("/pages/chat")).json()
        for chat in ("Is the sea deep?", "Is the sky high?"):
            assert chat in page["list"]
        chats = dict(here.assistant.store.conversations("local", 10))
        (reply,) = here.assistant.store.conversation(next(iter(chats)), "local")
        assert (reply.text, reply.thumb) == ("Yes.", "up")
        models = await browser.get("/v1/models", headers=KEY)
        assert models.status_code == 200
        assert (await browser.get("/v1/models")).status_code == 401  # from the first key on, each needs one
        assert [key.name for key in here.assistant.keys.all()] == ["bot", "old"]
        assert here.assistant.store.counts()["thumb"] == 4


async def test_an_account_adopts_what_local_said(folder: Path) -> None:
    async with team(folder) as here:
        ann = here.account("ann")
        counts = here.assistant.store.counts()
        moved = here.assistant.people.adopt("ann", COMMAND_LINE)
        assert moved == {"conversations": 2, "comparisons": 1, "replies": 6, "feedback": 5, "keys": 2}
        assert owners(here, "conversations") == [(ann.id,)] * 2
        assert owners(here, "comparisons") == [(ann.id, ann.id)]
        assert ("dora", "programs") in owners(here, "replies")  # she is not `local`
        for table in ("replies", "feedback"):
            assert not [owner for owner, _ in owners(here, table) if owner == "local"]
        async with here.client(ann) as hers:
            assert "Is the sea deep?" in (await hers.get("/pages/chat")).json()["list"]
            bot = await here.client().get("/v1/models", headers=KEY)
            assert bot.status_code == 200
        assert here.assistant.store.counts() == counts
        (entry,) = here.assistant.audit.entries(action="user.adopt")
        assert (entry["target"], entry["detail"]["replies"]) == (ann.id, 6)
        assert here.assistant.people.adopt("ann", COMMAND_LINE)["replies"] == 0


async def test_adopting_twice_the_same_idempotency_key_keeps_both_votes(folder: Path) -> None:
    async with team(folder) as here:
        store, ann = here.assistant.store, here.account("ann")
        asker = Asker(ann.id, ann.id)
        mine = store.start_reply(asker, [{"role": "user", "content": "x"}], "base", {})
        store.finish_reply(mine, "done", text="y", finish_reason="stop")
        vote = FeedbackRequest(kind="thumb", message_id=mine, value="down")
        mine_first = store.add_feedback(asker, "thumb-1", vote)[0]  # a key that `local` used too
        here.assistant.people.adopt("ann", COMMAND_LINE)
        assert store.add_feedback(asker, "thumb-1", vote) == (mine_first, False)
        assert len(store.rows("SELECT * FROM feedback WHERE user_id = ?", [ann.id])) == 5


async def test_a_keys_users_are_adopted_below_the_account(folder: Path) -> None:
    async with team(folder) as here:
        ann, store = here.account("ann"), here.assistant.store
        with store.write() as db:
            adoption.adopt(db, ann.id, ["bot"])
        rows = store.rows("SELECT user_id, person FROM feedback WHERE idempotency_key = 'k-1' ORDER BY seq")
        assert [tuple(row.values()) for row in rows] == [(ann.id, ann.id), (f"{ann.id}/carl", ann.id)]


def test_a_database_of_a_newer_program_is_refused_and_left_alone(folder: Path) -> None:
    home = Home.find(folder)
    Store(home.database).close()
    with closing(sqlite3.connect(home.database)) as db:
        db.execute("INSERT INTO _sqlite_migrations (migration_set, name, applied_at) VALUES ('feedback', 'm999_x', '')")
        db.commit()
        before = list(db.iterdump())
    with pytest.raises(ThumbwiseError, match=r"written by a newer Thumbwise .*m999_x.*: install that version again"):
        Store(home.database)
    with closing(sqlite3.connect(home.database)) as db:
        assert list(db.iterdump()) == before

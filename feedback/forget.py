"""Forgetting: what somebody said is removed from the database for good.

In one transaction the wish is recorded with the ids of all that it covers, and the rows become tombstones: without
text, without tokens, without an owner. Ids, versions and states stay, so that counts and references hold. Then the old
bytes are removed from the database's files. Files elsewhere (snapshots, runs) come after that, by the ids recorded
here; see `thumbwise.serving.forgetting`. A wish is open until all of it is done, so a kill in the middle loses nothing.

A prompt that somebody else asked too stays for that person. Votes of others on what is forgotten keep their rows.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from thumbwise.contracts import Message
from thumbwise.errors import NotFound
from thumbwise.faults import fault_point
from thumbwise.feedback.prompts import add_prompt
from thumbwise.feedback.records import FORGOTTEN, now_ns, prompt_sha256

if TYPE_CHECKING:
    from sqlite_utils import Database

    from thumbwise.feedback.store import Store

Kind = Literal["person", "chat", "vote"]
Told = Callable[["Database"], None]
TOMBSTONE: list[Message] = [{"role": "user", "content": "[deleted]"}]
"""The prompt of every reply that was forgotten."""
PATIENCE = 5.0
"""Seconds to wait for long reads (a snapshot, a backup): meanwhile old bytes stay in the write-ahead log."""

_WHOSE = "(user_id = :user OR user_id > :user || '/' AND user_id < :user || '0')"
_OWN = "SELECT item FROM forgotten WHERE forgetting = :wish AND own"
_COVER = {
    "person": [
        f"INSERT OR IGNORE INTO forgotten SELECT id, :wish, 1 FROM {table} WHERE {_WHOSE}"
        for table in ("replies", "comparisons", "feedback")
    ],
    "chat": [
        "INSERT OR IGNORE INTO forgotten SELECT id, :wish, 1 FROM replies"
        " WHERE conversation_id = :target AND +user_id = :user",
        f"INSERT OR IGNORE INTO forgotten SELECT id, :wish, 1 FROM feedback WHERE message_id IN ({_OWN})"
        " AND +user_id = :user",
    ],
    "vote": [
        "INSERT OR IGNORE INTO forgotten SELECT o.id, :wish, 1 FROM feedback f JOIN feedback o"
        " ON o.user_id = f.user_id AND o.person = f.person AND o.kind = f.kind"
        " AND o.message_id IS f.message_id AND o.comparison_id IS f.comparison_id"
        " WHERE f.id = :target AND f.user_id = :user",
    ],
}
"""By kind: the ids that a wish covers. Of a vote, also what was said before it: that must not count again."""
_OTHERS = [
    f"INSERT OR IGNORE INTO forgotten SELECT id, :wish, 0 FROM feedback WHERE {column} IN ({_OWN})"
    for column in ("message_id", "comparison_id")
]
_PROMPTS = [
    f"INSERT OR IGNORE INTO forgotten_prompts SELECT prompt_sha256, :wish FROM {table} WHERE id IN ({_OWN})"
    for table in ("replies", "comparisons")
]
_ERASE = [
    "DELETE FROM conversations WHERE :kind = 'person' AND " + _WHOSE,
    "DELETE FROM conversations WHERE :kind = 'chat' AND id = :target AND user_id = :user",
    f"UPDATE comparisons SET user_id = '{FORGOTTEN}', person = '{FORGOTTEN}', prompt_sha256 = :none"
    f" WHERE id IN ({_OWN})",
    f"UPDATE feedback SET user_id = '{FORGOTTEN}/' || id, person = '{FORGOTTEN}/' || id, kind = 'forgotten',"
    f" value = '{{}}', idempotency_key = id, body_sha256 = '' WHERE id IN ({_OWN})",
    "DELETE FROM prompts WHERE sha256 IN (SELECT sha256 FROM forgotten_prompts WHERE forgetting = :wish)"
    " AND NOT EXISTS (SELECT 1 FROM replies WHERE prompt_sha256 = prompts.sha256)"
    " AND NOT EXISTS (SELECT 1 FROM comparisons WHERE prompt_sha256 = prompts.sha256)",
]
_REPLIES = f"""
    UPDATE replies SET user_id = '{FORGOTTEN}', person = '{FORGOTTEN}', prompt_sha256 = :none, conversation_id = NULL,
        parent_id = NULL, sampling = '{{}}', text = '', prompt_ids = NULL, response_ids = NULL, error = NULL,
        training = 0, state = CASE state WHEN 'streaming' THEN 'stopped' ELSE state END
    WHERE id IN ({_OWN})
"""
"""A reply that is still being written ends here: its text is not stored later."""


@dataclass(frozen=True)
class Wish:
    """What somebody wants to be forgotten, and the ids that it covers, until all of it is done."""

    id: int
    kind: Kind
    user: str
    items: frozenset[str]
    """Ids of replies, comparisons and feedback: all that is in no snapshot and no run any more."""
    prompts: frozenset[str]
    """Addresses of the prompts."""
    own: int
    """How many of the items were the user's own."""

    def covers(self, line: dict[str, Any]) -> bool:
        """Whether a line of a snapshot holds any of it."""
        if self.kind == "person" and _is(line.get("user"), self.user):
            return True
        drafts = [line.get(name) or {} for name in ("reply", "left", "right")] + list(line.get("drafts", ()))
        if line.get("id") in self.items or any(draft.get("id") in self.items for draft in drafts):
            return True
        asked = line.get("type") == "prompt" and line.get("user") == self.user
        return asked and prompt_sha256(line["prompt"]) in self.prompts


def _is(user: str | None, whose: str) -> bool:
    return user is not None and (user == whose or user.startswith(f"{whose}/"))


def forget(store: Store, kind: Kind, user: str, target: str = "", told: Told | None = None) -> Wish:
    """Record the wish and make tombstones of the rows. Blocks until it is durable. Raises NotFound.

    `user` is whose rows they are; of a person also the names below it. `target` is the id of a chat or a vote. `told`
    writes the audit entry in the same transaction.
    """
    with store.write() as db:
        row = {"kind": kind, "user_id": user, "asked_at": now_ns()}
        wish = int(db.table("forgettings").insert(row).last_rowid or 0)
        given = {"wish": wish, "user": user, "target": target}
        for statement in (*_COVER[kind], *_OTHERS, *_PROMPTS):
            db.execute(statement, _needed(statement, given))
        if kind != "person" and not (_found(db, wish) or (kind == "chat" and _is_chat(db, given))):
            raise NotFound(f"There is no {kind} {target[:64]!r} of yours.")
        given |= {"none": add_prompt(db, TOMBSTONE), "kind": kind}
        for statement in (_REPLIES, *_ERASE):
            db.execute(statement, _needed(statement, given))
        if told is not None:
            told(db)
        fault_point("forget_written")
    fault_point("forget_committed")
    store.recount()
    return _wish(store, wish, kind, user)


def _needed(statement: str, given: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in given.items() if f":{name}" in statement}


def _found(db: Database, wish: int) -> bool:
    return bool(db.execute("SELECT 1 FROM forgotten WHERE forgetting = ? LIMIT 1", [wish]).fetchone())


def _is_chat(db: Database, given: dict[str, Any]) -> bool:
    whose = [given["target"], given["user"]]
    return bool(db.execute("SELECT 1 FROM conversations WHERE id = ? AND user_id = ?", whose).fetchone())


def known(store: Store, user: str) -> bool:
    """Whether there is anything that this user said, or names below it."""
    tables = ("conversations", "replies", "comparisons", "feedback")
    return any(store.rows(f"SELECT 1 FROM {table} WHERE {_WHOSE} LIMIT 1", {"user": user}) for table in tables)


def unfinished(store: Store) -> list[Wish]:
    """The wishes that are not done everywhere, oldest first."""
    rows = store.rows("SELECT id, kind, user_id FROM forgettings WHERE done_at IS NULL ORDER BY id")
    return [_wish(store, row["id"], row["kind"], row["user_id"]) for row in rows]


def _wish(store: Store, wish: int, kind: Kind, user: str) -> Wish:
    items = store.rows("SELECT item, own FROM forgotten WHERE forgetting = ?", [wish])
    prompts = store.rows("SELECT sha256 FROM forgotten_prompts WHERE forgetting = ?", [wish])
    ids, addresses = (row["item"] for row in items), (row["sha256"] for row in prompts)
    return Wish(wish, kind, user, frozenset(ids), frozenset(addresses), sum(row["own"] for row in items))


def note_redacted(store: Store, wish: Wish, snapshots: Collection[str]) -> None:
    """Record which snapshots held any of it: versions that were trained on them may have learned from it."""
    with store.write() as db:
        db.execute(
            "INSERT OR IGNORE INTO redacted (snapshot_id, forgetting) SELECT value, ? FROM json_each(?)",
            [wish.id, json.dumps(sorted(snapshots))],
        )


def done(store: Store, wishes: Sequence[Wish]) -> None:
    """Close wishes: they are done everywhere. The addresses of prompts go too, because they tell of the text."""
    ids = json.dumps([wish.id for wish in wishes])
    with store.write() as db:
        for statement in (
            "DELETE FROM forgotten_prompts WHERE forgetting IN (SELECT value FROM json_each(:ids))",
            "UPDATE forgettings SET done_at = :now WHERE id IN (SELECT value FROM json_each(:ids))",
        ):
            db.execute(statement, _needed(statement, {"ids": ids, "now": now_ns()}))


def scrub(store: Store, patience: float = PATIENCE) -> bool:
    """Remove the bytes of deleted rows from the database's files. Returns False if a long read prevents that still.

    The database is written anew, and all writes wait for that: about a second for each 100 MB. `secure_delete` alone
    does not do: when SQLite moves rows between pages, copies of them stay in the unused space of the old page.
    """
    with store.lock:
        store.db.execute("VACUUM")
    until = time.monotonic() + patience
    while not _emptied(store):
        if time.monotonic() > until:
            return False
        time.sleep(0.2)
    return True


def _emptied(store: Store) -> bool:
    """Move the write-ahead log into the database and cut it to nothing, unless somebody reads from it."""
    with store.lock:
        wait = store.db.execute("PRAGMA busy_timeout").fetchone()[0]
        store.db.execute("PRAGMA busy_timeout = 0")  # everybody else waits for this lock
        try:
            busy, _, _ = store.db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        finally:
            store.db.execute(f"PRAGMA busy_timeout = {wait}")
    return not busy

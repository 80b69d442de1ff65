"""What one person said: for the page "My data" and its export.

The rows are those of an account and of the names below its API keys; in `local`, those of this machine's browsers.
Everything blocks. Lists come in pages: the next page begins after the last row of the one before, so that it costs the
same at the end of a long list. The export reads the ids first and then batches of rows, so it takes little memory.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from thumbwise.errors import NotFound
from thumbwise.feedback.consent import SWITCHES

if TYPE_CHECKING:
    from sqlite_utils import Database

    from thumbwise.feedback.store import Store

LAST = 2**63 - 1
"""Where the first page of a list begins."""
BATCH = 200
OWN = "({0}.user_id = :user OR ({0}.user_id >= :user || '/' AND {0}.user_id < :user || '0'))"
"""SQL: the rows of a user and of the names below it. "0" comes right after "/"."""
_CHATS = """
    SELECT c.id, c.title, c.asked_at, (SELECT count(*) FROM replies r WHERE r.conversation_id = c.id) AS replies
    FROM conversations c WHERE c.user_id = :user AND c.asked_at < :before ORDER BY c.asked_at DESC LIMIT :limit
"""
_CURRENT = """
    (f.message_id IS NULL OR f.seq IN (SELECT seq FROM current_on_replies v WHERE v.message_id = f.message_id))
    AND NOT (f.kind = 'thumb' AND json_extract(f.value, '$.thumb') = 'clear')
"""
"""SQL: the last word of a user on a reply, unless it takes a thumb back. A user has one vote on a comparison."""
_VOTE = f"""
    SELECT f.seq, f.id, f.user_id, f.kind, f.value, f.created_at, f.message_id, f.comparison_id,
        r.text, r.conversation_id, r.user_id AS owner, p.messages
    FROM feedback f LEFT JOIN replies r ON r.id = f.message_id LEFT JOIN comparisons c ON c.id = f.comparison_id
    LEFT JOIN prompts p ON p.sha256 = coalesce(r.prompt_sha256, c.prompt_sha256)
    WHERE {OWN.format("f")} AND {_CURRENT}
"""
_VOTES = f"{_VOTE} AND f.seq < :before ORDER BY f.seq DESC LIMIT :limit"
_COUNTS = f"""
    SELECT (SELECT count(*) FROM conversations t WHERE t.user_id = :user) AS chats,
        (SELECT count(*) FROM replies t WHERE {OWN.format("t")} AND conversation_id IS NULL AND comparison_id IS NULL)
            AS requests,
        (SELECT count(*) FROM comparisons t WHERE {OWN.format("t")}) AS comparisons,
        (SELECT count(*) FROM feedback f WHERE {OWN.format("f")} AND {_CURRENT}) AS votes
"""


@dataclass(frozen=True)
class Vote:
    """One vote or comment that counts now: what was said, about which question and reply."""

    id: str
    seq: int
    user_id: str
    kind: str
    value: dict[str, Any]
    created_at: int
    message_id: str | None
    comparison_id: str | None
    conversation_id: str | None
    question: str
    text: str


@dataclass(frozen=True)
class Chat:
    """A conversation in the list."""

    id: str
    title: str
    asked_at: int
    replies: int


def counts(store: Store, user: str) -> dict[str, int]:
    """How many chats, requests of programs, comparisons and votes a user has."""
    with store.reading() as db:
        return dict(next(iter(db.query(_COUNTS, {"user": user}))))


def chats(store: Store, user: str, before: int = LAST, limit: int = 20) -> list[Chat]:
    """The user's conversations, the one with the newest question first; `before` is the `asked_at` of the last one."""
    with store.reading() as db:
        return [Chat(**row) for row in db.query(_CHATS, {"user": user, "before": before, "limit": limit})]


def title(store: Store, user: str, chat_id: str) -> str:
    """The title of one of the user's conversations; raises NotFound for any other id."""
    with store.reading() as db:
        found = list(db.query("SELECT title FROM conversations WHERE id = ? AND user_id = ?", [chat_id, user]))
    if not found:
        raise NotFound("There is no such chat of yours.")
    return str(found[0]["title"])


def consents(store: Store, user: str) -> list[dict[str, Any]]:
    """Each answer of an account to the questions about consent, oldest first."""
    with store.reading() as db:
        found = db.query(
            "SELECT at, terms, keep_chats, use_votes, use_text FROM consents WHERE user_id = ? ORDER BY seq", [user]
        )
        return [row | {name: bool(row[name]) for name in SWITCHES} for row in found]


def votes(store: Store, user: str, before: int = LAST, limit: int = 20) -> list[Vote]:
    """The user's votes and comments that count now, newest first; `before` is the `seq` of the last one."""
    with store.reading() as db:
        return [_vote(row) for row in db.query(_VOTES, {"user": user, "before": before, "limit": limit})]


def vote(store: Store, user: str, vote_id: str) -> Vote:
    """One of the user's votes that count now; raises NotFound for any other id."""
    with store.reading() as db:
        found = list(db.query(f"{_VOTE} AND f.id = :id", {"user": user, "id": vote_id}))
    if not found:
        raise NotFound("There is no such vote of yours.")
    return _vote(found[0])


def _vote(row: dict[str, Any]) -> Vote:
    messages = json.loads(row["messages"] or "[]")
    return Vote(
        row["id"], row["seq"], row["user_id"], row["kind"], json.loads(row["value"]), row["created_at"],
        row["message_id"], row["comparison_id"], row["conversation_id"],
        messages[-1]["content"] if messages else "", row["text"] or "",
    )  # fmt: skip


# -- the export ----------------------------------------------------------------------------------------

_IDS = {
    "chats": "SELECT id FROM conversations t WHERE t.user_id = :user ORDER BY created_at",
    "replies": f"SELECT id FROM replies t WHERE {OWN.format('t')} AND comparison_id IS NULL ORDER BY created_at",
    "comparisons": f"SELECT id FROM comparisons t WHERE {OWN.format('t')} ORDER BY created_at",
    "votes": f"SELECT id FROM feedback t WHERE {OWN.format('t')} AND kind <> 'comment' ORDER BY seq",
    "comments": f"SELECT id FROM feedback t WHERE {OWN.format('t')} AND kind = 'comment' ORDER BY seq",
}
_ROWS = {
    "chats": "SELECT id, title, created_at FROM conversations",
    "replies": """
        SELECT t.id, t.user_id AS user, t.conversation_id AS chat, t.policy_version AS version, t.state, t.text,
            t.created_at, p.messages FROM replies t JOIN prompts p ON p.sha256 = t.prompt_sha256""",
    "comparisons": """
        SELECT t.id, t.user_id AS user, t.shown, t.created_at, p.messages, EXISTS (
            SELECT 1 FROM feedback f WHERE f.comparison_id = t.id AND f.user_id = t.user_id) AS voted
        FROM comparisons t JOIN prompts p ON p.sha256 = t.prompt_sha256""",
    "votes": """
        SELECT id, user_id AS user, kind, message_id AS reply, comparison_id AS comparison, value, created_at
        FROM feedback""",
}
_ROWS["comments"] = _ROWS["votes"]
FILES = tuple(_IDS)
"""The names of the lists in an export."""


def export(store: Store, user: str, name: str) -> Iterator[list[dict[str, Any]]]:
    """Yield the rows of one list of `FILES`, in batches. Each batch is of one moment."""
    with store.reading() as db:
        ids = [str(row["id"]) for row in db.query(_IDS[name], {"user": user})]
    for start in range(0, len(ids), BATCH):
        with store.reading() as db:
            yield _batch(db, name, ids[start : start + BATCH])


def _batch(db: Database, name: str, ids: Sequence[str]) -> list[dict[str, Any]]:
    chosen = " WHERE id IN (SELECT value FROM json_each(?))"
    rows = {row["id"]: row for row in db.query(_ROWS[name] + chosen, [json.dumps(ids)])}
    drafts: dict[str, dict[str, Any]] = {}
    if name == "comparisons":
        found = db.query(
            "SELECT id, text, policy_version FROM replies WHERE comparison_id IN (SELECT value FROM json_each(?))",
            [json.dumps(ids)],
        )
        drafts = {row["id"]: row for row in found}
    return [_plain(rows[id_], drafts) for id_ in ids if id_ in rows]  # others were deleted meanwhile


def _plain(row: dict[str, Any], drafts: dict[str, dict[str, Any]]) -> dict[str, Any]:
    if "value" in row:
        return row | {"value": json.loads(row["value"])}
    if "messages" not in row:
        return row
    messages = json.loads(row.pop("messages"))
    if "shown" not in row:
        # The earlier messages of a chat are its earlier replies; a program's request has no such rows.
        return row | {"messages": messages[-1:] if row["chat"] else messages}
    shown, voted = json.loads(row.pop("shown")), row.pop("voted")
    found = [drafts[id_] for id_ in shown if id_ in drafts]
    # Versions are told after the vote: a comparison is blind until then.
    tell = ("id", "text", "policy_version") if voted else ("id", "text")
    return row | {"messages": messages, "drafts": [{name: draft[name] for name in tell} for draft in found]}

"""An immutable export of what people consent to at that moment: the training job's only view of the feedback.

One JSON object a line, in the order in which it was said, so that the same feedback always gives the same bytes; the
SHA-256 of those bytes is the snapshot's id and file name. Replies that failed, were stopped, or are still streaming
never leave here, nor do those that a client keeps out of training. A corrected reply is a demonstration. All turns of
a conversation are one group, which no split divides: the later ones contain the earlier ones. A thumb up on a reply
that was flagged as unsafe or broken stays here. It is written line by line from a read-only connection, so it takes
little memory, and nobody waits for it. Left out: likert ratings, until a trainer reads them.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Collection, Iterator
from datetime import UTC, datetime
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

from sqlite_utils import Database

from thumbwise.errors import Conflict, NotFound
from thumbwise.feedback.consent import Allowed
from thumbwise.feedback.records import TELLING, canonical, prompt_sha256, tier_of
from thumbwise.feedback.store import Store
from thumbwise.home import fsync_folder

_DRAFT = "r.id AS reply_id, r.text, r.response_ids, r.finish_reason, r.policy_version, r.sampling"
ON_COMPARISONS = f"""
    SELECT f.seq, f.id, f.user_id, f.person, f.kind, f.value, c.user_id AS owner, c.shown,
        p.messages, {_DRAFT}, r.prompt_ids
    FROM feedback f CROSS JOIN comparisons c ON c.id = f.comparison_id
    CROSS JOIN prompts p ON p.sha256 = c.prompt_sha256 CROSS JOIN replies r ON r.comparison_id = c.id
    WHERE r.state = 'done' AND r.training AND {TELLING} ORDER BY f.seq
"""
"""A row for each draft. CROSS JOIN: in this order of tables, so that nothing has to be sorted, which needs room."""
ON_REPLIES = f"""
    SELECT f.id, f.user_id, f.person, f.kind, f.value, r.user_id AS owner, p.messages, {_DRAFT},
        CASE WHEN f.kind <> 'edit' THEN r.prompt_ids END AS prompt_ids,
        EXISTS (SELECT 1 FROM feedback g WHERE g.message_id = r.id AND g.kind = 'flag') AS flagged
    FROM current_on_replies f CROSS JOIN replies r ON r.id = f.message_id
    CROSS JOIN prompts p ON p.sha256 = r.prompt_sha256
    WHERE f.kind IN ('thumb', 'comment', 'edit') AND r.state = 'done' AND r.training ORDER BY f.seq
"""
PROMPTS = """
    SELECT r.id, r.user_id, r.person, r.created_at, p.messages
    FROM replies r CROSS JOIN prompts p ON p.sha256 = r.prompt_sha256
    WHERE r.state = 'done' AND r.training AND NOT EXISTS (
        SELECT 1 FROM replies o WHERE o.prompt_sha256 = r.prompt_sha256 AND o.user_id = r.user_id
        AND o.person = r.person AND o.state = 'done' AND o.training AND o.rowid < r.rowid)
    ORDER BY r.rowid
"""
"""Each prompt of each user once, where it was answered first; the rowid is the order of writing."""
UNFINISHED = ".making-"
REDACTED = ".redacted.jsonl"
"""How the name ends of a snapshot's copy without what was forgotten; see `redaction.py`."""


def take_snapshot(store: Store, folder: Path, young: Collection[str] = ()) -> str:
    """Write a snapshot of `store` into `folder` as `<sha256>.jsonl`; returns the id (the SHA-256).

    Lines of the accounts `young` say so: their votes count for less (`thumbwise.training.data.people`).
    While snapshots are redacted, this waits: none may then appear that holds what is forgotten.
    """
    with store.exporting:
        remove_unfinished(folder)
        return _taken(store, folder, frozenset(young))


def remove_unfinished(folder: Path) -> None:
    """Remove what a process that was killed left. Call it while you hold `store.exporting`."""
    for left in folder.glob(f"{UNFINISHED}*"):
        left.unlink(missing_ok=True)


def _taken(store: Store, folder: Path, young: frozenset[str]) -> str:
    side, hashed = folder / f"{UNFINISHED}{secrets.token_hex(4)}", hashlib.sha256()
    try:
        with store.reading() as db, open(side, "wb", opener=_private) as file:
            for line in _lines(db):
                data = canonical(line | ({"young": True} if line["person"] in young else {})).encode() + b"\n"
                hashed.update(data)
                file.write(data)
            file.flush()
            os.fsync(file.fileno())
        side.replace(folder / f"{hashed.hexdigest()}.jsonl")
    finally:
        side.unlink(missing_ok=True)
    fsync_folder(folder)
    return hashed.hexdigest()


def snapshot_path(folder: Path, snapshot_id: str) -> Path:
    """The file of a snapshot; raises NotFound for an id that is not one, Conflict for one that was redacted."""
    path = folder / f"{snapshot_id}.jsonl"
    named = len(snapshot_id) == 64 and snapshot_id.isalnum()
    if named and (folder / f"{snapshot_id}{REDACTED}").exists():
        raise redacted()
    if not (named and path.is_file()):
        raise NotFound(f"There is no snapshot {snapshot_id[:64]!r}.")
    return path


def redacted() -> Conflict:
    """The refusal of a run whose snapshot was redacted."""
    return Conflict(
        "Feedback that this run was given was deleted by the person who gave it, so the run cannot go on: start a new "
        "one with `thumbwise train`."
    )


def _private(name: str, flags: int) -> int:
    return os.open(name, flags, 0o600)


def _lines(db: Database) -> Iterator[dict[str, Any]]:
    """Every line that people consent to, of one moment.

    A vote needs its voter's consent for votes, and consent for text from whoever asked the question.
    """
    allowed = Allowed(db)
    for _, rows in groupby(db.query(ON_COMPARISONS), itemgetter("seq")):
        drafts = list(rows)
        if _may(allowed, drafts[0]) and (line := _on_comparison(drafts)):
            yield line
    for row in db.query(ON_REPLIES):
        if _may(allowed, row) and (line := _on_reply(row)):
            yield line
    for row in db.query(PROMPTS):
        if not allowed.text(row["user_id"]):
            continue
        day = datetime.fromtimestamp(row["created_at"] / 1e9, UTC).date().isoformat()
        yield {"type": "prompt", "id": row["id"], "day": day, **_whose(row), **_prompt(row)}


def _may(allowed: Allowed, row: dict[str, Any]) -> bool:
    """Whether a vote may train; for corrections and comments the voter's own text must be allowed too."""
    wrote = row["kind"] in ("edit", "comment")
    return allowed.votes(row["user_id"]) and allowed.text(row["owner"]) and (not wrote or allowed.text(row["user_id"]))


def _whose(row: dict[str, Any]) -> dict[str, Any]:
    """Whose row it is, and the person that it counts for."""
    return {"user": row["user_id"], "person": row["person"]}


def _prompt(row: dict[str, Any]) -> dict[str, Any]:
    messages = json.loads(row["messages"])
    begins = next((n for n, message in enumerate(messages, 1) if message["role"] == "user"), len(messages))
    return {"group": prompt_sha256(messages[:begins]), "prompt": messages}


def _on_comparison(rows: list[dict[str, Any]]) -> dict[str, Any] | None:
    """A vote by the rows of its drafts; None where one of them was not finished."""
    row, shown = rows[0], json.loads(rows[0]["shown"])
    replies = {draft["reply_id"]: draft for draft in rows}
    if not all(draft in replies for draft in shown):
        return None
    drafts = [_reply(replies[draft]) for draft in shown]
    vote = json.loads(row["value"])
    line = {"id": row["id"], **_whose(row), **_prompt(row)}
    if row["kind"] == "rank":
        tier = tier_of(vote, shown)
        return line | {"type": "ranking", "drafts": drafts, "tiers": [tier[draft] for draft in shown]}
    left, right = drafts
    return line | {
        "type": "comparison",
        "choice": vote["choice"],
        "strength": vote["strength"],
        "left": left,
        "right": right,
    }


def _on_reply(row: dict[str, Any]) -> dict[str, Any] | None:
    """A vote on a reply; None where a thumb was taken back, or is up on a flagged one."""
    value = json.loads(row["value"])
    if value.get("thumb") == "clear" or (row["flagged"] and value.get("thumb") == "up"):
        return None
    line = {"type": row["kind"], "id": row["id"], **_whose(row), **_prompt(row)}
    if row["kind"] == "edit":
        return line | {"type": "demonstration", "text": value["text"]}
    line["reply"] = _reply(row)
    return line | ({"up": value["thumb"] == "up"} if row["kind"] == "thumb" else {"text": value["text"]})


def _reply(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": row["reply_id"],
        "text": row["text"],
        "prompt_ids": json.loads(row["prompt_ids"]),
        "response_ids": json.loads(row["response_ids"]),
        "finish_reason": row["finish_reason"],
        "policy_version": row["policy_version"],
        "sampling": json.loads(row["sampling"]),
    }

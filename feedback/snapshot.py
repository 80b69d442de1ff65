"""An immutable export of everything consented: the training job's only view of the feedback.

One JSON object a line, sorted, so that the same feedback always gives the same bytes; the SHA-256 of those
bytes is the snapshot's id and file name. Replies that failed, were stopped, or are still streaming never
leave here. A corrected reply is a demonstration. All turns of a conversation are one group, which no split divides:
the later ones contain the earlier ones. Left out: likert ratings, until a trainer reads them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from thumbwise.errors import NotFound
from thumbwise.feedback.records import TELLING, canonical, prompt_sha256, sha256, tier_of
from thumbwise.feedback.store import Store
from thumbwise.home import write_durably

_TOLD = """
    SELECT * FROM replies WHERE state = 'done' AND id IN (
        SELECT message_id FROM feedback WHERE message_id IS NOT NULL
        UNION SELECT r.id FROM replies r JOIN feedback f ON f.comparison_id = r.comparison_id)
"""
_ON_COMPARISONS = f"""
    SELECT f.id, f.user_id, f.person, f.kind, c.prompt_sha256, p.messages, c.shown, f.value
    FROM current_feedback f JOIN comparisons c ON c.id = f.comparison_id
    JOIN prompts p ON p.sha256 = c.prompt_sha256 WHERE {TELLING} ORDER BY f.seq
"""
_ON_REPLIES = """
    SELECT f.id, f.user_id, f.person, f.kind, f.value, r.prompt_sha256, p.messages, r.id AS reply_id
    FROM current_feedback f JOIN replies r ON r.id = f.message_id JOIN prompts p ON p.sha256 = r.prompt_sha256
    WHERE f.kind IN ('thumb', 'comment', 'edit') AND r.state = 'done' ORDER BY f.seq
"""
_PROMPTS = """
    SELECT r.user_id, r.person, r.prompt_sha256, p.messages, min(r.created_at) AS first
    FROM replies r JOIN prompts p ON p.sha256 = r.prompt_sha256
    WHERE r.state = 'done' GROUP BY r.user_id, r.person, r.prompt_sha256 ORDER BY first
"""


def take_snapshot(store: Store, folder: Path) -> str:
    """Write a snapshot of `store` into `folder` as `<sha256>.jsonl`; returns the id (the SHA-256)."""
    with store.lock:  # one consistent view: nothing is written between these reads; no longer, for votes wait for it
        told, on_comparisons = store.rows(_TOLD), store.rows(_ON_COMPARISONS)
        on_replies, prompts = store.rows(_ON_REPLIES), store.rows(_PROMPTS)
    replies = {row["id"]: row for row in told}
    lines = [_on_comparison(row, replies) for row in on_comparisons]
    lines += [_on_reply(row, replies) for row in on_replies]
    lines += [{"type": "prompt", **_whose(row), **_prompt(row)} for row in prompts]
    data = "".join(canonical(line) + "\n" for line in lines if line is not None).encode()
    snapshot_id = sha256(data)
    path = folder / f"{snapshot_id}.jsonl"
    if not path.exists():
        write_durably(path, data)
    return snapshot_id


def read_snapshot(folder: Path, snapshot_id: str) -> bytes:
    """Return a snapshot's bytes; raises NotFound for an id that is not one."""
    path = folder / f"{snapshot_id}.jsonl"
    if not (len(snapshot_id) == 64 and snapshot_id.isalnum() and path.is_file()):
        raise NotFound(f"There is no snapshot {snapshot_id[:64]!r}.")
    return path.read_bytes()


def _whose(row: dict[str, Any]) -> dict[str, Any]:
    """Whose row it is, and the person that it counts for."""
    return {"user": row["user_id"], "person": row["person"]}


def _prompt(row: dict[str, Any]) -> dict[str, Any]:
    messages = json.loads(row["messages"])
    begins = next((n for n, message in enumerate(messages, 1) if message["role"] == "user"), len(messages))
    return {"group": prompt_sha256(messages[:begins]), "prompt": messages}


def _on_comparison(row: dict[str, Any], replies: dict[str, dict[str, Any]]) -> dict[str, Any] | None:
    shown = json.loads(row["shown"])
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


def _on_reply(row: dict[str, Any], replies: dict[str, dict[str, Any]]) -> dict[str, Any] | None:
    value = json.loads(row["value"])
    if value.get("thumb") == "clear":
        return None
    line = {"type": row["kind"], "id": row["id"], **_whose(row), **_prompt(row)}
    if row["kind"] == "edit":
        return line | {"type": "demonstration", "text": value["text"]}
    line["reply"] = _reply(replies[row["reply_id"]])
    return line | ({"up": value["thumb"] == "up"} if row["kind"] == "thumb" else {"text": value["text"]})


def _reply(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": row["id"],
        "text": row["text"],
        "prompt_ids": json.loads(row["prompt_ids"]),
        "response_ids": json.loads(row["response_ids"]),
        "finish_reason": row["finish_reason"],
        "policy_version": row["policy_version"],
        "sampling": json.loads(row["sampling"]),
    }

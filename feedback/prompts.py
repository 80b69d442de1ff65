"""Prompts, content-addressed: each stored once, and shortened if no reply came."""

from __future__ import annotations

import json
from collections.abc import Sequence

from sqlite_utils import Database

from thumbwise.contracts import Message
from thumbwise.feedback.records import canonical, prompt_sha256

_PROMPT_OF = """
    SELECT r.prompt_sha256, r.comparison_id, p.messages, r.conversation_id IS NOT NULL OR c.source = 'page' AS on_a_page
    FROM replies r JOIN prompts p ON p.sha256 = r.prompt_sha256 LEFT JOIN comparisons c ON c.id = r.comparison_id
    WHERE r.id = ?
"""
_SHORTEN_COMPARISON = """
    UPDATE comparisons SET prompt_sha256 = :new WHERE id = :comparison AND NOT EXISTS (
        SELECT 1 FROM replies WHERE comparison_id = :comparison AND (text <> '' OR state IN ('done', 'streaming')))
"""
_FORGET_PROMPT = """
    DELETE FROM prompts WHERE sha256 = :old AND NOT EXISTS (SELECT 1 FROM replies WHERE prompt_sha256 = :old)
    AND NOT EXISTS (SELECT 1 FROM comparisons WHERE prompt_sha256 = :old)
"""
KEPT_OF_A_QUESTION, KEPT_OF_A_REQUEST = 20_000, 1_000
"""Characters of the question that are kept: from a page, where people may want it back, and from elsewhere."""


def add_prompt(db: Database, messages: Sequence[Message]) -> str:
    """Store a prompt inside a transaction and return its address."""
    address = prompt_sha256(messages)
    db.execute(
        "INSERT INTO prompts (sha256, messages) VALUES (?, ?) ON CONFLICT DO NOTHING",
        [address, canonical(list(messages))],
    )
    return address


def shorten(db: Database, message_id: str) -> None:
    """Keep only the question of a reply's prompt, and only its beginning if it is long.

    This is for a reply that ended without a word, because vLLM refused it or its reader left at once. Otherwise
    requests that cost nothing would fill the disk. A prompt that other rows refer to stays.
    """
    (row,) = db.query(_PROMPT_OF, [message_id])
    question = json.loads(row["messages"])[-1:]
    kept = KEPT_OF_A_QUESTION if row["on_a_page"] else KEPT_OF_A_REQUEST
    for message in question:
        if len(message["content"]) > kept:
            message["content"] = message["content"][:kept] + " […]"
    new = {"new": add_prompt(db, question), "id": message_id, "comparison": row["comparison_id"]}
    db.execute("UPDATE replies SET prompt_sha256 = :new WHERE id = :id", new)
    if row["comparison_id"]:
        db.execute(_SHORTEN_COMPARISON, new)
    db.execute(_FORGET_PROMPT, {"old": row["prompt_sha256"]})

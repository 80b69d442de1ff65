"""What chaos.py finds at the end: the database, the policies and the snapshot against what clients were told."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from typing import Any

from chaos_parts.clients import Clients

from thumbwise.errors import ThumbwiseError
from thumbwise.home import Home
from thumbwise.names import BASE, MANIFEST
from thumbwise.training.run.client import OpsClient
from thumbwise.versions.artifacts import verify


def snapshot(home: Home, url: str) -> list[dict[str, Any]]:
    """A fresh snapshot, as the training job would read it."""
    with OpsClient(url, home.job_token()) as ops:
        data = ops.snapshot(ops.take_snapshot())
    return [json.loads(line) for line in data.split(b"\n") if line]


def audit(home: Home, clients: Clients, exported: list[dict[str, Any]]) -> dict[str, Any]:
    """Hold everything against the ledgers; the assistant must have stopped."""
    with closing(sqlite3.connect(f"file:{home.database}?mode=ro", uri=True)) as db:
        sound = db.execute("PRAGMA integrity_check").fetchall()
        broken = db.execute("PRAGMA foreign_key_check").fetchall()
        states = dict(db.execute("SELECT id, state FROM replies"))
        return {
            **_votes(db, clients, exported),
            "not_as_read": _not_as_read(db, clients),
            "unsound": len([row for row in sound if row != ("ok",)]) + len(broken),
            "streaming": sum(state == "streaming" for state in states.values()),
            "unfinished_in_snapshot": sum(states.get(reply) != "done" for reply in _replies(exported)),
            "damaged_policies": _damaged(db, home),
            "promoted": db.execute("SELECT count(*) FROM pointer_log WHERE action = 'promote'").fetchone()[0],
            "stable": db.execute("SELECT stable FROM pointer").fetchone()[0],
        }


def _votes(db: sqlite3.Connection, clients: Clients, exported: list[dict[str, Any]]) -> dict[str, int]:
    """Votes that are not there as acknowledged, that are there twice, and that no run would learn from."""
    stored: dict[str, list[tuple[Any, ...]]] = {}
    query = "SELECT idempotency_key, user_id, comparison_id, json_extract(value, '$.choice'), id FROM feedback"
    for key, *row in db.execute(query):
        stored.setdefault(key, []).append(tuple(row))
    told = {key: (v.user, v.comparison, v.choice, v.feedback) for key, v in clients.votes.items()}
    many = db.execute("SELECT count(*) FROM (SELECT 1 FROM feedback GROUP BY comparison_id HAVING count(*) > 1)")
    names = {line.get("id") for line in exported}
    return {
        "lost": sum(row not in stored.get(key, ()) for key, row in told.items()),
        "duplicates": sum(len(rows) - 1 for rows in stored.values()) + many.fetchone()[0] + clients.faults["twice"],
        "missing_in_snapshot": sum(vote.feedback not in names for vote in clients.votes.values()),
    }


def _not_as_read(db: sqlite3.Connection, clients: Clients) -> int:
    """Replies that a reader saw to their end, and that are stored as something else."""
    stored = {row[0]: row[1:] for row in db.execute("SELECT id, state, text, policy_version FROM replies")}
    return sum(stored.get(read.message) != ("done", read.text, *read.versions) for read in clients.whole)


def _replies(exported: list[dict[str, Any]]) -> list[str]:
    """Ids of the replies in a snapshot."""
    replies = [line[side] for line in exported for side in ("left", "right", "reply") if side in line]
    return [reply["id"] for reply in replies + [draft for line in exported for draft in line.get("drafts", ())]]


def _damaged(db: sqlite3.Connection, home: Home) -> int:
    """Complete folders that do not verify, and recorded versions without a complete folder."""
    complete = {path.parent.name for path in home.policies.glob(f"*/{MANIFEST}")}
    damaged = 0
    for version in complete:
        try:
            verify(home.policies / version)
        except ThumbwiseError:
            damaged += 1
    recorded = {version for (version,) in db.execute("SELECT version FROM policies")} - {BASE}
    return damaged + len(recorded - complete)

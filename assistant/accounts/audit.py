"""The audit log: who did what, when and from where. Append-only; no secret and no text of a chat is in it.

An entry is written in the transaction of the change that it tells of, so there is never one without the other.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from thumbwise.accounts.migrations import migrations
from thumbwise.feedback.records import canonical, now_ns

if TYPE_CHECKING:
    from sqlite_utils import Database

    from thumbwise.accounts.principal import Actor
    from thumbwise.feedback.store import Store


def record(db: Database, actor: Actor, action: str, target: str = "", **detail: Any) -> None:
    """Add an entry inside a transaction. `action` is `thing.verb`; `target` an id; `detail` plain JSON values."""
    row = {"at": now_ns(), "actor": actor.name, "via": actor.via, "address": actor.address, "action": action}
    db.table("audit").insert(row | {"target": target[:200], "detail": canonical(detail)})


class Audit:
    """Reads the log, and adds entries for what changes no other row."""

    def __init__(self, store: Store) -> None:
        self.store = store
        store.migrate(migrations)

    def add(self, actor: Actor, action: str, target: str = "", **detail: Any) -> None:
        """Add an entry in a transaction of its own. Blocks until it is durable."""
        self.store.share(lambda db: record(db, actor, action, target, **detail))

    def entries(self, limit: int = 100, *, actor: str = "", action: str = "", before: int = 0) -> list[dict[str, Any]]:
        """The newest entries first: at most `limit`, before the number `before`, of one actor, of actions so begun."""
        with self.store.reading() as db:
            found = list(
                db.query(
                    "SELECT * FROM audit WHERE (:before = 0 OR seq < :before) AND (:actor = '' OR actor = :actor)"
                    " AND substr(action, 1, length(:action)) = :action ORDER BY seq DESC LIMIT :limit",
                    {"limit": limit, "actor": actor, "action": action, "before": before},
                )
            )
        return [row | {"at": iso(row["at"]), "detail": json.loads(row["detail"])} for row in found]


def iso(ns: int) -> str:
    """Return a time in UTC nanoseconds as ISO 8601, to the second."""
    return datetime.fromtimestamp(ns / 1e9, UTC).isoformat(timespec="seconds")

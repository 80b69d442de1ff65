"""One-time links: to set the assistant up, to invite somebody, to reset a password.

A link is 256 random bits, of which only the hash is stored. It works once and until it expires. It is a page's address
with the text in its query, and is handed over by hand: Thumbwise sends no mail.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from thumbwise.accounts.audit import record
from thumbwise.accounts.migrations import migrations
from thumbwise.errors import ThumbwiseError
from thumbwise.feedback.records import now_ns, sha256

if TYPE_CHECKING:
    from sqlite_utils import Database

    from thumbwise.accounts.principal import Actor, Role
    from thumbwise.feedback.store import Store

Kind = Literal["setup", "invite", "reset"]
HOUR = 3600 * 10**9
LASTS: dict[Kind, int] = {"setup": HOUR, "invite": 7 * 24 * HOUR, "reset": 24 * HOUR}
"""Nanoseconds until a link expires."""
PAGES: dict[Kind, str] = {"setup": "/setup", "invite": "/join", "reset": "/reset"}


@dataclass(frozen=True)
class Link:
    """One link as it is stored; its text is not."""

    kind: Kind
    role: Role
    """Role of the account that it makes."""
    user_id: str | None
    """The account whose password it resets."""
    expires_at: int
    """UTC nanoseconds."""


class Links:
    """The record of links, in the feedback database. All methods block."""

    def __init__(self, store: Store) -> None:
        self.store = store
        store.migrate(migrations)

    def make(self, kind: Kind, role: Role, actor: Actor, user_id: str | None = None) -> str:
        """Make a link and return its text. A new setup link, or a new one of an account, ends the older ones."""
        text = secrets.token_urlsafe(32)

        def work(db: Database) -> None:
            if kind != "invite":
                db.execute("DELETE FROM links WHERE kind = ? AND user_id IS ? AND used_at IS NULL", [kind, user_id])
            row = {"sha256": sha256(text), "kind": kind, "role": role, "user_id": user_id, "made_by": actor.name}
            db.table("links").insert(row | {"expires_at": now_ns() + LASTS[kind]})
            record(db, actor, f"link.{kind}", user_id or "", role=role)

        self.store.share(work)
        return text

    def find(self, text: str, kind: Kind) -> Link:
        """Return a link that still works; raises ThumbwiseError (403). It is not used by this."""
        return _link(self.store.rows("SELECT * FROM links WHERE sha256 = ? AND kind = ?", [sha256(text), kind]))

    def use(self, db: Database, text: str, kind: Kind) -> Link:
        """Use a link up, in the transaction of what it is used for. Raises ThumbwiseError (403)."""
        found = _link(list(db.query("SELECT * FROM links WHERE sha256 = ? AND kind = ?", [sha256(text), kind])))
        db.execute("UPDATE links SET used_at = ? WHERE sha256 = ?", [now_ns(), sha256(text)])
        return found

    def purge(self) -> None:
        """Remove what no longer works. The audit log keeps that it was there."""
        with self.store.write() as db:
            db.execute("DELETE FROM links WHERE used_at IS NOT NULL OR expires_at <= ?", [now_ns()])


def address(base: str, kind: Kind, text: str) -> str:
    """Return the address of a link below the assistant's own address `base`."""
    return f"{base.rstrip('/')}{PAGES[kind]}?link={text}"


def _link(rows: list[dict[str, Any]]) -> Link:
    if not rows or rows[0]["used_at"] is not None or rows[0]["expires_at"] <= now_ns():
        raise ThumbwiseError("This link is wrong, used or expired: ask an operator for a new one.", status=403)
    (row,) = rows
    return Link(row["kind"], row["role"], row["user_id"], row["expires_at"])

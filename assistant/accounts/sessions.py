"""Logins: a random id in a cookie, of which only the hash is stored. They survive a restart and can be ended at once.

All sessions are in memory too, as accounts are, so a request does not wait for the database. The time of the last use
is written at most once an hour.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from thumbwise.accounts.audit import record
from thumbwise.accounts.migrations import migrations
from thumbwise.accounts.users import Account, Users
from thumbwise.errors import ThumbwiseError
from thumbwise.feedback.records import now_ns, sha256

if TYPE_CHECKING:
    from sqlite_utils import Database

    from thumbwise.accounts.principal import Actor
    from thumbwise.feedback.store import Store

DAY = 24 * 3600 * 10**9
USED_EVERY = DAY // 24
"""Nanoseconds between two writes of a session's last use."""
MOST = 100
"""Sessions of one account. A login beyond them ends those not used for longest: some scripts never log out."""

_MAY_LOG_IN = "SELECT 1 FROM users WHERE id = ? AND state IN ('pending', 'active')"
_SURPLUS = "SELECT sha256 FROM sessions WHERE user_id = :user ORDER BY used_at DESC LIMIT -1 OFFSET :most"


@dataclass(frozen=True)
class Session:
    """One login. `id` is the SHA-256 of the cookie's text."""

    id: str
    user_id: str
    created_at: int
    used_at: int


class Sessions:
    """All logins, in the feedback database."""

    def __init__(self, store: Store, users: Users, days: float) -> None:
        self.store, self.users, self.days = store, users, days
        store.migrate(migrations)
        self._read()
        users.after_change.append(self._read)

    def _read(self) -> None:
        with self.store.lock:
            rows = self.store.rows("SELECT * FROM sessions")
            self._by_id = {str(row["sha256"]): _session(row) for row in rows}

    def start(self, user_id: str, actor: Actor, also: Callable[[Database], object] = lambda db: None) -> str:
        """Log in: make a session and return the cookie's text. Blocks until it is durable.

        Raises ThumbwiseError (403) if the account may not log in. `also` works in the same transaction.
        """
        text, now = secrets.token_urlsafe(32), now_ns()
        session = Session(sha256(text), user_id, now, now)

        def work(db: Database) -> list[str]:
            if not list(db.query(_MAY_LOG_IN, [user_id])):
                raise ThumbwiseError("This account is disabled: ask an operator.", status=403)
            ended = [row["sha256"] for row in db.query(_SURPLUS, {"user": user_id, "most": MOST - 1})]
            db.table("sessions").delete_where(f"sha256 IN ({', '.join('?' * len(ended))})", ended)
            db.table("sessions").insert({"sha256": session.id, "user_id": user_id, "created_at": now, "used_at": now})
            self.users.saw(user_id, now)(db)
            record(db, actor, "login", user_id)
            also(db)
            return ended

        ended = self.store.share(work)
        if ended:
            self._read()
        with self.store.lock:
            self._keep(session)
        return text

    def _keep(self, session: Session) -> None:
        """Put a session into memory, unless it was ended since. To be called with the store's lock."""
        if self.store.rows("SELECT 1 FROM sessions WHERE sha256 = ?", [session.id]):
            self._by_id[session.id] = session

    def find(self, text: str) -> tuple[Session, Account] | None:
        """The session and account of a cookie's text; None if it is unknown or too old, or the account may not log in.

        A pending account is found: it may see that it waits. Safe on an event loop.
        """
        session = self._by_id.get(sha256(text)) if text else None
        if session is None or now_ns() - session.used_at > self.days * DAY:
            return None
        account = self.users.find(session.user_id)
        if account is None or account.state == "disabled":
            return None
        return session, account

    def of(self, user_id: str) -> list[Session]:
        """The logins of an account that still hold. Safe on an event loop."""
        oldest = now_ns() - self.days * DAY
        return [each for each in list(self._by_id.values()) if each.user_id == user_id and each.used_at >= oldest]

    def used(self, session: Session) -> None:
        """Note that a session was used now, if that was not noted in the last hour. Safe on an event loop."""
        now = now_ns()
        by_id = self._by_id  # if another thread puts a new one in its place now, an ended session must not get into it
        if now - session.used_at <= USED_EVERY or session.id not in by_id:
            return
        by_id[session.id] = replace(session, used_at=now)
        saw = self.users.saw(session.user_id, now)

        def work(db: Database) -> None:
            db.execute("UPDATE sessions SET used_at = ? WHERE sha256 = ?", [now, session.id])
            saw(db)

        self.store.later(f"session {session.id}", work)

    def end(self, session_id: str, actor: Actor) -> None:
        """Log out. Ending it again changes nothing."""

        def work(db: Database) -> None:
            db.execute("DELETE FROM sessions WHERE sha256 = ?", [session_id])
            record(db, actor, "logout", actor.name)

        self.store.share(work)
        self._read()

    def end_all(self, user_id: str, actor: Actor, but: str = "") -> None:
        """Log an account out everywhere, except in the session `but`."""

        def work(db: Database) -> None:
            db.execute("DELETE FROM sessions WHERE user_id = ? AND sha256 <> ?", [user_id, but])
            record(db, actor, "logout.everywhere", user_id)

        self.store.share(work)
        self._read()

    def purge(self) -> None:
        """Remove the sessions that are too old."""
        with self.store.write() as db:
            db.execute("DELETE FROM sessions WHERE used_at < ?", [now_ns() - round(self.days * DAY)])
        self._read()


def _session(row: dict[str, Any]) -> Session:
    return Session(row["sha256"], row["user_id"], row["created_at"], row["used_at"])

"""The record of accounts: who they are, their role, and whether they may log in.

All accounts are in memory too, and are read again after every change. So reading waits for nothing, and an event loop
can do it. A deleted account stays as a tombstone without its name, so that its id never means anybody else.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from thumbwise.accounts.audit import record
from thumbwise.accounts.migrations import migrations
from thumbwise.accounts.principal import ROLES, Actor, Role
from thumbwise.errors import Conflict, NotFound, ThumbwiseError
from thumbwise.feedback.records import ACCOUNT, LOCAL_USER, new_id, now_ns

if TYPE_CHECKING:
    from sqlite_utils import Database

    from thumbwise.feedback.store import Store

State = Literal["pending", "active", "disabled", "deleted"]
MAX_NAME = 128
_NO_OPERATOR = "{} is the last operator: make another one first."


@dataclass(frozen=True)
class Account:
    """One person's account. `has_password` is False for those who log in by a provider or a proxy only."""

    id: str
    name: str
    role: Role
    state: State
    has_password: bool
    created_at: int
    """UTC nanoseconds."""
    seen_at: int | None

    def as_json(self) -> dict[str, Any]:
        """The account as plain JSON."""
        return asdict(self)


def normalized(name: str) -> str:
    """A name as it is stored and compared; raises ThumbwiseError for one that cannot be a name.

    Not `casefold`: it makes strasse of straße, and a proxy may know two people by these names.
    """
    name = unicodedata.normalize("NFKC", name).strip().lower()
    if (
        not 1 <= len(name) <= MAX_NAME
        or not name.isprintable()
        or "/" in name
        or name.startswith(ACCOUNT)
        or not name.strip(".")
    ):
        raise ThumbwiseError(
            f"A name has 1 to {MAX_NAME} printable characters, no slash, and does not begin with {ACCOUNT}: "
            "choose another."
        )
    if name == LOCAL_USER:
        raise ThumbwiseError(f"{LOCAL_USER} is the user of this machine: choose another name.")
    return name


class Users:
    """All accounts, in the feedback database."""

    def __init__(self, store: Store) -> None:
        self.store = store
        store.migrate(migrations)
        self.after_change: list[Callable[[], None]] = []
        """What others do after each change, such as reading their own rows again."""
        self._read()

    def _read(self) -> None:
        with self.store.lock:
            rows = self.store.rows("SELECT * FROM users ORDER BY created_at, id")
            self._passwords = {str(row["id"]): row["password"] for row in rows}
            self._by_id = {str(row["id"]): _account(row) for row in rows}
            self._ids = {account.name: account.id for account in self._by_id.values()}

    # -- reading: no database, safe on an event loop -------------------------------------------------

    def find(self, user_id: str) -> Account | None:
        """The account with this id, or None; also a disabled one, never a deleted one."""
        account = self._by_id.get(user_id)
        return account if account is not None and account.state != "deleted" else None

    def named(self, name: str) -> Account | None:
        """The account with this name, or None."""
        try:
            return self.find(self._ids.get(normalized(name), ""))
        except ThumbwiseError:
            return None

    def get(self, name_or_id: str) -> Account:
        """The account with this name or id; raises NotFound."""
        if account := self.find(name_or_id) or self.named(name_or_id):
            return account
        raise NotFound(f"There is no account {name_or_id[:64]!r}. `thumbwise users list` names them all.")

    def all(self) -> list[Account]:
        """Every account that is not deleted, oldest first."""
        return [account for account in self._by_id.values() if account.state != "deleted"]

    def password_of(self, user_id: str) -> str | None:
        """The hash of an account's password; None if it has none."""
        return self._passwords.get(user_id) if self.find(user_id) else None

    def young(self, days: float) -> frozenset[str]:
        """The ids of all accounts that were made less than `days` ago."""
        since = now_ns() - int(days * 86400e9)
        return frozenset(account.id for account in self.all() if account.created_at > since)

    def has_operator(self) -> bool:
        """Whether somebody can operate the assistant: an active account with that role."""
        return any(account.role == "operator" and account.state == "active" for account in self._by_id.values())

    # -- changing: blocks until it is durable --------------------------------------------------------

    def change(self, work: Callable[[Database], object]) -> None:
        """Do `work` in one transaction, then read all accounts again. Raises Conflict if it takes the last operator."""
        with self.store.write() as db:
            before = _operators(db)
            work(db)
            if before and not _operators(db):
                name = next(iter(before.values()))
                raise Conflict(_NO_OPERATOR.format(name))
        self._read()
        for each in self.after_change:
            each()

    def create(
        self,
        name: str,
        role: Role,
        actor: Actor,
        *,
        state: State = "active",
        password: str | None = None,
        also: Callable[[Database, str], object] = lambda db, user_id: None,
    ) -> Account:
        """Make an account; `password` is its argon2 hash. Raises ThumbwiseError (name) or Conflict (taken).

        `also` gets the database and the new id, in the same transaction.
        """
        name, user_id = normalized(name), new_id("usr")

        def work(db: Database) -> None:
            if list(db.query("SELECT 1 FROM users WHERE name = ?", [name])):
                raise Conflict(f"There is an account {name} already: choose another name.")
            row = {"id": user_id, "name": name, "role": role, "state": state, "password": password}
            db.table("users").insert(row | {"created_at": now_ns()})
            record(db, actor, "user.create", user_id, role=role, state=state)
            also(db, user_id)

        self.change(work)
        return self._by_id[user_id]

    def create_operator(self, name: str, actor: Actor, *, password: str | None = None, also: Any = None) -> Account:
        """Make the first operator. Raises Conflict if there is one: of two at the same instant, one succeeds."""

        def first(db: Database, user_id: str) -> None:
            if any(id_ != user_id for id_ in _operators(db)):
                raise Conflict("There is an operator already: ask for an invitation.")
            if also is not None:
                also(db, user_id)

        return self.create(name, "operator", actor, password=password, also=first)

    def set_role(self, user_id: str, role: Role, actor: Actor) -> None:
        """Change a role; raises NotFound, or Conflict for the last operator."""
        self._set(user_id, actor, "user.role", role=role)

    def set_state(self, user_id: str, state: Literal["active", "disabled"], actor: Actor) -> None:
        """Approve or enable (`active`) or disable an account; raises NotFound, or Conflict for the last operator.

        Disabling ends the account's sessions and links for good. Its keys are refused while it is disabled.
        """
        self._set(user_id, actor, f"user.{state}", state=state)

    def _set(self, user_id: str, actor: Actor, action: str, **values: str) -> None:
        account = self.get(user_id)
        (column,) = values
        if column == "role" and values["role"] not in ROLES:
            raise ThumbwiseError(f"{values['role']} is not a role: use {', '.join(ROLES)}.")

        def work(db: Database) -> None:
            db.table("users").update(_present(db, account.id), values)
            if values not in (
                {"state": "active"},
                {"role": "operator"},
            ):  # invitations end with the role
                db.execute("DELETE FROM links WHERE made_by = ? AND used_at IS NULL", [account.id])
            if values == {"state": "disabled"}:
                _end_ways_in(db, account.id)
            record(db, actor, action, account.id, **values)

        self.change(work)

    def set_password(
        self,
        user_id: str,
        password: str,
        actor: Actor,
        *,
        action: str,
        but: str = "",
        also: Callable[[Database], object] = lambda db: None,
    ) -> None:
        """Set the hash of a new password. All sessions end except `but`, and links that reset the old password."""

        def work(db: Database) -> None:
            also(db)
            db.table("users").update(_present(db, user_id), {"password": password})
            _end_ways_in(db, user_id, but)
            record(db, actor, action, user_id)

        self.change(work)

    def renew_password(self, user_id: str, old: str, new: str) -> None:
        """Put a hash in place of another one of the same password, unless the password was changed meanwhile."""
        self.change(
            lambda db: db.execute("UPDATE users SET password = ? WHERE id = ? AND password = ?", [new, user_id, old])
        )

    def delete(self, user_id: str, actor: Actor, also: Callable[[Database], object] = lambda db: None) -> None:
        """Delete an account. A tombstone without name, password or identity stays, and the name is free again."""

        def work(db: Database) -> None:
            # A tombstone's name is its id, which nobody can take as a name.
            gone = {"name": user_id, "state": "deleted", "role": "user", "password": None}
            db.table("users").update(_present(db, user_id), gone)
            _end_ways_in(db, user_id)
            db.execute("DELETE FROM links WHERE made_by = ? AND used_at IS NULL", [user_id])
            db.execute("DELETE FROM identities WHERE user_id = ?", [user_id])
            also(db)
            record(db, actor, "user.delete", user_id)

        self.change(work)

    def saw(self, user_id: str, at: int) -> Callable[[Database], object]:
        """Note when an account was last used; returns the work that writes it. Safe on an event loop."""
        by_id = self._by_id  # if another thread puts a new one in its place now, an old state must not get into it
        if account := by_id.get(user_id):
            by_id[user_id] = replace(account, seen_at=at)
        return lambda db: db.execute("UPDATE users SET seen_at = ? WHERE id = ?", [at, user_id])


def _present(db: Database, user_id: str) -> str:
    """Return the id of an account that is not deleted; raises NotFound."""
    if not list(db.query("SELECT 1 FROM users WHERE id = ? AND state <> 'deleted'", [user_id])):
        raise NotFound("This account does not exist any more.")
    return user_id


def _end_ways_in(db: Database, user_id: str, but: str = "") -> None:
    """End an account's sessions except `but`, and the links that would reset its password."""
    db.execute("DELETE FROM sessions WHERE user_id = ? AND sha256 <> ?", [user_id, but])
    db.execute("DELETE FROM links WHERE user_id = ? AND used_at IS NULL", [user_id])


def _operators(db: Database) -> dict[str, str]:
    found = db.query("SELECT id, name FROM users WHERE role = 'operator' AND state = 'active'")
    return {row["id"]: row["name"] for row in found}


def _account(row: dict[str, Any]) -> Account:
    return Account(
        row["id"], row["name"], row["role"], row["state"], row["password"] is not None, row["created_at"],
        row["seen_at"],
    )  # fmt: skip

"""API keys: who an API client is, and what it may do.

A key is 256 random bits, so its plain SHA-256 is stored. (A slow hash protects passwords that people choose; a key is
not one.) It may do what its scopes allow. It can be revoked, which takes effect with the next request.

A key belongs to an account. What it says and votes counts for the account. `operate` opens /ops/api and /metrics while
the account is an operator. A disabled account's keys are refused, and a deleted account's keys are deleted with it.

In `local` a key has no owner. It names the client in every row that it causes: `name`, or `name/user` with the
request's `user` field. From the first key on, no request to the API is answered without one, even when all keys are
revoked. A revoked name is never used again. Neither is a name that has rows from before there were keys, because these
rows belong to somebody else.

The time of the last use is written at most once an hour, with other rows: a commit for every request costs too much.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from thumbwise.accounts.audit import record
from thumbwise.accounts.migrations import migrations
from thumbwise.accounts.principal import COMMAND_LINE
from thumbwise.errors import Conflict, NotFound, ThumbwiseError
from thumbwise.feedback.records import ACCOUNT, LOCAL_USER, new_id

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlite_utils import Database

    from thumbwise.accounts.principal import Actor
    from thumbwise.accounts.users import Users
    from thumbwise.feedback.store import Store

PREFIX = "tw-"
SHOWN = len(PREFIX) + 4
"""Characters of a key that lists show, so that people know which one it is."""
USUAL = ("chat", "feedback")
"""The scopes of a key for which nobody names any."""
SCOPES = (*USUAL, "operate")
MOST = 50
"""Keys that an account may have at a time."""
USED_EVERY = timedelta(hours=1)
NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,31}")


@dataclass(frozen=True)
class Key:
    """One key as it is stored; its text is not. Times are ISO 8601, UTC."""

    id: str
    name: str
    prefix: str
    """How its text begins; empty for a key from before this was stored."""
    scopes: tuple[str, ...]
    created_at: str
    expires_at: str | None
    used_at: str | None
    """Its last use, at most an hour late."""
    revoked_at: str | None
    user_id: str | None = None
    """The account that it belongs to; None for a key that was made in `local`."""

    def as_json(self) -> dict[str, Any]:
        """The key as plain JSON."""
        return asdict(self)

    @property
    def expired(self) -> bool:
        """Whether its time is over."""
        return self.expires_at is not None and self.expires_at <= _at()


class Keys:
    """The record of API keys, in the feedback database."""

    def __init__(self, store: Store) -> None:
        self.store = store
        store.migrate(migrations)
        self.read()

    def read(self) -> None:
        """Read all keys into memory, so that a request does not wait for the commit of a vote. Blocks."""
        with self.store.lock:
            rows = self.store.rows("SELECT * FROM api_keys ORDER BY created_at, id")
            self._by_hash = {str(row["sha256"]): _key(row) for row in rows}

    # -- changing: blocks until it is durable --------------------------------------------------------

    def create(
        self,
        name: str,
        scopes: Sequence[str] = USUAL,
        *,
        owner: str | None = None,
        expires: float | None = None,
        actor: Actor = COMMAND_LINE,
    ) -> str:
        """Make a key and return its text, which is not stored. Raises ThumbwiseError (name, scope) or Conflict.

        `owner` is an account's id, None in `local`; `expires` is in seconds from now, None for never.
        """
        self._check(name, scopes)
        text, key_id = PREFIX + secrets.token_urlsafe(32), new_id("key")
        row = {
            "id": key_id, "name": name, "user_id": owner, "prefix": text[:SHOWN], "sha256": _hash(text),
            "scopes": json.dumps(sorted(set(scopes))), "created_at": _at(), "expires_at": _later(expires),
        }  # fmt: skip
        with self.store.write() as db:
            if owner is None:
                _refuse_ownerless(db, name, scopes)
            else:
                _refuse_owned(db, name, scopes, owner)
            db.table("api_keys").insert(row)
            more = {"name": name, "scopes": sorted(set(scopes)), "expires_at": row["expires_at"]}
            record(db, actor, "key.create", key_id, owner=owner or "", **more)
        self.read()
        return text

    @staticmethod
    def _check(name: str, scopes: Sequence[str]) -> None:
        if not NAME.fullmatch(name) or name.startswith(ACCOUNT):
            raise ThumbwiseError(
                "A key's name has 1 to 32 lower-case letters, digits, dots, dashes and underscores, and does not begin "
                f"with {ACCOUNT}: choose another."
            )
        if not scopes or (wrong := sorted(set(scopes) - set(SCOPES))):
            named = ", ".join(wrong)[:80] if scopes else "Nothing"
            raise ThumbwiseError(f"{named} is not a scope: use {', '.join(USUAL)} or {SCOPES[-1]}.")

    def revoke(self, key: str, owner: str | None = None, actor: Actor = COMMAND_LINE) -> None:
        """Refuse a key of `owner`, by its id or name, from now on. Raises NotFound, also for another owner's key.

        Revoking it again changes nothing.
        """
        with self.store.write() as db:
            found = list(
                db.query(
                    "SELECT id, revoked_at FROM api_keys WHERE user_id IS :owner AND (id = :key OR name = :key)"
                    " ORDER BY revoked_at IS NOT NULL LIMIT 1",
                    {"owner": owner, "key": key},
                )
            )
            if not found:
                raise NotFound(f"There is no key {key[:64]!r}{_of(owner)}. `thumbwise keys list` names them all.")
            if found[0]["revoked_at"] is None:
                db.execute("UPDATE api_keys SET revoked_at = ? WHERE id = ?", [_at(), found[0]["id"]])
                record(db, actor, "key.revoke", found[0]["id"], owner=owner or "")
        self.read()

    def adopt(self, db: Database, user_id: str, actor: Actor) -> list[str]:
        """Give an account all keys without an owner, inside a transaction; returns their names. Call `read` after it.

        A key whose name the account has already gets a number behind its name.
        """
        names = {row["name"] for row in db.query("SELECT name FROM api_keys WHERE user_id = ?", [user_id])}
        taken = []
        for row in list(db.query("SELECT id, name FROM api_keys WHERE user_id IS NULL ORDER BY created_at, id")):
            numbered = (f"{row['name'][:28]}-{number}" for number in range(2, 1000))
            name = row["name"] if row["name"] not in names else next(each for each in numbered if each not in names)
            db.execute("UPDATE api_keys SET user_id = ?, name = ? WHERE id = ?", [user_id, name, row["id"]])
            record(db, actor, "key.adopt", row["id"], owner=user_id, name=name)
            names.add(name)
            taken.append(row["name"])
        return taken

    # -- reading: no database, safe on an event loop -------------------------------------------------

    def all(self) -> list[Key]:
        """Every key, oldest first."""
        return list(self._by_hash.values())

    def as_json(self, users: Users) -> list[dict[str, Any]]:
        """Every key as plain JSON, with the name of its owner; none of an account that is gone."""
        found = []
        for key in self._by_hash.values():
            account = users.find(key.user_id) if key.user_id else None
            if account is not None or key.user_id is None:
                found.append(key.as_json() | {"user": account.name if account else None})
        return found

    def of(self, user_id: str) -> list[Key]:
        """The keys of an account, oldest first."""
        return [key for key in self._by_hash.values() if key.user_id == user_id]

    def needed(self) -> bool:
        """Whether API clients need a key in `local`: there is one, or there was."""
        return bool(self._by_hash)

    def check(self, text: str, scope: str) -> Key:
        """The key with this text. Raises 401 if it is unknown, revoked or expired, 403 if it does not have `scope`."""
        key = self._by_hash.get(_hash(text))
        if key is None or key.revoked_at is not None:
            raise ThumbwiseError(
                "This API key is unknown or revoked: make one with `thumbwise keys create`.", status=401
            )
        if key.expired:
            raise ThumbwiseError(f"The key {key.name} expired at {key.expires_at}: make another one.", status=401)
        if scope not in key.scopes:
            raise ThumbwiseError(f"The key {key.name} has no scope `{scope}`: make one that has it.", status=403)
        return key

    def use(self, key: Key) -> None:
        """Note that it was used now; written soon, and at most once an hour. Safe on an event loop."""
        now = datetime.now(UTC)
        if key.used_at is not None and now - datetime.fromisoformat(key.used_at) < USED_EVERY:
            return
        at, key_id = now.isoformat(timespec="seconds"), key.id
        by_hash = self._by_hash  # if another thread reads the keys anew now, a revoked one must not get into that
        for sha256, each in list(by_hash.items()):
            if each.id == key_id:
                by_hash[sha256] = replace(each, used_at=at)
        self.store.later(
            f"The last use of {key_id}",
            lambda db: db.execute("UPDATE api_keys SET used_at = ? WHERE id = ?", [at, key_id]),
        )


def _refuse_ownerless(db: Database, name: str, scopes: Sequence[str]) -> None:
    """Raise if a key of nobody cannot have this name or these scopes."""
    if SCOPES[-1] in scopes:
        raise ThumbwiseError(f"Only an operator's key has the scope {SCOPES[-1]}: name its owner with `--user`.")
    if list(db.query("SELECT 1 FROM api_keys WHERE name = ? AND user_id IS NULL", [name])):
        raise Conflict(f"There is, or was, a key {name}: choose another name.")
    # Users of a key are named `key/user`; "0" comes right after "/".
    whose = "WHERE user_id = :name OR (user_id >= :name || '/' AND user_id < :name || '0')"
    taken = f"SELECT 1 FROM replies {whose} UNION ALL SELECT 1 FROM feedback {whose} LIMIT 1"
    if name == LOCAL_USER or list(db.query(taken, {"name": name})):
        raise Conflict(f"{name} has said something here already: choose another name.")


def _refuse_owned(db: Database, name: str, scopes: Sequence[str], owner: str) -> None:
    """Raise if an account cannot have a key with this name and these scopes."""
    account = next(db.query("SELECT role, state FROM users WHERE id = ?", [owner]), None)
    if account is None or account["state"] != "active":
        raise Conflict("Only an active account can have keys: ask an operator.")
    if SCOPES[-1] in scopes and account["role"] != "operator":
        raise ThumbwiseError(f"Only an operator's key can have the scope {SCOPES[-1]}: leave it out.", status=403)
    now = _at()
    live = "SELECT name FROM api_keys WHERE user_id = ? AND revoked_at IS NULL"
    names = [row["name"] for row in db.query(live, [owner])]
    if name in names:
        raise Conflict(f"You have a key {name} already: revoke it first, or choose another name.")
    usable = f"{live} AND (expires_at IS NULL OR expires_at > ?)"
    if len(list(db.query(usable, [owner, now]))) >= MOST:
        raise Conflict(f"An account may have {MOST} keys: revoke one first.")


def owner_needed() -> ThumbwiseError:
    """The refusal of a key that has no owner where there are accounts."""
    return ThumbwiseError("A key belongs to a person: name its owner with `--user`.", param="user")


def _of(owner: str | None) -> str:
    return " of this account" if owner else ""


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _at() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _later(seconds: float | None) -> str | None:
    if seconds is None:
        return None
    if not 60 <= seconds <= 10 * 366 * 86400:
        raise ThumbwiseError("A key expires after a minute at least and ten years at most: choose another time.")
    return (datetime.now(UTC) + timedelta(seconds=seconds)).isoformat(timespec="seconds")


def _key(row: dict[str, Any]) -> Key:
    values = {name: row[name] for name in Key.__dataclass_fields__}
    return Key(**values | {"scopes": tuple(json.loads(row["scopes"]))})

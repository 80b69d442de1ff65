"""API keys: who an API client is, and what it may do.

A key is 256 random bits, so its plain SHA-256 is stored. (A slow hash protects passwords that people choose; a key is
not one.) The key names the client in every row that it causes: `name`, or `name/user` with the request's `user` field.
It may do what its scopes allow. It can be revoked, which takes effect with the next request. From the first key on, no
request to the API is answered without one, even when all keys are revoked. A revoked name is never used again. Neither
is a name that has rows from before there were keys, because these rows belong to somebody else. Left out: when a key
was last used, which would cost a commit for every request.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from thumbwise.accounts.migrations import migrations
from thumbwise.errors import Conflict, NotFound, ThumbwiseError
from thumbwise.feedback.records import LOCAL_USER

if TYPE_CHECKING:
    from collections.abc import Sequence

    from thumbwise.feedback.store import Store

PREFIX = "tw-"
SCOPES = ("chat", "feedback")
NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,31}")


@dataclass(frozen=True)
class Key:
    """One key as it is stored; its text is not."""

    name: str
    scopes: tuple[str, ...]
    created_at: str
    revoked_at: str | None
    user_id: str | None = None
    """The account that it belongs to; None in `local`."""

    def as_json(self) -> dict[str, Any]:
        """The key as plain JSON."""
        return asdict(self)


class Keys:
    """The record of API keys, in the feedback database."""

    def __init__(self, store: Store) -> None:
        self.store = store
        store.migrate(migrations)
        self._read()

    def _read(self) -> None:
        """Read all keys into memory, so that a request does not wait for the commit of a vote."""
        with self.store.lock:
            rows = self.store.rows("SELECT * FROM api_keys ORDER BY created_at, name")
            self._by_hash = {str(row["sha256"]): _key(row) for row in rows}

    def create(self, name: str, scopes: Sequence[str] = SCOPES) -> str:
        """Make a key and return its text, which is not stored. Raises ThumbwiseError (name, scope) or Conflict."""
        if not NAME.fullmatch(name):
            raise ThumbwiseError(
                "A key's name has 1 to 32 lower-case letters, digits, dots, dashes and underscores: choose another."
            )
        if not scopes or (wrong := sorted(set(scopes) - set(SCOPES))):
            raise ThumbwiseError(
                f"{', '.join(wrong) if scopes else 'Nothing'} is not a scope: use {' and '.join(SCOPES)}."
            )
        text = PREFIX + secrets.token_urlsafe(32)
        with self.store.write() as db:
            if list(db.query("SELECT 1 FROM api_keys WHERE name = ?", [name])):
                raise Conflict(f"There is, or was, a key {name}: choose another name.")
            # Users of a key are named `key/user`; "0" comes right after "/".
            whose = "WHERE user_id = :name OR (user_id >= :name || '/' AND user_id < :name || '0')"
            taken = f"SELECT 1 FROM replies {whose} UNION ALL SELECT 1 FROM feedback {whose} LIMIT 1"
            if name == LOCAL_USER or list(db.query(taken, {"name": name})):
                raise Conflict(f"{name} has said something here already: choose another name.")
            db.table("api_keys").insert(
                {"name": name, "sha256": _hash(text), "scopes": json.dumps(sorted(set(scopes))), "created_at": _now()}
            )
        self._read()
        return text

    def revoke(self, name: str) -> None:
        """Refuse a key from now on; raises NotFound. Revoking it again changes nothing."""
        with self.store.write() as db:
            if not list(db.query("SELECT 1 FROM api_keys WHERE name = ?", [name])):
                raise NotFound(f"There is no key {name[:64]!r}. `thumbwise keys list` names them all.")
            db.execute("UPDATE api_keys SET revoked_at = ? WHERE name = ? AND revoked_at IS NULL", [_now(), name])
        self._read()

    def all(self) -> list[Key]:
        """Every key, oldest first."""
        return list(self._by_hash.values())

    def needed(self) -> bool:
        """Whether API clients need a key: there is one, or there was."""
        return bool(self._by_hash)

    def check(self, text: str, scope: str) -> Key:
        """The key with this text; raises 401 if there is none or it is revoked, 403 if it does not have `scope`."""
        key = self._by_hash.get(_hash(text))
        if key is None or key.revoked_at is not None:
            raise ThumbwiseError(
                "This API key is unknown or revoked: make one with `thumbwise keys create`.", status=401
            )
        if scope not in key.scopes:
            raise ThumbwiseError(f"The key {key.name} has no scope `{scope}`: make one that has it.", status=403)
        return key


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _key(row: dict[str, Any]) -> Key:
    return Key(row["name"], tuple(json.loads(row["scopes"])), row["created_at"], row["revoked_at"])

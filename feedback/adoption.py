"""Gives an account what was said before there were accounts: chats, replies, comparisons and votes of `local`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING

from thumbwise.feedback.records import LOCAL_USER

if TYPE_CHECKING:
    from sqlite_utils import Database

TABLES = ("conversations", "comparisons", "replies", "feedback")


def adopt(db: Database, account: str, keys: Iterable[str] = ()) -> dict[str, int]:
    """Move all rows of `local`, and of these API keys from before accounts, to an account, inside a transaction.

    Users below a key become users below the account. Returns how many rows of each table were moved.
    """
    moved = Counter(dict.fromkeys(TABLES, 0))
    _move(db, LOCAL_USER, account, account, moved)
    for key in keys:
        _move(db, key, account, account, moved)
        for below in _below(db, key):
            _move(db, below, account + below.removeprefix(key), account, moved)
    return dict(moved)


def _below(db: Database, key: str) -> list[str]:
    """The users below a key: `key/user`; "0" comes right after "/"."""
    each = [f"SELECT user_id FROM {table} WHERE user_id >= :key || '/' AND user_id < :key || '0'" for table in TABLES]
    return [row["user_id"] for row in db.query(" UNION ".join(each), {"key": key})]


def _move(db: Database, old: str, new: str, account: str, moved: Counter[str]) -> None:
    """Move the rows of one user. Their person becomes the account: from now on it is one person who said all of it."""
    # Both may have used the same idempotency key; then the moved vote gets one that nobody sends.
    db.execute(
        "UPDATE feedback SET idempotency_key = 'adopted ' || id WHERE user_id = :old AND idempotency_key IN"
        " (SELECT idempotency_key FROM feedback WHERE user_id = :new)",
        {"old": old, "new": new},
    )
    for table in TABLES:
        person = ", person = :account" if table != "conversations" else ""
        changed = db.execute(
            f"UPDATE {table} SET user_id = :new{person} WHERE user_id = :old",
            {"old": old, "new": new} | ({"account": account} if person else {}),
        )
        moved[table] += changed.rowcount

"""Consent: what a person with an account allows, asked in one text. Everything is off until it is given.

Answers are append-only rows; the last one counts, and is kept in memory, so that an event loop can ask. People without
an account (`local`, and the keys and names of that mode) consent by using the assistant on their own machine. Names
below an account's API key go by the account. What a snapshot makes of consent is in `snapshot.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from thumbwise.errors import ThumbwiseError
from thumbwise.feedback.records import account_of, now_ns

if TYPE_CHECKING:
    from sqlite_utils import Database

    from thumbwise.feedback.store import Store

TERMS = "1"
"""The version of the text below. Change it with every change of meaning: then people are asked again.

An answer to another version counts as none.
"""
INTRODUCTION = (
    "This assistant can learn from the people who use it. You decide what it may do with what you say. "
    "You can chat without any of these, and change your mind at any time on the page My data."
)
SWITCHES = {
    "keep_chats": (
        "Keep my chats",
        "My chats are stored, so that I can open them again and vote on replies. "
        "Without this, a chat is gone when I close the page.",
    ),
    "use_votes": (
        "Learn from my votes",
        "My thumbs, choices and rankings are used to train new versions of the model. "
        "Votes are counted in statistics in any case.",
    ),
    "use_text": (
        "Learn from my text",
        "My questions, corrections and comments are used to train new versions of the model. "
        "A vote is only used together with the question that it is about, so votes on my own questions need this too.",
    ),
}
"""The label and the explanation of each switch, as people see them."""
CLOSING = (
    "What a version has learned stays in it until the next training. If you delete something, it is removed from the "
    "database, from kept training data, and from everything that is trained later. "
    "Copies that the operator saved elsewhere (backups) are not reached."
)
Told = Callable[["Database", Any, str, dict[str, Any]], None]
_LAST = """
    SELECT * FROM consents WHERE NOT EXISTS (
        SELECT 1 FROM consents later WHERE later.user_id = consents.user_id AND later.seq > consents.seq)
"""


@dataclass(frozen=True)
class Consent:
    """One person's answer. `terms` is the version of the text that was shown; `at` is in UTC nanoseconds."""

    keep_chats: bool = False
    use_votes: bool = False
    use_text: bool = False
    terms: str = ""
    at: int = 0

    @property
    def answered(self) -> bool:
        """Whether today's text was answered; otherwise people are asked."""
        return self.terms == TERMS


ALL = Consent(True, True, True, TERMS)
"""What people without an account allow."""
NONE = Consent()


class Consents:
    """What each person allows. `told` writes the audit entry, in the transaction of the change."""

    def __init__(self, store: Store, told: Told | None = None) -> None:
        self.store = store
        self._told = told
        self._of = {row["user_id"]: _consent(row) for row in store.rows(_LAST)}

    def of(self, user: str) -> Consent:
        """What the owner of these rows allows; needs no database."""
        account = account_of(user)
        if account is None:
            return ALL
        found = self._of.get(account, NONE)
        return found if found.answered else NONE

    def require_chats(self, user: str) -> None:
        """Raise 403 for something that must be stored, if the owner of these rows does not allow it."""
        if not self.of(user).keep_chats:
            raise ThumbwiseError(
                "This would be stored, and your chats are not kept: allow it under My data (/me), or chat without.",
                status=403,
            )

    def last(self, user: str) -> Consent:
        """The last answer, also to an earlier text: what a form shows as chosen."""
        return self._of.get(account_of(user) or "", NONE)

    def give(self, user: str, *, keep_chats: bool, use_votes: bool, use_text: bool, actor: Any = None) -> Consent:
        """Store an account's answer to today's text. Blocks until it is durable."""
        account = account_of(user)
        if account is None:
            raise ThumbwiseError(
                "Without accounts there is nothing to answer: what you say here stays on this machine."
            )
        consent = Consent(keep_chats, use_votes, use_text, TERMS, now_ns())

        def work(db: Database) -> None:
            db.table("consents").insert({"user_id": account, **asdict(consent)})
            if self._told is not None:
                given = {"keep_chats": keep_chats, "use_votes": use_votes, "use_text": use_text, "terms": TERMS}
                self._told(db, actor, account, given)

        with self.store.lock:  # the last row and the one in memory are the same also if two answer at once
            self.store.share(work)
            self._of[account] = consent
        return consent


class Allowed:
    """What may be learned from, of one moment: the answers as a read transaction sees them."""

    def __init__(self, db: Database) -> None:
        rows = {row["user_id"]: _consent(row) for row in db.query(_LAST)}
        self._of = {account: consent for account, consent in rows.items() if consent.answered}

    def votes(self, user: str) -> bool:
        """Whether this user's votes may train."""
        return self._consent(user).use_votes

    def text(self, user: str) -> bool:
        """Whether what this user wrote may train."""
        return self._consent(user).use_text

    def _consent(self, user: str) -> Consent:
        account = account_of(user)
        return ALL if account is None else self._of.get(account, NONE)


def _consent(row: dict[str, Any]) -> Consent:
    votes, text = bool(row["use_votes"]), bool(row["use_text"])
    return Consent(bool(row["keep_chats"]), votes, text, row["terms"], row["at"])

"""People as an OpenID Connect provider knows them: which account is whose, and the role that the provider gives.

An identity is an issuer and a subject. Names and e-mail addresses identify nobody: people change them at a provider,
and a provider may give an old one to somebody else.
"""

from __future__ import annotations

import logging
import secrets
import sqlite3
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from thumbwise.accounts.audit import record
from thumbwise.accounts.migrations import migrations
from thumbwise.accounts.principal import Actor, Role
from thumbwise.accounts.users import Account, Users, normalized
from thumbwise.errors import Conflict, ThumbwiseError
from thumbwise.feedback.records import now_ns

if TYPE_CHECKING:
    from sqlite_utils import Database

    from thumbwise.feedback.store import Store

log = logging.getLogger(__name__)
VIA = "oidc"
_ROOM = 100
"""Characters of a name that a provider may wish for, so that a number fits behind it."""


@dataclass(frozen=True)
class Identity:
    """Who logged in at a provider, and what the provider says about this person."""

    issuer: str
    subject: str
    names: tuple[str, ...] = ()
    """Names for a new account, the best first."""
    role: Role | None = None
    """The role by the claim; None: the account keeps its own."""
    allowed: bool = True
    """Whether the claim lets this person log in here."""
    ignored: str = ""
    """The type of a role claim that cannot be read, for the audit log; empty if it can."""


@dataclass(frozen=True)
class Invited:
    """What an invitation gives. `use` marks it as used, in the transaction that makes the account."""

    role: Role
    use: Callable[[Database, str], None]


class Identities:
    """Which account belongs to whom at a provider, in the feedback database. All methods block."""

    def __init__(self, store: Store, users: Users) -> None:
        self.store, self.users = store, users
        store.migrate(migrations)

    def find(self, issuer: str, subject: str) -> Account | None:
        """The account of an identity, or None; also a disabled one, never a deleted one."""
        with self.store.reading() as db:
            rows = list(db.query("SELECT user_id FROM identities WHERE issuer = ? AND subject = ?", [issuer, subject]))
        return self.users.find(str(rows[0]["user_id"])) if rows else None

    def of(self, user_id: str) -> list[dict[str, Any]]:
        """The identities of an account: issuer, subject and time, oldest first."""
        with self.store.reading() as db:
            rows = db.query("SELECT * FROM identities WHERE user_id = ? ORDER BY created_at", [user_id])
            return [{"issuer": r["issuer"], "subject": r["subject"], "created_at": r["created_at"]} for r in rows]

    def enter(
        self,
        identity: Identity,
        sign_up: Literal["closed", "approval", "open"],
        address: str = "",
        invited: Invited | None = None,
    ) -> Account:
        """Return the account of somebody who logged in at the provider, made now if it may be. Sets its role.

        Raises ThumbwiseError, with the code `oidc_…`, for people who may not log in.
        """
        nobody = Actor("nobody", VIA, address)
        if not identity.allowed:
            self._refused(identity, nobody, "not allowed by the claim")
            raise refused("not_allowed")
        account = self.find(identity.issuer, identity.subject)
        if account is None:
            if invited is None and sign_up == "closed":
                self._refused(identity, nobody, "no account")
                raise refused("no_account")
            account = self._create(identity, "pending" if invited is None and sign_up == "approval" else "active",
                                   nobody, invited)  # fmt: skip
        if account.state == "disabled":
            self._refused(identity, Actor(account.id, VIA, address), "disabled")
            raise refused("disabled")
        return self._with_role(account, identity, Actor(account.id, VIA, address))

    def connect(self, identity: Identity, user_id: str, actor: Actor) -> None:
        """Let an identity log into an account. Raises ThumbwiseError if it belongs to another, or may not log in."""
        if not identity.allowed:
            raise refused("not_allowed")

        def work(db: Database) -> None:
            _insert(db, identity, user_id)
            record(db, actor, "identity.connect", user_id, issuer=identity.issuer)

        try:
            self.store.share(work)
        except sqlite3.IntegrityError:
            account = self.find(identity.issuer, identity.subject)
            if account is None or account.id != user_id:
                raise refused("taken") from None

    # -- parts --------------------------------------------------------------------------------------

    def _create(
        self, identity: Identity, state: Literal["pending", "active"], actor: Actor, invited: Invited | None
    ) -> Account:
        role = identity.role or (invited.role if invited else "user")

        def also(db: Database, user_id: str) -> None:
            _insert(db, identity, user_id)
            if invited is not None:
                invited.use(db, user_id)

        for name in _names(identity.names):
            try:
                return self.users.create(name, role, actor, state=state, also=also)
            except sqlite3.IntegrityError:  # the same person logs in twice at the same instant
                self.users.change(lambda db: None)  # reads the account that the other login made
                if account := self.find(identity.issuer, identity.subject):
                    return account
                raise
            except Conflict:  # the name is taken
                continue
        raise refused("no_name")

    def _with_role(self, account: Account, identity: Identity, actor: Actor) -> Account:
        if identity.ignored:
            self.store.share(lambda db: record(db, actor, "role.claim_ignored", account.id, type=identity.ignored))
        if identity.role is not None and identity.role != account.role:
            try:
                self.users.set_role(account.id, identity.role, actor)
            except Conflict:  # the last operator: a provider must not lock everybody out
                said = identity.role
                self.store.share(lambda db: record(db, actor, "role.kept", account.id, role=account.role, claim=said))
        return self.users.get(account.id)

    def _refused(self, identity: Identity, actor: Actor, why: str) -> None:
        def work(db: Database) -> None:
            record(db, actor, "login.refused", f"{identity.issuer} {identity.subject}", why=why)

        self.store.share(work)


SENTENCES = {
    "denied": "The provider did not let you log in: try again, or ask its administrator.",
    "unreachable": "The login provider does not answer: try again in a minute, or log in with a password.",
    "misconfigured": "The login provider and this assistant do not fit together: an operator finds why in the log.",
    "started_elsewhere": "This login was not started in this browser, or it was used already: log in again.",
    "expired": "This login took too long: log in again.",
    "clock": "The provider's answer is not valid at this time: log in again; an operator should compare both clocks.",
    "unverified": "The provider's answer could not be verified: log in again.",
    "not_allowed": "Your account at the provider may not use this assistant: ask an operator.",
    "no_account": "You have no account here yet: ask an operator for an invitation.",
    "no_name": "No name is free for your account: ask an operator for an invitation.",
    "disabled": "This account is disabled: ask an operator.",
    "taken": "This person at the provider belongs to another account here: log out at the provider, then try again.",
    "link": "This invitation is used, expired or unknown: ask for a new one.",
    "busy": "Too many attempts: wait a minute, then try again.",
    "failed": "The login could not be saved: try again in a minute.",
    "logged_out": "You were logged out meanwhile: log in, then connect again.",
}
"""Why a login failed. Only these sentences are shown, never a text of the provider."""


def refused(code: str) -> ThumbwiseError:
    """The refusal of a login, as a sentence."""
    status = {"unreachable": 503, "misconfigured": 502, "taken": 409}.get(code, 403)
    return ThumbwiseError(SENTENCES[code], status=status, code=f"oidc_{code}")


def refuse_error(answer: Mapping[str, str]) -> None:
    """Raise the refusal of an answer that is an error. Some providers leave `state` out of it."""
    if (error := answer.get("error")) is None:
        return
    if error in ("server_error", "temporarily_unavailable"):
        raise refused("unreachable")
    if error in ("access_denied", "login_required", "consent_required", "interaction_required"):
        raise refused("denied")
    log.warning("the login provider refuses our requests: %s", error[:40] if error.isidentifier() else "error")
    raise refused("misconfigured")


def _insert(db: Database, identity: Identity, user_id: str) -> None:
    row = {"issuer": identity.issuer, "subject": identity.subject, "user_id": user_id, "created_at": now_ns()}
    db.table("identities").insert(row)


def _names(wished: tuple[str, ...]) -> list[str]:
    """Names to try for a new account. A name that is taken gets a number: it never leads to the other account."""
    name = "person"
    for wish in wished:
        try:
            name = normalized(normalized(wish)[:_ROOM])
            break
        except ThumbwiseError:
            continue
    return [name, *(f"{name} {number}" for number in range(2, 20)), f"{name} {secrets.token_hex(4)}"]

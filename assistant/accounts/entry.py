"""The ways into an account: login, setup, invitation, sign-up, reset; and out of it.

Each answers in one sentence (ThumbwiseError). Who gives an unknown name gets the answer of a wrong password, after the
same time. A way in returns the text of the session's cookie.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from thumbwise.accounts.audit import record
from thumbwise.accounts.passwords import SHORTEST, Passwords, checked
from thumbwise.accounts.passwords.attempts import Attempts, known_addresses
from thumbwise.accounts.principal import NOBODY, Actor
from thumbwise.accounts.users import normalized
from thumbwise.errors import NotFound, ThumbwiseError
from thumbwise.feedback.records import now_ns

if TYPE_CHECKING:
    from sqlite_utils import Database

    from thumbwise.accounts.links import Kind, Link, Links
    from thumbwise.accounts.principal import Principal, Role
    from thumbwise.accounts.sessions import Sessions
    from thumbwise.accounts.users import Account, State, Users
    from thumbwise.settings import Settings


class Entry:
    """Lets people into their accounts. Its methods are for an event loop; none of them blocks it."""

    def __init__(self, settings: Settings, users: Users, sessions: Sessions, links: Links) -> None:
        self.settings, self.users, self.sessions, self.links = settings, users, sessions, links
        self.store = users.store
        self.passwords = Passwords()
        self.attempts = Attempts(settings.accounts, known_addresses(self.store, now_ns()))

    def close(self) -> None:
        """End the threads in which passwords are checked."""
        self.passwords.close()

    # -- in --------------------------------------------------------------------------------------------

    async def login(self, name: str, password: str, address: str) -> str:
        """Log in with name and password. Raises 401 (wrong), 403 (disabled) or 429 (too many wrong ones)."""
        self._require_accounts()
        account = self.users.named(name)
        kept = await self._check(account, name, password, address)
        if kept is None or account is None:
            raise ThumbwiseError("The name or the password is wrong: try again.", status=401)
        cookie = await self._start(account.id, address, kept)
        if self.passwords.outdated(kept) and len(password) >= SHORTEST:
            renewed = await self.passwords.hash(password)
            await self.store.run(self.users.renew_password, account.id, kept, renewed)
        return cookie

    async def setup(self, link: str, name: str, password: str, address: str) -> str:
        """Make the first operator by the link that `serve` printed. Raises Conflict if there is one already."""
        self._require_accounts()
        await self.link(link, "setup", address)
        hashed = await self._hash(name, password)

        def use(db: Database, user_id: str) -> None:
            self.links.use(db, link, "setup")

        actor = Actor(NOBODY.name, "setup link", address)
        account = await self.store.run(self.users.create_operator, name, actor, password=hashed, also=use)
        return await self._start(account.id, address)

    async def join(self, link: str, name: str, password: str, address: str) -> str:
        """Make an account by an invitation, or without one where the setting `accounts.sign_up` allows it.

        With `approval` the account is pending: it is logged in, and may only see that it waits.
        """
        self._require_accounts()
        role: Role = "user"
        state: State = "active"
        if link:
            role = (await self.link(link, "invite", address)).role
        elif self.settings.accounts.sign_up == "closed":
            raise ThumbwiseError("Accounts are made by invitation: ask an operator for a link.", status=403)
        else:
            async with self.attempts.attempt("", address):  # each counts, so nobody makes thousands
                state = "pending" if self.settings.accounts.sign_up == "approval" else "active"
        hashed = await self._hash(name, password)

        def use(db: Database, user_id: str) -> None:
            if link:
                self.links.use(db, link, "invite")

        actor = Actor(NOBODY.name, "invitation" if link else "sign-up", address)
        account = await self.store.run(self.users.create, name, role, actor, state=state, password=hashed, also=use)
        return await self._start(account.id, address)

    async def reset(self, link: str, password: str, address: str) -> str:
        """Set a new password by a link; all sessions of the account end, and a new one begins."""
        self._require_accounts()
        account = self.users.get(str((await self.link(link, "reset", address)).user_id))
        hashed = await self.passwords.hash(password)

        def use(db: Database) -> None:
            self.links.use(db, link, "reset")

        actor = Actor(account.id, "reset link", address)
        await self.store.run(self.users.set_password, account.id, hashed, actor, action="password.reset", also=use)
        return await self._start(account.id, address)

    async def link(self, text: str, kind: Kind, address: str) -> Link:
        """Return a link that works, for the page that it opens. Raises 403, or 429 after many wrong ones."""
        async with self.attempts.attempt("", address) as attempt:
            found = await self.store.run(self.links.find, text, kind)
            attempt.right = True
        return found

    # -- inside, and out -------------------------------------------------------------------------------

    async def change_password(self, principal: Principal, old: str, new: str) -> None:
        """Change the password of who asks. All other sessions end."""
        self._require_accounts()
        account = self.users.get(principal.account or "")
        checked(new)
        kept = await self._check(account, account.name, old, principal.address)
        if kept is None:
            raise ThumbwiseError("The old password is wrong: try again.", status=403)
        hashed = await self.passwords.hash(new)

        def unchanged(db: Database) -> None:
            _require_same(db, account.id, kept)

        await self.store.run(
            self.users.set_password, account.id, hashed, principal.actor,
            action="password.change", but=principal.session, also=unchanged,
        )  # fmt: skip

    async def logout(self, principal: Principal) -> None:
        """End the session of who asks."""
        if principal.session:
            await self.store.run(self.sessions.end, principal.session, principal.actor)

    async def logout_everywhere(self, principal: Principal) -> None:
        """End all sessions of who asks, also this one."""
        if principal.account:
            await self.store.run(self.sessions.end_all, principal.account, principal.actor)

    # -- parts -----------------------------------------------------------------------------------------

    def _require_accounts(self) -> None:
        if self.settings.auth != "accounts":
            raise NotFound(f"There are no passwords here: the setting `auth` is {self.settings.auth}.")

    async def _check(self, account: Account | None, name: str, password: str, address: str) -> str | None:
        """Return the hash that a password fits, or None. Raises 429."""
        kept = self.users.password_of(account.id) if account else None
        async with self.attempts.attempt(account.id if account else _as_stored(name), address) as attempt:
            attempt.right = await self.passwords.check(kept, password)
        if not attempt.right and self.attempts.worth_telling():
            # Never the name that was typed: people type passwords there. Soon, not now: nobody has to wait for it.
            actor, target = Actor(NOBODY.name, "password", address), account.id if account else ""
            self.store.later(f"login.failed {target} {address}", lambda db: record(db, actor, "login.failed", target))
        return kept if attempt.right else None

    async def _hash(self, name: str, password: str) -> str:
        """Return the hash of a new account's password. First the name is checked, which costs less."""
        if self.users.named(normalized(name)):
            raise ThumbwiseError(f"There is an account {normalized(name)} already: choose another name.", status=409)
        return await self.passwords.hash(password)

    async def _start(self, user_id: str, address: str, kept: str | None = None) -> str:
        """Begin a session; with `kept` only if this still is the account's password."""

        def unchanged(db: Database) -> None:
            if kept is not None:
                _require_same(db, user_id, kept)

        return await self.store.run(self.sessions.start, user_id, Actor(user_id, "session", address), unchanged)


def _as_stored(name: str) -> str:
    """A name that was typed, in the one way in which it counts: otherwise the limits would tell who has an account."""
    try:
        return normalized(name)
    except ThumbwiseError:  # nobody can have this name
        return name


def _require_same(db: Database, user_id: str, kept: str) -> None:
    """Raise ThumbwiseError if the password was changed while it was checked."""
    if not list(db.query("SELECT 1 FROM users WHERE id = ? AND password = ?", [user_id, kept])):
        raise ThumbwiseError("The password was changed at this moment: log in with the new one.", status=401)

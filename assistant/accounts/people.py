"""What operators do with accounts: make, invite, approve, disable, delete them, and give them what `local` said.

The same for the API and for the command line. All methods block until the change is durable. A person is named by name
or id.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from thumbwise.accounts import links
from thumbwise.accounts.audit import iso, record
from thumbwise.accounts.principal import COMMAND_LINE
from thumbwise.errors import Conflict
from thumbwise.feedback import adoption

if TYPE_CHECKING:
    from sqlite_utils import Database

    from thumbwise.accounts.keys import Keys
    from thumbwise.accounts.links import Links
    from thumbwise.accounts.principal import Actor, Role
    from thumbwise.accounts.users import Account, Users
    from thumbwise.settings import Settings


class People:
    """The operators' side of accounts."""

    def __init__(
        self,
        settings: Settings,
        users: Users,
        links: Links,
        keys: Keys,
        forget: Callable[[str, Actor], object] = lambda user_id, actor: None,
    ) -> None:
        """`forget` removes what an account said, wherever it is; see `delete`."""
        self.settings, self.users, self.links, self.keys = settings, users, links, keys
        self.forget = forget

    def listing(self) -> list[dict[str, Any]]:
        """Every account as plain JSON, oldest first. Safe on an event loop."""
        return [self.shown(account) for account in self.users.all()]

    @staticmethod
    def shown(account: Account) -> dict[str, Any]:
        """An account as plain JSON, with times that people can read."""
        seen = None if account.seen_at is None else iso(account.seen_at)
        return account.as_json() | {"created_at": iso(account.created_at), "seen_at": seen}

    def create(self, name: str, role: Role, actor: Actor, password: str | None = None) -> tuple[Account, str | None]:
        """Make an account; `password` is its hash. Without one, returns also the text of a link that sets it."""
        account = self.users.create(name, role, actor, password=password)
        if password is not None or self.settings.auth == "proxy":
            return account, None
        return account, self.links.make("reset", role, actor, account.id)

    def invite(self, role: Role, actor: Actor) -> str:
        """Return the text of a link by which somebody makes an account with this role."""
        self._require_passwords()
        return self.links.make("invite", role, actor)

    def reset(self, who: str, actor: Actor) -> str:
        """Return the text of a link that sets a new password. Until it is used the old one works."""
        self._require_passwords()
        account = self.users.get(who)
        return self.links.make("reset", account.role, actor, account.id)

    def activate(self, who: str, actor: Actor) -> Account:
        """Approve a pending account, or enable a disabled one."""
        self.users.set_state(self.users.get(who).id, "active", actor)
        return self.users.get(who)

    def disable(self, who: str, actor: Actor) -> Account:
        """Disable an account. Its sessions end now and do not come back."""
        self.users.set_state(self.users.get(who).id, "disabled", actor)
        return self.users.get(who)

    def set_role(self, who: str, role: Role, actor: Actor) -> Account:
        """Change the role of an account."""
        self.users.set_role(self.users.get(who).id, role, actor)
        return self.users.get(who)

    def delete(self, who: str, actor: Actor) -> Account:
        """Delete an account with its sessions, links, keys and identities, and forget what it said.

        It is disabled first, so nothing new is said while the rest is forgotten. If that is interrupted, the account
        is still there to be deleted again.
        """
        account = self.disable(who, actor)
        self.forget(account.id, actor)
        self.users.delete(account.id, actor)
        self.keys.read()
        return account

    def adopt(self, who: str, actor: Actor) -> dict[str, int]:
        """Give an account the chats, votes and API keys of `local`; returns how many of each."""
        account = self.users.get(who)
        moved: dict[str, int] = {}

        def work(db: Database) -> None:
            names = self.keys.adopt(db, account.id, actor)
            moved.update(adoption.adopt(db, account.id, names), keys=len(names))
            record(db, actor, "user.adopt", account.id, **moved)

        self.users.change(work)
        self.keys.read()
        return moved

    def setup_link(self) -> str | None:
        """Return the text of a new setup link if people log in with passwords and nobody is an operator yet."""
        if self.settings.auth != "accounts" or self.users.has_operator():
            return None
        return self.links.make("setup", "operator", COMMAND_LINE)

    def _require_passwords(self) -> None:
        if self.settings.auth == "proxy":
            raise Conflict("Links set passwords, and here the proxy logs people in (setting `auth`): change it there.")

    def address(self, own: str, kind: links.Kind, text: str) -> str:
        """Return the address of a link, below `public_url` if that is set, otherwise below the assistant's `own`."""
        return links.address(self.settings.public_url or own, kind, text)

"""`auth = "proxy"`: a reverse proxy logs people in, and tells their name in a header.

The header counts only from a peer in `proxy.peers`, because everybody can send one. From others it is not even read.
A name that has no account gets one, with the role `proxy.role`. No header changes the role of an account.
"""

from __future__ import annotations

import asyncio
import unicodedata
from contextlib import suppress
from typing import TYPE_CHECKING

from thumbwise.accounts.principal import NOBODY, Actor
from thumbwise.accounts.sessions import USED_EVERY
from thumbwise.accounts.users import normalized
from thumbwise.errors import Conflict, ThumbwiseError
from thumbwise.feedback.records import now_ns

if TYPE_CHECKING:
    from starlette.types import Scope

    from thumbwise.accounts.users import Account, Users
    from thumbwise.serving.address import Address
    from thumbwise.settings import Settings

VIA = "proxy header"
"""How the audit log names an account's way in."""


class ProxyHeader:
    """Finds the account that a proxy names."""

    def __init__(self, settings: Settings, address: Address, users: Users) -> None:
        self.settings, self.address, self.users = settings.proxy, address, users
        self.header = settings.proxy.header
        self._making = asyncio.Lock()

    async def welcome(self, scope: Scope, address: str) -> None:
        """Make the account of a name that has none. Does nothing if no listed proxy names anybody."""
        try:
            name = self.name(scope)
        except ThumbwiseError:
            return
        if self.users.named(name) is not None:
            return
        async with self._making:  # a page sends several first requests at once: one makes the account, the others wait
            if self.users.named(name) is not None:
                return
            actor = Actor(NOBODY.name, VIA, address)
            with suppress(Conflict):  # the command line's request made it at the same instant
                await self.users.store.run(self.users.create, name, self.settings.role, actor)

    def account(self, scope: Scope) -> Account:
        """Return the account that the proxy names. Raises 401 for nobody, 403 for one that is closed."""
        name = self.name(scope)
        account = self.users.named(name)
        if account is None:
            raise ThumbwiseError(f"There is no account {name[:64]!r}.", status=401)
        if account.state != "active":
            said = "waits for approval" if account.state == "pending" else "is disabled"
            raise ThumbwiseError(f"The account {account.name} {said}: ask an operator.", status=403)
        self._saw(account)
        return account

    def name(self, scope: Scope) -> str:
        """Return the name in the header; raises 401, with a sentence for the operator."""
        if not self.address.trusts(scope["state"]["peer"]):
            raise ThumbwiseError(
                "This assistant is reached through a proxy, and this request came from elsewhere. As its operator, "
                "list the proxy's address in proxy.peers.",
                status=401,
            )
        wanted = self.header.lower().encode()
        found = [value for name, value in scope["headers"] if name == wanted]
        # A proxy that adds to a header instead of replacing it joins both values by a comma.
        if len(found) > 1 or b"," in b"".join(found):
            raise self._refused("names more than one person", "replace what a browser sent")
        try:
            text = b"".join(found).decode()
            name = normalized(text)
        except (UnicodeDecodeError, ThumbwiseError):
            if not b"".join(found).strip():
                raise self._refused("is missing or empty", "send the name of who is logged in") from None
            raise self._refused("is not a name", "send a name in UTF-8, without a slash") from None
        # Names are compared by NFKC, which makes ann of full-width letters. The proxy may know both as two people.
        if not any(unicodedata.is_normalized(form, text) for form in ("NFKC", "NFKD")):
            raise self._refused("has letters in an unusual form, such as full-width ones", "send usual letters")
        return name

    def _refused(self, what: str, fix: str) -> ThumbwiseError:
        return ThumbwiseError(f"The proxy's header {self.header} {what}: as its operator, let it {fix}.", status=401)

    def _saw(self, account: Account) -> None:
        now = now_ns()
        if account.seen_at is None or now - account.seen_at > USED_EVERY:
            self.users.store.later(f"seen {account.id}", self.users.saw(account.id, now))

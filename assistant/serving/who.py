"""Who sends a request. The guard asks once; the answer travels with the request (`thumbwise.accounts.principal`).

The first way that applies counts:

| way | who |
|---|---|
| `Authorization: Bearer` with `operator.token` of the home | the command line, as an operator |
| the same with `job.token` | the job, as an operator; the guard lets it do only what a round of training needs |
| `Authorization: Bearer tw-…`, below `/v1` | the owner of the API key |
| the same, below `/ops/api` and at `/metrics`, not in `local` | the owner, if the key has the scope `operate` |
| `auth` is `local` | the browser, by its signed cookie; all share the chats of `local` |
| `auth` is `proxy` | the account named in the header of a listed proxy |
| the cookie of a login | the account that logged in |
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from starlette.datastructures import Headers
from starlette.requests import cookie_parser

from thumbwise.accounts.browsers import KEPT_SECONDS
from thumbwise.accounts.keys import PREFIX
from thumbwise.accounts.principal import COMMAND_LINE, JOB, Principal, Via
from thumbwise.errors import ThumbwiseError
from thumbwise.feedback.records import LOCAL_USER, PROGRAMS, Asker, sha256
from thumbwise.serving.address import Address, path_of
from thumbwise.serving.auth import API, METRICS, OPS, bearer, is_token
from thumbwise.serving.proxy_header import ProxyHeader

if TYPE_CHECKING:
    from starlette.types import Scope

    from thumbwise.accounts.browsers import Browsers
    from thumbwise.accounts.keys import Key, Keys
    from thumbwise.accounts.sessions import Session, Sessions
    from thumbwise.accounts.users import Account, Users
    from thumbwise.settings import Settings


@dataclass
class Who:
    """Finds who sends a request; `secret` is the home's."""

    settings: Settings
    browsers: Browsers
    keys: Keys
    users: Users
    sessions: Sessions
    job_token: str
    operator_token: str
    secret: str

    def __post_init__(self) -> None:
        self.address = Address(self.settings)
        proxied = self.settings.auth == "proxy"
        self.proxy = ProxyHeader(self.settings, self.address, self.users) if proxied else None
        # Browsers send a host's cookies to all its ports: two assistants on one machine need different names.
        self.cookie = f"thumbwise_login_{sha256(self.secret)[:8]}"
        """The name of the login's cookie."""

    @property
    def local(self) -> bool:
        """Whether there is no login."""
        return self.settings.auth == "local"

    async def welcome(self, scope: Scope) -> None:
        """Make the account of somebody whom the proxy names for the first time. `find` cannot wait for the database."""
        if self.proxy is not None:
            await self.proxy.welcome(scope, str(scope["client"][0]))

    def find(self, scope: Scope) -> Principal | None:
        """Return who sends a request, or None if nobody is logged in. Raises 401 and 403 for keys and the header."""
        headers, path = Headers(scope=scope), path_of(scope)
        address = str((scope.get("client") or ("", 0))[0])
        authorization = headers.get("authorization")
        for name, token in ((JOB, self.job_token), (COMMAND_LINE.name, self.operator_token)):
            if is_token(authorization, token):
                return Principal(Asker(LOCAL_USER, PROGRAMS), "operator", "token", name=name, address=address)
        if (needed := self._scope(path)) and (found := self._by_key(needed, bearer(authorization), address)):
            return found
        cookies = cookie_parser(headers.get("cookie", ""))
        if self.local:
            asker = self.browsers.asker(self.browsers.text_in(cookies))
            return Principal(asker, "user", "local", name=LOCAL_USER, address=address)
        if self.proxy is not None:
            return principal(self.proxy.account(scope), "proxy", address)
        return self._by_session(cookies, address)

    def _scope(self, path: str) -> str | None:
        """Return the scope that an API key needs for a path; None where a key opens nothing."""
        if path.startswith(API):
            return "feedback" if path == f"{API}feedback" else "chat"
        return "operate" if not self.local and (path.startswith(OPS) or path == METRICS) else None

    def _by_key(self, scope: str, text: str, address: str) -> Principal | None:
        """Return the owner of an API key. OpenAI's clients must send some text: what is not one of ours is none."""
        if text.startswith(PREFIX):
            key = self.keys.check(text, scope)
            found = self._owner(key, address) if key.user_id else self._nobody(key, address)
            if scope == "operate" and not found.may("operator"):
                raise ThumbwiseError(f"The owner of the key {key.name} is no operator any more.", status=403)
            self.keys.use(key)
            return found
        if self.local and self.keys.needed():
            raise ThumbwiseError(
                "Send an API key (`Authorization: Bearer tw-…`): `thumbwise keys create` makes one.", status=401
            )
        return None

    def _owner(self, key: Key, address: str) -> Principal:
        """Return the account of a key. It has its operator's role only for the scope that says so."""
        account = self.users.find(key.user_id or "")
        if account is None or account.state != "active":
            raise ThumbwiseError("This API key belongs to no active account: make one for your account.", status=401)
        found = principal(account, "key", address, scopes=frozenset(key.scopes))
        return found if "operate" in key.scopes else replace(found, role="user")

    def _nobody(self, key: Key, address: str) -> Principal:
        """Return the client of a key without an owner, in `local`."""
        if not self.local:
            raise ThumbwiseError(
                "This API key belongs to no account, because it was made before there were any: `thumbwise users "
                "adopt` gives it to one, or make one with `thumbwise keys create NAME --user USER`.",
                status=401,
            )
        asker = Asker(key.name, f"key:{key.name}")
        return Principal(asker, "user", "key", name=key.name, scopes=frozenset(key.scopes), address=address)

    def _by_session(self, cookies: Mapping[str, str], address: str) -> Principal | None:
        found = self.session(cookies)
        if found is None or found[1].state != "active":  # a pending account may only see that it waits: /pending
            return None
        self.sessions.used(found[0])
        return principal(found[1], "session", address, session=found[0].id)

    def session(self, cookies: Mapping[str, str]) -> tuple[Session, Account] | None:
        """Return the session of a request's cookies and its account, or None."""
        return self.sessions.find(cookies.get(self.cookie, ""))

    def set_cookie(self, text: str) -> str:
        """The Set-Cookie header of a login; with an empty text it removes the cookie."""
        age = KEPT_SECONDS if text else 0  # the server ends a session; the cookie must not end before
        return f"{self.cookie}={text}; Max-Age={age}; {self.address.cookie()}"


def principal(
    account: Account, via: Via, address: str, *, session: str = "", scopes: frozenset[str] = frozenset()
) -> Principal:
    """Return an account as the one who asks."""
    asker = Asker(account.id, account.id, page=via != "key")
    return Principal(
        asker, account.role, via, account=account.id, name=account.name, session=session, scopes=scopes,
        address=address,
    )  # fmt: skip

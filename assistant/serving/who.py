"""Who sends a request. The guard asks once; the answer travels with the request (`thumbwise.accounts.principal`).

The first way that applies counts:

| way | who |
|---|---|
| `Authorization: Bearer` with the token of the home | the job and the command line, as an operator |
| `Authorization: Bearer tw-…`, below `/v1` | the owner of the API key |
| `auth` is `local` | the browser, by its signed cookie; all share the chats of `local` |
| the cookie of a login | the account that logged in |
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from starlette.datastructures import Headers
from starlette.requests import cookie_parser

from thumbwise.accounts.keys import PREFIX
from thumbwise.accounts.principal import Principal, Via
from thumbwise.errors import ThumbwiseError
from thumbwise.feedback.records import LOCAL_USER, PROGRAMS, Asker, sha256
from thumbwise.serving.auth import API, bearer, is_job_token

if TYPE_CHECKING:
    from starlette.types import Scope

    from thumbwise.accounts.browsers import Browsers
    from thumbwise.accounts.keys import Keys
    from thumbwise.accounts.sessions import Session, Sessions
    from thumbwise.accounts.users import Account, Users
    from thumbwise.settings import Settings


@dataclass
class Who:
    """Finds who sends a request; `secret` is the home's, `token` the job's."""

    settings: Settings
    browsers: Browsers
    keys: Keys
    users: Users
    sessions: Sessions
    token: str
    secret: str

    def __post_init__(self) -> None:
        # Browsers send a host's cookies to all its ports: two assistants on one machine need different names.
        self.cookie = f"thumbwise_login_{sha256(self.secret)[:8]}"
        """The name of the login's cookie."""

    @property
    def local(self) -> bool:
        """Whether there is no login."""
        return self.settings.auth == "local"

    def find(self, scope: Scope) -> Principal | None:
        """Return who sends a request, or None if nobody is logged in. Raises 401 and 403 for keys."""
        headers, path = Headers(scope=scope), scope["path"]
        address = str((scope.get("client") or ("", 0))[0])
        authorization = headers.get("authorization")
        if is_job_token(authorization, self.token):
            return Principal(Asker(LOCAL_USER, PROGRAMS), "operator", "token", name="token", address=address)
        if path.startswith(API) and (found := self._by_key(path, bearer(authorization), address)):
            return found
        cookies = cookie_parser(headers.get("cookie", ""))
        if self.local:
            asker = self.browsers.asker(self.browsers.text_in(cookies))
            return Principal(asker, "user", "local", name=LOCAL_USER, address=address)
        return self._by_session(cookies, address)

    def _by_key(self, path: str, text: str, address: str) -> Principal | None:
        """Return the owner of an API key. OpenAI's clients must send some text: what is not one of ours is none."""
        if text.startswith(PREFIX):
            key = self.keys.check(text, "feedback" if path == f"{API}feedback" else "chat")
            if self.local:
                asker = Asker(key.name, f"key:{key.name}")
                return Principal(asker, "user", "key", name=key.name, scopes=frozenset(key.scopes), address=address)
            account = self.users.find(key.user_id) if key.user_id else None
            if account is None or account.state != "active":
                raise ThumbwiseError(
                    "This API key belongs to no active account: make one for your account.", status=401
                )
            return principal(account, "key", address, scopes=frozenset(key.scopes))
        if self.local and self.keys.needed():
            raise ThumbwiseError(
                "Send an API key (`Authorization: Bearer tw-…`): `thumbwise keys create` makes one.", status=401
            )
        return None

    def _by_session(self, cookies: Mapping[str, str], address: str) -> Principal | None:
        found = self.session(cookies)
        if found is None:
            return None
        self.sessions.used(found[0])
        return principal(found[1], "session", address, session=found[0].id)

    def session(self, cookies: Mapping[str, str]) -> tuple[Session, Account] | None:
        """Return the session of a request's cookies and its account, or None."""
        return self.sessions.find(cookies.get(self.cookie, ""))

    def set_cookie(self, text: str) -> str:
        """The Set-Cookie header of a login; with an empty text it removes the cookie."""
        secure = "; Secure" if self.settings.public_url.startswith("https:") else ""
        age = int(self.settings.accounts.session_days * 86400) if text else 0
        return f"{self.cookie}={text}; Max-Age={age}; Path=/; HttpOnly; SameSite=Lax{secure}"


def principal(
    account: Account, via: Via, address: str, *, session: str = "", scopes: frozenset[str] = frozenset()
) -> Principal:
    """Return an account as the one who asks."""
    asker = Asker(account.id, account.id, page=via != "key")
    return Principal(
        asker, account.role, via, account=account.id, name=account.name, session=session, scopes=scopes,
        address=address,
    )  # fmt: skip

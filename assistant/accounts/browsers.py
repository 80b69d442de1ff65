"""Which browser it is: a random id in a cookie, for counting votes and limits until there are accounts.

The cookie holds the id and when it was given, signed with a secret of the home. So the server keeps no table, and
nobody can invent an id, or one that is old. An id says nothing about who may read what: all browsers share the chats
of `local`. A browser that came less than a day ago counts together with all other new ones, or whoever throws the
cookie away after every vote would be a new person each time. One without a cookie is new too, and shares its limits
with all that have none. Left out: telling apart several people who use one browser.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from itsdangerous import BadSignature, TimestampSigner
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import cookie_parser

from thumbwise.feedback.records import LOCAL_USER, NEW_BROWSER, Asker, sha256

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

YOUNG_SECONDS = 24 * 3600
KEPT_SECONDS = 400 * 24 * 3600
"""As long as browsers keep a cookie at most; each page load begins it anew."""


class Browsers:
    """Gives out ids and reads them back; `secret` is the home's."""

    def __init__(self, secret: str) -> None:
        self._signer = TimestampSigner(secret, salt="browser")
        # Browsers send a host's cookies to all of its ports: two assistants of one machine must not overwrite theirs.
        self.name = f"thumbwise_{sha256(secret)[:8]}"

    def new(self) -> str:
        """A cookie's text with an id that nobody has."""
        return self._signer.sign(secrets.token_urlsafe(12)).decode()

    def known(self, text: str) -> bool:
        """Whether a cookie's text is one that this home gave."""
        return self._signer.validate(text)

    def asker(self, text: str) -> Asker:
        """Who asks with this cookie; one that is missing or not ours is as good as none."""
        try:
            id_, given = self._signer.unsign(text, return_timestamp=True)
        except BadSignature:
            return Asker(LOCAL_USER, NEW_BROWSER, young=True)
        young = time.time() - given.timestamp() < YOUNG_SECONDS  # also where the clock was set back
        return Asker(LOCAL_USER, f"browser:{id_.decode()}", young)

    def text_in(self, cookies: Mapping[str, str]) -> str:
        """The cookie's text among a request's cookies, or nothing."""
        return cookies.get(self.name, "")

    def asker_of(self, request: Request) -> Asker:
        """Who asks from a page."""
        return self.asker(self.text_in(request.cookies))

    def header(self, text: str) -> str:
        """The Set-Cookie header that keeps `text` for as long as may be."""
        return f"{self.name}={text}; Max-Age={KEPT_SECONDS}; Path=/; HttpOnly; SameSite=Lax"


class Cookies:
    """ASGI middleware that gives every browser which opens a page its cookie, or keeps the one that it has."""

    def __init__(self, app: ASGIApp, browsers: Browsers) -> None:
        self.app, self.browsers = app, browsers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on; a page that is answered carries the cookie."""
        headers = Headers(scope=scope) if scope["type"] == "http" else Headers()
        if scope.get("method") != "GET" or "text/html" not in headers.get("accept", ""):
            await self.app(scope, receive, send)
            return
        text = self.browsers.text_in(cookie_parser(headers.get("cookie", "")))
        if not self.browsers.known(text):
            text = self.browsers.new()

        async def with_cookie(message: Message) -> None:
            if message["type"] == "http.response.start":
                answer = MutableHeaders(scope=message)
                if answer.get("content-type", "").startswith("text/html"):
                    answer.append("Set-Cookie", self.browsers.header(text))
            await send(message)

        await self.app(scope, receive, with_cookie)

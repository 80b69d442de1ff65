"""Tells browsers apart by a random id in a cookie, to count votes and limits until there are accounts.

The cookie holds the id and the time when it was given, signed with a secret of the home. So the server needs no table,
and nobody can invent an id, or make one look older. An id says nothing about who may read what: all browsers share the
chats of `local`. Browsers that came less than a day ago count as one person: otherwise somebody who deletes the cookie
after every vote would be a new person each time. A browser without a cookie is new too, and shares its limits with all
others without one. Left out: telling apart several people who use one browser.
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
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

YOUNG_SECONDS = 24 * 3600
KEPT_SECONDS = 400 * 24 * 3600
"""The longest time that browsers keep a cookie; each page load starts it again."""


class Browsers:
    """Gives out ids and reads them back; `secret` is the home's."""

    def __init__(self, secret: str) -> None:
        self._signer = TimestampSigner(secret, salt="browser")
        # Browsers send a host's cookies to all its ports: two assistants on one machine need different names.
        self.name = f"thumbwise_{sha256(secret)[:8]}"

    def new(self) -> str:
        """The text of a cookie with a new id."""
        return self._signer.sign(secrets.token_urlsafe(12)).decode()

    def known(self, text: str) -> bool:
        """Whether this home signed a cookie's text."""
        return self._signer.validate(text)

    def asker(self, text: str) -> Asker:
        """Who asks with this cookie; a cookie that is not ours counts as none."""
        try:
            id_, given = self._signer.unsign(text, return_timestamp=True)
        except BadSignature:
            return Asker(LOCAL_USER, NEW_BROWSER, young=True, page=True)
        young = time.time() - given.timestamp() < YOUNG_SECONDS  # also if the clock was set back
        return Asker(LOCAL_USER, f"browser:{id_.decode()}", young, page=True)

    def text_in(self, cookies: Mapping[str, str]) -> str:
        """The cookie's text among a request's cookies, or an empty text."""
        return cookies.get(self.name, "")

    def header(self, text: str) -> str:
        """The Set-Cookie header that keeps `text` as long as browsers allow."""
        return f"{self.name}={text}; Max-Age={KEPT_SECONDS}; Path=/; HttpOnly; SameSite=Lax"


class Cookies:
    """ASGI middleware that gives a cookie to every browser that opens a page, or renews the one that it has."""

    def __init__(self, app: ASGIApp, browsers: Browsers) -> None:
        self.app, self.browsers = app, browsers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, and set the cookie in the answer if that is a page."""
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

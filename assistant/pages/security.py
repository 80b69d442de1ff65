"""Response headers that keep the browser from loading anything from other hosts.

Markdown may name pictures on other hosts, and a prompt can make a model write them. With this policy the browser
refuses every request that leaves the assistant. It does not stop scripts in a page: Gradio's front end needs inline
scripts and `eval`, because its HTML component compiles templates. Escaping and sanitising in `markup` stop them.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated

from pydantic import Field
from starlette.datastructures import MutableHeaders
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

Id = Annotated[str, Field(pattern="^[A-Za-z0-9_]{1,64}$")]
"""The id of a conversation, a message or a comparison, as a page sends it."""
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self' data: blob: 'unsafe-inline' 'unsafe-eval'; "
        "script-src 'self' blob: 'unsafe-inline' 'unsafe-eval'; object-src 'none'; "
        "frame-ancestors 'none'; form-action 'self'; base-uri 'self'"
    ),
    # Not no-referrer: with it, browsers send `Origin: null` with our own forms, and the guard refuses that.
    "Referrer-Policy": "same-origin",
}


class PageHeaders:
    """ASGI middleware that adds `HEADERS` and `more` to every answer of the pages."""

    def __init__(self, app: ASGIApp, more: Mapping[str, str] = MappingProxyType({})) -> None:
        self.app, self.headers = app, {**HEADERS, **more}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, and add the headers when the answer starts."""

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(self.headers)
            await send(message)

        await self.app(scope, receive, with_headers)


def middleware() -> list[Middleware]:
    """Return the middleware for the FastAPI application that Gradio makes."""
    return [Middleware(PageHeaders)]

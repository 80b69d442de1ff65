"""Response headers that keep the pages to this host, whatever a reply or a prompt contains.

Markdown may name pictures on other hosts, and a model can be made to write them; the policy below makes the
browser refuse every request that leaves the assistant. Gradio's front end needs inline scripts and `eval`
(its HTML component compiles templates), so this is no defence against markup that runs: escaping and
sanitising in `markup` are.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from starlette.datastructures import MutableHeaders
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

Id = Annotated[str, Field(pattern="^[A-Za-z0-9_]{1,64}$")]
"""What a page names a conversation, a message or a comparison by."""
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self' data: blob: 'unsafe-inline' 'unsafe-eval'; "
        "script-src 'self' blob: 'unsafe-inline' 'unsafe-eval'; object-src 'none'; "
        "frame-ancestors 'none'; form-action 'self'; base-uri 'self'"
    ),
    "Referrer-Policy": "no-referrer",
}


class PageHeaders:
    """ASGI middleware that adds `HEADERS` to every answer of the pages."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on and add the headers when the answer starts."""

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        await self.app(scope, receive, with_headers)


def middleware() -> list[Middleware]:
    """The middleware for the FastAPI application that Gradio makes."""
    return [Middleware(PageHeaders)]

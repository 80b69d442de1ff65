"""What keeps a page to itself and to one person: response headers, and checks of who asks.

Markdown may name pictures on other hosts, and a prompt can make a model write them. With this policy the browser
refuses every request that leaves the assistant. It does not stop scripts in a page: Gradio's front end needs inline
scripts and `eval`, because its HTML component compiles templates. Escaping and sanitising in `markup` stop them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated

from fastapi import Request
from pydantic import Field
from starlette.datastructures import MutableHeaders
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from thumbwise.accounts.principal import principal_of
from thumbwise.errors import ThumbwiseError
from thumbwise.serving.guard import LOGIN_NEEDED

if TYPE_CHECKING:
    from thumbwise.serving.assistant import Assistant

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


def same_person(request: Request) -> None:
    """Refuse a request of a page that somebody else opened in the same browser. It names the account that it shows."""
    named = request.headers.get("x-thumbwise-account") or request.query_params.get("account")
    if named and named != principal_of(request).account:
        raise ThumbwiseError("Somebody else is logged in in this browser now.", status=401, code=LOGIN_NEEDED)


def login_holds(assistant: Assistant, request: Request) -> Callable[[], bool]:
    """Return a check whether who opened a page may still see it. It does not count as a use of the session."""
    principal, cookies = principal_of(request), request.cookies
    if principal.account is None:
        return lambda: True
    id_ = principal.account

    def holds() -> bool:
        account = assistant.users.find(id_)
        if account is None or account.state != "active":
            return False
        found = assistant.who.session(cookies)
        return not principal.session or (found is not None and found[0].id == principal.session)

    return holds

"""The questions about consent: asked before the first chat, and again when their text changes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlencode

from fastapi import APIRouter, Form, Request
from starlette.datastructures import Headers
from starlette.responses import RedirectResponse, Response

from thumbwise.account_pages.forms import go, local_path, page
from thumbwise.accounts.principal import principal_of
from thumbwise.feedback.consent import CLOSING, INTRODUCTION, SWITCHES
from thumbwise.serving.address import path_of

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

    from thumbwise.serving.assistant import Assistant

ASKED_ON = {"/", "/compare"}
"""Pages that ask first: what people say there may be stored."""


def switches(assistant: Assistant, user: str) -> list[dict[str, Any]]:
    """Return the switches of a form, as they are set. Whoever has never answered finds all of them off."""
    last = assistant.consents.last(user)
    return [
        {"name": name, "label": label, "text": text, "on": getattr(last, name)}
        for name, (label, text) in SWITCHES.items()
    ]


def add_routes(router: APIRouter, assistant: Assistant) -> None:
    """Add the page `/consent`."""

    @router.get("/consent")
    async def form(request: Request, next: str = "/") -> Response:
        principal = principal_of(request)
        if principal.account is None:
            return go(request, "/")
        asked = switches(assistant, principal.account)
        again = bool(assistant.consents.last(principal.account).terms)
        return page(
            "consent", switches=asked, introduction=INTRODUCTION, closing=CLOSING, next=local_path(next), again=again
        )

    @router.post("/consent")
    async def answer(
        request: Request,
        keep_chats: Annotated[str, Form()] = "",
        use_votes: Annotated[str, Form()] = "",
        use_text: Annotated[str, Form()] = "",
        next: Annotated[str, Form()] = "/",
    ) -> Response:
        principal = principal_of(request)
        if principal.account is None:
            return go(request, "/")

        def give() -> None:
            assistant.consents.give(
                principal.account or "", keep_chats=bool(keep_chats), use_votes=bool(use_votes),
                use_text=bool(use_text), actor=principal.actor,
            )  # fmt: skip

        await assistant.store.run(give)
        return go(request, local_path(next))


class ConsentFirst:
    """ASGI middleware that leads people who have not answered to `/consent` before a page on which they say something.

    It stands behind the guard. The API answers without: it stores only what was consented to.
    """

    def __init__(self, app: ASGIApp, assistant: Assistant) -> None:
        self.app, self.assistant = app, assistant

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or lead to the questions."""
        app = self._questions(scope) or self.app
        await app(scope, receive, send)

    def _questions(self, scope: Scope) -> Response | None:
        if scope["type"] != "http" or scope["method"] != "GET" or path_of(scope) not in ASKED_ON:
            return None
        account = getattr(scope["state"].get("principal"), "account", None)
        if account is None or self.assistant.consents.of(account).answered:
            return None
        if "text/html" not in Headers(scope=scope).get("accept", ""):
            return None
        query = scope.get("query_string", b"").decode("latin-1")
        wanted = urlencode({"next": path_of(scope) + (f"?{query}" if query else "")})
        return RedirectResponse(f"{scope.get('root_path', '')}/consent?{wanted}", 303)

"""Plain web pages about accounts: login, invitation, my data. They need neither Gradio nor a script."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi import APIRouter, Request
from starlette.responses import RedirectResponse

from thumbwise.account_pages import consent, joining, login, me, oidc
from thumbwise.account_pages.forms import go

if TYPE_CHECKING:
    from thumbwise.serving.assistant import Assistant

PATHS = ("/login", "/logout", "/pending", "/password", "/setup", "/join", "/reset")


def routes(assistant: Assistant) -> APIRouter:
    """Return the routes of these pages. Without accounts (`local`) all but `/me` lead to the chat."""
    router = APIRouter(include_in_schema=False)
    me.add_routes(router, assistant)
    consent.add_routes(router, assistant)
    oidc.add_routes(router, assistant)
    if assistant.who.local:
        for path in PATHS:
            router.add_api_route(path, _to_the_chat, methods=["GET", "POST"], response_model=None)
        return router
    login.add_routes(router, assistant)
    joining.add_routes(router, assistant)
    return router


def _to_the_chat(request: Request) -> RedirectResponse:
    return go(request, "/")

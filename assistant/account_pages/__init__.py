"""Plain web pages about accounts: login, invitation, my data. They need neither Gradio nor a script."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi import APIRouter, Request
from starlette.responses import Response

from thumbwise.account_pages import consent, joining, login, me, oidc
from thumbwise.account_pages.forms import go, page, user_of

if TYPE_CHECKING:
    from thumbwise.serving.assistant import Assistant

PATHS = ("/login", "/logout", "/pending", "/password", "/setup", "/join", "/reset")


def routes(assistant: Assistant) -> APIRouter:
    """Return the routes of these pages.

    Without accounts (`local`) all but `/me` lead to the chat. With `proxy` the proxy logs people in and out.
    """
    router = APIRouter(include_in_schema=False)
    me.add_routes(router, assistant)
    consent.add_routes(router, assistant)
    oidc.add_routes(router, assistant)
    if assistant.settings.auth == "accounts":
        login.add_routes(router, assistant)
        joining.add_routes(router, assistant)
        return router
    for path in PATHS:
        answer = _to_the_chat if assistant.who.local else _at_the_proxy
        router.add_api_route(path, answer, methods=["GET", "POST"], response_model=None)
    return router


def _to_the_chat(request: Request) -> Response:
    return go(request, "/")


def _at_the_proxy(request: Request) -> Response:
    if user_of(request) is None:
        said = "A proxy in front of this assistant says who you are. Open the assistant at the proxy's address."
        return page("sentence", 401, title="Log in at the proxy", said=said, href="", label="")
    said = "You are logged in by the proxy in front of this assistant. It logs you out, and it knows your password."
    return page("sentence", title="Logged in by the proxy", said=said, href="./", label="To the chat")

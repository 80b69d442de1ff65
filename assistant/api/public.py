"""The public API below `/v1`: chat, votes, and a sentence for every address or method that it does not have."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi import APIRouter, Request
from starlette.routing import Match, Route

from thumbwise.api import chat, votes
from thumbwise.errors import NotFound, ThumbwiseError

if TYPE_CHECKING:
    from thumbwise.serving.assistant import Assistant

_METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE"]
_WITHOUT_V1 = (
    "/chat/completions", "/completions", "/responses", "/embeddings", "/models", "/comparisons", "/feedback",
)  # fmt: skip
"""What clients call if their base URL lacks the /v1."""


def router(assistant: Assistant) -> APIRouter:
    """Return the routes of `assistant`."""
    api = APIRouter()
    api.include_router(chat.router(assistant))
    api.include_router(votes.router(assistant))
    _add_fallbacks(api)  # last: the first route that matches answers
    return api


def _add_fallbacks(api: APIRouter) -> None:
    """Answer wrong addresses and wrong methods with a sentence that helps."""

    @api.api_route("/v1/{path:path}", methods=_METHODS)
    async def unknown(path: str, http: Request) -> None:
        allowed = {
            method
            for route in api.routes
            if isinstance(route, Route) and route.matches(http.scope)[0] is Match.PARTIAL
            for method in route.methods or ()
        }
        if allowed:
            raise ThumbwiseError(f"/v1/{path[:80]} takes {' or '.join(sorted(allowed))} only.", status=405)
        raise NotFound(f"There is no {http.method} /v1/{path[:80]}: assistant/api/README.md describes the whole API.")

    async def without_v1(http: Request) -> None:
        raise NotFound(f"There is no {http.url.path}: the base URL of the API ends with /v1.")

    for path in _WITHOUT_V1:
        api.add_api_route(path, without_v1, methods=_METHODS)

"""Health and metrics, for monitoring: `/health/live`, `/health/ready` and `/metrics`."""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from prometheus_client import generate_latest

from thumbwise.accounts.principal import require

if TYPE_CHECKING:
    from thumbwise.serving.assistant import Assistant


def router(assistant: Assistant) -> APIRouter:
    """Return the routes of `assistant` for monitoring."""
    routes = APIRouter()
    methods = ["GET", "HEAD"]  # many monitors send HEAD

    @routes.api_route("/health/live", methods=methods)
    async def live() -> dict[str, str]:
        return {"status": "alive", "sqlite": sqlite3.sqlite_version}

    @routes.api_route("/health/ready", methods=methods)
    async def ready() -> JSONResponse:
        status = assistant.status()
        detail, warning = (said.partition("\n")[0] for said in (status.detail, status.warning))  # not vLLM's log
        body: dict[str, Any] = {"ready": status.ready, "detail": detail, "warning": warning}
        body |= {"stable": assistant.versions.stable(), "stable_since": assistant.versions.stable_since()}
        return JSONResponse(body, 200 if status.ready else 503)

    @routes.api_route("/metrics", methods=methods)
    async def metrics(request: Request) -> Response:
        if not assistant.who.local:
            require(request, "operator")
        assistant.metrics.ready.set(assistant.status().ready)
        assistant.metrics.engines.set(assistant.engine.answering if assistant.engine else 0)
        return Response(generate_latest(assistant.metrics.registry), media_type="text/plain; version=0.0.4")

    return routes

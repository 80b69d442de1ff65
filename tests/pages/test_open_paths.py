"""Without a login nothing answers except the open paths, also nothing of Gradio."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
from fastapi import FastAPI
from starlette.routing import BaseRoute, Mount
from team import team

from thumbwise import pages
from thumbwise.serving.guard import OPEN, is_open

HTML = {"accept": "text/html"}


def paths(app: FastAPI) -> Iterator[tuple[str, str]]:
    """Every method and path that the application has, also those of Gradio; a parameter is `x`."""

    def walk(routes: list[BaseRoute], before: str) -> Iterator[tuple[str, str]]:
        for route in routes:
            if isinstance(route, Mount):
                yield from walk(list(route.routes or []), before + route.path)
                continue
            for method in getattr(route, "methods", None) or {"GET"}:
                yield method, re.sub(r"\{[^}]*\}", "x", before + route.path)  # type: ignore[attr-defined]

    yield from walk(app.routes, "")


async def test_without_a_login_nothing_answers_but_the_open_paths(tmp_path: Path) -> None:
    """Both ways: every route is open or refused, and every open path has a route of ours."""
    async with team(tmp_path) as here, here.client() as nobody:
        app = here.transport.app
        assert isinstance(app, FastAPI)
        found = set(paths(app))
        assert len(found) > 60
        assert any(path.startswith("/gradio_api/queue/") for _, path in found)
        for method, path in sorted(found):
            if not is_open(path):
                answer = await nobody.request(method, path)
                assert answer.status_code in (401, 404), (method, path, answer.status_code)
                if answer.status_code == 404:  # the guard refuses Gradio's own posts before it asks who is there
                    assert path.startswith("/gradio_api/")
                    assert method not in ("GET", "HEAD")
        ours = {path for _, path in paths_of_ours(app)}
        assert ours >= OPEN
        for path in sorted(OPEN):
            answer = await nobody.get(path, headers=HTML)
            assert "gradio" not in answer.text.lower(), path


def paths_of_ours(app: FastAPI) -> Iterator[tuple[str, str]]:
    inner = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    inner.router.routes = [route for route in app.routes if not isinstance(route, Mount)]
    yield from paths(inner)


async def test_gradio_asks_who_is_there_by_itself(tmp_path: Path) -> None:
    """Should the guard ever let a request through, Gradio still refuses it."""
    async with team(tmp_path) as here:
        assert pages.mount_options("accounts")["auth_dependency"] is not None
        assert pages.mount_options()["auth_dependency"] is None
        app: Any = here.transport.app
        (gradio,) = (route.app for route in app.routes if isinstance(route, Mount) and route.path == "")

        async def bare(scope: Any, receive: Any, send: Any) -> None:
            await gradio({**scope, "state": {}}, receive, send)

        async with httpx.AsyncClient(transport=httpx.ASGITransport(bare), base_url="http://127.0.0.1:7860") as nobody:
            for path in ("/", "/compare", "/config", "/gradio_api/info", "/gradio_api/queue/data?session_hash=x"):
                assert (await nobody.get(path)).status_code == 401, path

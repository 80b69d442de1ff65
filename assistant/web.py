"""The FastAPI application around an assistant: API and pages. Only this file imports both."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import gradio as gr
from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

from thumbwise import __version__, account_pages
from thumbwise.account_pages.consent import ConsentFirst
from thumbwise.accounts.browsers import Cookies
from thumbwise.api import forgetting, health, ops, own_keys, public
from thumbwise.pages import build, mount_options, routes
from thumbwise.serving import responses
from thumbwise.serving.guard import Guard

if TYPE_CHECKING:
    from thumbwise.serving.assistant import Assistant


def create_api(assistant: Assistant) -> FastAPI:
    """Return the application without its pages: guard, API, health and metrics."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await assistant.start()
        yield
        await assistant.stop()

    app = FastAPI(title="Thumbwise", version=__version__, lifespan=lifespan, openapi_url=None)
    app.add_middleware(CORSMiddleware)  # allows nobody; if the parent has one, Gradio does not add its own
    if assistant.who.local:  # others are told apart by their accounts
        app.add_middleware(Cookies, browsers=assistant.browsers)
    app.add_middleware(ConsentFirst, assistant=assistant)
    app.add_middleware(Guard, who=assistant.who)
    responses.install(app)
    app.include_router(public.router(assistant))
    app.include_router(ops.router(assistant))
    app.include_router(forgetting.router(assistant))
    app.include_router(own_keys.router(assistant))
    app.include_router(health.router(assistant))
    app.include_router(account_pages.routes(assistant))
    return app


def create_app(assistant: Assistant) -> FastAPI:
    """Return the whole application: the API, and the pages at `/` and `/compare`."""
    api = create_api(assistant)
    api.mount("/pages", routes(assistant))
    auth = assistant.settings.auth
    app: FastAPI = gr.mount_gradio_app(api, build(auth), path="/", **mount_options(auth))
    return app

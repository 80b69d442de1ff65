"""The web pages: chat at `/`, side-by-side comparison at `/compare`, as one Gradio application.

Gradio lays the pages out. What they show and do goes by routes of our own below `/pages`, which the scripts
here ask: Gradio has no events, so that it keeps nothing of a page that was closed, and renders nothing again
for each word of a reply. What a browser shows is always a copy of what the database holds; what it sends is
never believed. Left out: accounts, rating queues and the operator's pages.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import gradio as gr
from fastapi import APIRouter, FastAPI

from thumbwise.pages.chat import ChatPage, place_chat
from thumbwise.pages.compare import ComparePage, place_compare
from thumbwise.pages.feed import Watch
from thumbwise.pages.look import head, theme
from thumbwise.pages.security import PageHeaders, middleware
from thumbwise.serving import responses

if TYPE_CHECKING:
    from thumbwise.serving.assistant import Assistant


def build() -> gr.Blocks:
    """Return the Blocks application with the layout of both pages."""
    # Gradio says so of every application with two pages, also where server-side rendering was never asked for.
    warnings.filterwarnings("ignore", message="SSR mode is not supported")
    with gr.Blocks(title="Thumbwise", analytics_enabled=False, fill_width=True) as demo:
        place_chat()
    with demo.route("Compare", "/compare", show_in_navbar=False):
        place_compare()
    demo.queue(api_open=False)
    # Gradio looks a thousand times a second for events, a hundred times for their progress. There are none.
    demo._queue.sleep_when_free = demo._queue.progress_update_sleep_when_free = 1.0  # seconds
    return demo


def routes(assistant: Assistant) -> FastAPI:
    """Return the application below `/pages`, bound to one assistant: what the scripts of the pages ask."""
    app = FastAPI(openapi_url=None)
    app.add_middleware(PageHeaders)
    responses.install(app)
    router, watch = APIRouter(), Watch(assistant)
    ChatPage(assistant, watch).add_routes(router)
    ComparePage(assistant, watch).add_routes(router)
    app.include_router(router)
    return app


def mount_options() -> dict[str, Any]:
    """Arguments of `gr.mount_gradio_app`: our look, no traces of Gradio's own services, nothing from outside."""
    return {
        "app_kwargs": {"middleware": middleware(), "openapi_url": None},
        "theme": theme(),
        "head": head(),
        "show_error": False,
        "footer_links": [],
        "run_history": False,
        "enable_monitoring": False,
        "ssr_mode": False,
        "pwa": False,
        "mcp_server": False,
        "max_file_size": 1,  # bytes: nothing here takes files, and the upload route cannot be removed
    }

"""The web pages: chat at `/`, side-by-side comparison at `/compare`, as one Gradio application.

What a browser shows is always a copy of what the database holds; what it sends is never believed. Left out:
accounts, rating queues and the operator's pages.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import gradio as gr

from thumbwise.pages.chat import ChatPage
from thumbwise.pages.compare import ComparePage
from thumbwise.pages.look import head, theme
from thumbwise.pages.security import middleware

if TYPE_CHECKING:
    from thumbwise.app import Assistant


def build(assistant: Assistant) -> gr.Blocks:
    """Return the Blocks application with both pages, bound to one assistant."""
    # Gradio says so of every application with two pages, also where server-side rendering was never asked for.
    warnings.filterwarnings("ignore", message="SSR mode is not supported")
    with gr.Blocks(title="Thumbwise", analytics_enabled=False, fill_width=True) as demo:
        ChatPage(assistant).build(demo)
    with demo.route("Compare", "/compare", show_in_navbar=False) as compare:
        ComparePage(assistant).build(compare)
    demo.queue(default_concurrency_limit=32, max_size=256, api_open=False)
    # Gradio looks a thousand times a second for events that wait, which takes a tenth of a core from the model.
    demo._queue.sleep_when_free = 0.02  # seconds
    return demo


def mount_options() -> dict[str, Any]:
    """Arguments of `gr.mount_gradio_app`: our look, no traces of Gradio's own services, nothing from outside."""
    return {
        "app_kwargs": {"middleware": middleware()},
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

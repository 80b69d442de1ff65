"""The web pages: chat at `/`, side-by-side comparison at `/compare`, as one Gradio application.

Gradio only lays the pages out. Their scripts call our own routes below `/pages`. Gradio has no events here. So it keeps
nothing of a page that was closed, and renders nothing again for each word of a reply.

Who holds what, and which answer still counts:

1. The database holds everything that a page shows. Every page can be built again from its rows at any time.
2. The browser holds only what it shows: a conversation or a comparison. It names this in each request. The server
   believes no such name: it checks in the database that the row belongs to the asker.
3. The server holds only replies that are being written, each in a task of its own. A page that is loaded again follows
   the same reply. The stored row replaces it at the end. (Of a temporary chat there is no row; see `temporary`.)
4. An epoch is the time in which a page shows one thing. It ends when the reader opens another conversation, and when a
   new message or comparison is shown. An answer is shown only in the epoch of its request, so a late answer never turns
   the page back.
5. `feed.SERVER` names one run of the server. A page that meets another one loads itself again.
6. With accounts a page is one person's. Its script names the account in each request, and the server refuses it if
   somebody else is logged in now. What was typed is kept in the browser under the account's id.

Left out: rating queues and the operator's pages.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import gradio as gr
from fastapi import APIRouter, Depends, FastAPI, Request

from thumbwise.pages.chat import ChatPage, place_chat
from thumbwise.pages.compare import ComparePage, place_compare
from thumbwise.pages.feed import Watch
from thumbwise.pages.look import head, theme
from thumbwise.pages.security import PageHeaders, middleware, same_person
from thumbwise.pages.top import account_of
from thumbwise.serving import responses

if TYPE_CHECKING:
    from thumbwise.accounts.principal import Principal
    from thumbwise.serving.assistant import Assistant
    from thumbwise.settings.access import Auth


def build(auth: Auth = "local") -> gr.Blocks:
    """Return the Blocks application with the layout of both pages. All people get the same one."""
    # Gradio warns about this in every application with two pages, also without server-side rendering.
    warnings.filterwarnings("ignore", message="SSR mode is not supported")
    with gr.Blocks(title="Thumbwise", analytics_enabled=False, fill_width=True) as demo:
        place_chat(auth)
    with demo.route("Compare", "/compare", show_in_navbar=False):
        place_compare(auth)
    demo.queue(api_open=False)
    # Gradio looks for events a thousand times a second, and for their progress a hundred times. There are none.
    demo._queue.sleep_when_free = demo._queue.progress_update_sleep_when_free = 1.0  # seconds
    return demo


def routes(assistant: Assistant) -> FastAPI:
    """Return the application below `/pages`, for the scripts of the pages of one assistant."""
    app = FastAPI(openapi_url=None)
    app.add_middleware(PageHeaders, more={"Cache-Control": "no-store"})  # each answer is one person's
    responses.install(app)
    router, watch = APIRouter(), Watch(assistant)
    router.add_api_route("/account", account_of)
    ChatPage(assistant, watch).add_routes(router)
    ComparePage(assistant, watch).add_routes(router)
    app.include_router(router, dependencies=[Depends(same_person)])
    return app


def mount_options(auth: Auth = "local") -> dict[str, Any]:
    """Return the arguments of `gr.mount_gradio_app`: our look, none of Gradio's services, nothing from other hosts.

    With accounts every route of Gradio that knows logins asks who is there, for each request.
    """
    return {
        "auth_dependency": None if auth == "local" else _account,
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
        "max_file_size": 1,  # bytes: no page takes files, and the upload route cannot be removed
    }


def _account(request: Request) -> str | None:
    """Return who sends a request, for Gradio; None for nobody, whom the guard has refused before."""
    principal: Principal | None = request.scope["state"].get("principal")
    return None if principal is None else principal.account or principal.name

"""The top of both pages: the name, the link to the other page, the version that answers, the state of the engine.

With accounts it has a menu too. The sentence at the bottom of both pages, about what is stored, is here as well.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import gradio as gr
from fastapi import Request

from thumbwise.accounts.principal import principal_of
from thumbwise.pages.look import THUMB, html
from thumbwise.pages.markup import escape, short

if TYPE_CHECKING:
    from thumbwise.serving.assistant import Assistant
    from thumbwise.settings.access import Auth

_LINKS = (("/", "Chat"), ("/compare", "Compare"))
"""Paths and names of the pages. Links are relative, because the assistant may be below a path (`public_url`)."""
_TITLES = {
    "restarting": "The engine is restarting",
    "failed": "The engine has failed",
    "stopped": "The engine is stopped",
}
_HERE = (
    "Chats and votes of this machine’s users are stored here, on this machine, and used for training: "
    '<a href="me">My data</a>.'
)
_YOURS = 'You choose what is kept of your chats and votes, and whether training uses it: <a href="me">My data</a>.'


@dataclass(frozen=True)
class Top:
    """The changing part of the top. A page gets it whenever it has changed."""

    version: str
    ready: bool
    title: str
    detail: str
    warning: str

    def chip(self) -> str:
        """Return the version that answers, as HTML."""
        name = escape(self.version)
        return (
            f'<span class="tw-chip" data-version="{name}" data-ready="{str(self.ready).lower()}" '
            f'title="The policy version that answers now: {name}"><i></i>'
            f'<span class="tw-sr">Answering: </span>{escape(short(self.version))}</span>'
        )

    def banner(self) -> str:
        """Return what keeps the reader from getting a reply, as HTML, or nothing."""
        waiting = "failed" if self.title == _TITLES["failed"] else "waiting"
        return ("" if self.ready else _banner("status", waiting, self.title, self.detail)) + (
            _banner("alert", "warning", "Something is not as it should be", self.warning) if self.warning else ""
        )


def _banner(role: str, state: str, title: str, detail: str) -> str:
    words = f"<b>{escape(title)}</b><span>{escape(detail)}</span>"
    return f'<div class="tw-banner" role="{role}" data-state="{state}"><i></i><div>{words}</div></div>'


def read_top(assistant: Assistant, user: str = "", conversation_id: str | None = None) -> Top:
    """Return what the top of a page should say now to `user`. Without a conversation it names the stable version."""
    status = assistant.status()
    detail = status.detail.partition("\n")[0]  # the lines after it are from vLLM's log, for the operator
    state = assistant.engine.state if assistant.engine is not None else "starting"
    title = "Goodbye" if assistant.admission.draining else _TITLES.get(state, "The engine is starting")
    pointer = assistant.versions.pointer()
    version = pointer.version_for(user, conversation_id) if conversation_id else pointer.stable
    return Top(version, status.ready, title, detail, status.warning.partition("\n")[0])


def top_of(assistant: Assistant, user: str, conversation_id: str | None = None) -> dict[str, Any]:
    """Return what the script puts at the top of the chat page."""
    now = read_top(assistant, user, conversation_id)
    return {"chip": now.chip(), "banner": now.banner(), "ready": now.ready}


def blind_top_of(assistant: Assistant) -> dict[str, Any]:
    """Return the same for the comparison page, without the version: nothing there may hint at a version."""
    now = read_top(assistant)
    return {"banner": now.banner(), "ready": now.ready}


def account_of(request: Request) -> dict[str, Any]:
    """Return what a page gets of who looks at it: nothing in `local`, where there is no login."""
    principal = principal_of(request)
    if principal.account is None:
        return {}
    name, first = escape(principal.name), escape(principal.name[:1])
    role = "" if principal.role == "user" else f"<span>{principal.role.capitalize()}</span>"
    out = '<form method="post" action="logout"><button>Log out</button></form>' if principal.session else ""
    return {
        "account": {
            "id": principal.account,
            "menu": (
                f'<details class="tw-menu"><summary aria-label="Account of {name}"><i aria-hidden="true">{first}</i>'
                f'<span class="tw-who">{name}</span></summary><div class="tw-menu-list">'
                f'<p dir="auto"><b>{name}</b>{role}</p><a href="me">My data</a>{out}</div></details>'
            ),
        }
    }


def place_top(here: str, auth: Auth) -> None:
    """Place the header of the page at path `here`. The script fills in chip, account menu and banner."""
    links = "".join(
        f'<a href=".{path}"{" aria-current=page" if path == here else ""}>{name}</a>' for path, name in _LINKS
    )
    with gr.Row(elem_id="tw-top"):
        html(f'<a class="tw-name" href="./" aria-label="Thumbwise">{THUMB}<b>Thumbwise</b></a>', elem_id="tw-brand")
        html(f'<nav aria-label="Pages">{links}</nav>', elem_id="tw-nav")
        if here == "/":
            html(elem_id="tw-version")
        if auth != "local":
            html(elem_id="tw-account")
    html(elem_id="tw-banner")


def what_is_stored(auth: Auth) -> str:
    """Return the sentence about what is stored, as HTML. Without accounts nobody can choose."""
    return f'<p class="tw-stored">{_HERE if auth == "local" else _YOURS}</p>'

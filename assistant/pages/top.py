"""What both pages have at the top: the name, the way to the other page, who answers, and how the engine is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import gradio as gr

from thumbwise.feedback.records import LOCAL_USER
from thumbwise.pages.look import THUMB, html
from thumbwise.pages.markup import escape, short

if TYPE_CHECKING:
    from thumbwise.app import Assistant

WAITING_SECONDS = 1.0  # between two looks at an engine that is not ready
READY_SECONDS = 8.0
PRIVATE: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
"""For every event of the pages: not part of any API, and no veil over what is being updated."""

_LINKS = (("/", "Chat"), ("/compare", "Compare"))
_TITLES = {
    "restarting": "The engine is restarting",
    "failed": "The engine has failed",
    "stopped": "The engine is stopped",
}
STORED = (
    '<p class="tw-stored">Chats and votes of this machine’s users are stored here, on this machine, '
    "and used for training.</p>"
)


@dataclass(frozen=True)
class Shown:
    """What the top of a page says; two equal ones need no update."""

    version: str
    ready: bool
    title: str
    detail: str
    warning: str

    def chip(self) -> str:
        """The version that answers."""
        name = escape(self.version)
        return (
            f'<span class="tw-chip" data-version="{name}" data-ready="{str(self.ready).lower()}" '
            f'title="The policy version that answers now: {name}"><i></i>'
            f'<span class="tw-sr">Answering: </span>{escape(short(self.version))}</span>'
        )

    def banner(self) -> str:
        """What stands between the reader and a reply, or nothing."""
        waiting = "failed" if self.title == _TITLES["failed"] else "waiting"
        return ("" if self.ready else _banner("status", waiting, self.title, self.detail)) + (
            _banner("alert", "warning", "Something is not as it should be", self.warning) if self.warning else ""
        )


def _banner(role: str, state: str, title: str, detail: str) -> str:
    words = f"<b>{escape(title)}</b><span>{escape(detail)}</span>"
    return f'<div class="tw-banner" role="{role}" data-state="{state}"><i></i><div>{words}</div></div>'


def shown(assistant: Assistant, conversation_id: str | None = None) -> Shown:
    """Read what the top of a page should say now; a conversation that is not begun yet has the stable version's."""
    status = assistant.status()
    state = assistant.engine.state if assistant.engine is not None else "starting"
    title = "Goodbye" if assistant.load.stopping else _TITLES.get(state, "The engine is starting")
    pointer = assistant.versions.pointer()
    version = pointer.version_for(LOCAL_USER, conversation_id) if conversation_id else pointer.stable
    return Shown(version, status.ready, title, status.detail, status.warning)


@dataclass(frozen=True)
class Top:
    """The components of the top; `update` returns their new values."""

    chip: gr.HTML | None
    banner: gr.HTML
    timer: gr.Timer

    def update(self, now: Shown) -> dict[Any, Any]:
        """Gradio updates that show `now`, and look again sooner while the engine is not ready."""
        updates = {
            self.banner: now.banner(),
            self.timer: gr.update(value=READY_SECONDS if now.ready else WAITING_SECONDS),
        }
        return updates if self.chip is None else {**updates, self.chip: now.chip()}

    @property
    def outputs(self) -> list[Any]:
        """The components that `update` names."""
        return [part for part in (self.chip, self.banner, self.timer) if part is not None]


def make_top(here: str) -> Top:
    """Place the header of the page at path `here`, empty until the page has loaded.

    The comparison page does not say who answers: nothing there may hint at a draft's version.
    """
    links = "".join(
        f'<a href="{path}"{" aria-current=page" if path == here else ""}>{name}</a>' for path, name in _LINKS
    )
    with gr.Row(elem_id="tw-top"):
        html(f'<a class="tw-name" href="/" aria-label="Thumbwise">{THUMB}<b>Thumbwise</b></a>', elem_id="tw-brand")
        html(f'<nav aria-label="Pages">{links}</nav>', elem_id="tw-nav")
        chip = html(elem_id="tw-version") if here == "/" else None
    return Top(chip, html(elem_id="tw-banner"), gr.Timer(WAITING_SECONDS))

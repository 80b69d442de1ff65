"""The comparison page, for its script `compare.js`: two drafts of one prompt, blind until the vote.

Until the vote is stored, the browser gets the texts and the comparison's id, and nothing else. Which version wrote
which draft stays on the server. What the browser and the server hold is explained in `thumbwise.pages`. Left out: more
than two drafts, follow-up turns.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import gradio as gr
from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict
from starlette.responses import Response

from thumbwise.accounts.principal import asker_of
from thumbwise.contracts import Message
from thumbwise.errors import NotFound, ThumbwiseError
from thumbwise.feedback.records import Asker, FeedbackRequest, StoredComparison, new_id
from thumbwise.pages import live as timing
from thumbwise.pages.feed import Piece, Watch, feed
from thumbwise.pages.live import Live
from thumbwise.pages.look import THUMB, html
from thumbwise.pages.markup import escape, render, render_once, short
from thumbwise.pages.prompts import COMPARE
from thumbwise.pages.security import Id, login_holds
from thumbwise.pages.top import account_of, blind_top_of, place_top, what_is_stored

if TYPE_CHECKING:
    from thumbwise.serving.assistant import Assistant
    from thumbwise.settings.access import Auth

Pair = tuple[str, str]

_ASK = "Two drafts of one answer, side by side. You say which helps more; that is what the next version learns from."
# (element id, label), in the order of the bar; compare.js has the choice of each
VOTES = (
    ("tw-much-1", "1 is much better"),
    ("tw-better-1", "1 is better"),
    ("tw-same", "About the same"),
    ("tw-better-2", "2 is better"),
    ("tw-much-2", "2 is much better"),
    ("tw-both-bad", "Both bad"),
    ("tw-skip", "Skip"),
)
_CHOSE = {
    "left": "You preferred draft 1.",
    "right": "You preferred draft 2.",
    "tie": "You found them about the same.",
    "both_bad": "You found both bad.",
    "skip": "You skipped this one.",
}


class Open(BaseModel):
    """A prompt to compare on."""

    model_config = ConfigDict(extra="forbid")
    text: str


class Vote(BaseModel):
    """A vote on the two drafts."""

    model_config = ConfigDict(extra="forbid")
    comparison: Id
    choice: Literal["left", "right", "tie", "both_bad", "skip"]
    strength: Literal[1, 2] = 1


class ComparePage:
    """The page at `/compare`."""

    def __init__(self, assistant: Assistant, watch: Watch) -> None:
        self.assistant, self.watch = assistant, watch
        self.store = assistant.store
        self.live: dict[str, Live[Pair]] = {}  # drafts that are being written, by comparison id

    def add_routes(self, router: APIRouter) -> None:
        """Add the routes that the script calls."""

        @router.get("/compare")
        async def page(request: Request, c: Id | None = None) -> dict[str, Any]:
            """Return the comparison `c`, or an empty page, and prompts to suggest one after the other."""
            stored = await self._stored(asker_of(request).user, c)
            if stored is not None and _state(stored)[0] == "failed":
                stored = None
            first = random.randrange(len(COMPARE))
            prompts = [*COMPARE[first:], *COMPARE[:first]]
            return {**await self._page(stored), "prompts": prompts, **account_of(request)}

        @router.post("/compare/comparisons")
        async def open_(request: Request, body: Open) -> dict[str, Any]:
            who = asker_of(request)
            return await self._page(await self._stored(who.user, await self._open(who, body.text)))

        @router.post("/compare/votes")
        async def vote(request: Request, body: Vote) -> dict[str, Any]:
            """Store the vote, then reveal the versions."""
            who, value = asker_of(request), {"choice": body.choice, "strength": body.strength}
            asked = FeedbackRequest(kind="pair", comparison_id=body.comparison, value=value)
            await self.store.run(self.assistant.vote, who, new_id("page"), asked)
            return await self._page(await self._stored(who.user, body.comparison))

        @router.get("/compare/events")
        async def events(request: Request, follow: Id | None = None) -> Response:
            pieces = self._pieces(asker_of(request).user, follow)
            return feed(self.watch, lambda: blind_top_of(self.assistant), pieces, login_holds(self.assistant, request))

    # -- what the page shows -------------------------------------------------------------------------

    async def _stored(self, user: str, comparison_id: str | None) -> StoredComparison | None:
        """Return the comparison, or None if this user has no comparison of two drafts with this id."""
        if comparison_id is None:
            return None
        try:
            found = await self.store.run(self.store.comparison, comparison_id, user)
        except NotFound:
            return None
        return found if len(found.drafts) == 2 else None

    async def _page(self, stored: StoredComparison | None) -> dict[str, Any]:
        """Return everything about the comparison. It names versions only after the vote."""
        state, said = _state(stored)
        votes = (await self.store.run(self.store.counts))["untied_pairs"] if state == "voted" else 0
        stage = await asyncio.to_thread(_stage, stored) if stored else ""
        id_ = stored.id if stored else None
        return {
            "comparison": id_, "query": f"c={id_}" if id_ else "", "state": state, "said": said, "stage": stage,
            "result": self._result(stored, votes),
            "events": "/pages/compare/events" + (f"?follow={id_}" if state == "streaming" else ""),
        }  # fmt: skip

    def _result(self, stored: StoredComparison | None, votes: int) -> str:
        """Return the result of the vote with the versions, or why the drafts failed. It is empty before that."""
        state, said = _state(stored)
        if stored is None or state not in ("voted", "failed"):
            return ""
        if state == "failed":
            return f'<p class="tw-failed">{escape(said)}</p>'
        names = [short(draft.policy_version) for draft in stored.drafts]
        who = f"Both drafts are by {names[0]}." if names[0] == names[1] else f"1 is by {names[0]}, 2 by {names[1]}."
        need = self.assistant.settings.train.min_votes
        saved = f"Saved. {votes} vote{'' if votes == 1 else 's'} so far; "
        saved += "the next training run learns from them." if votes >= need else f"training needs {need}."
        if stored.choice in ("tie", "both_bad"):
            saved = f"Saved. Only votes with a winner count towards training; there are {votes} so far."
        if stored.choice == "skip":
            saved = "Skipped: nothing is learned from it."
        chose = _CHOSE.get(stored.choice or "", "")
        return (
            f'<div class="tw-thanks">{THUMB}<div><b>{escape(saved)}</b><span>{chose} {escape(who)}</span></div></div>'
        )

    async def _pieces(self, user: str, comparison_id: str | None) -> AsyncGenerator[Piece, None]:
        """Yield the drafts as they grow, and then the page with both of them."""
        stored = await self._stored(user, comparison_id)
        if stored is None:
            return
        live = self.live.get(stored.id)
        if live is not None:
            async with aclosing(live.follow()) as frames:
                async for frame in frames:
                    yield ("frame", {"parts": frame}) if frame is not None else ("", None)
        yield "end", await self._page(await self._ended(stored, live))

    async def _ended(self, stored: StoredComparison, live: Live[Pair] | None) -> StoredComparison:
        """Return the comparison with both drafts ended, once their ends are stored."""
        give_up = time.monotonic() + timing.END_SECONDS
        while _state(stored)[0] == "streaming" and time.monotonic() < give_up:
            stored = await self.store.run(self.store.comparison, stored.id, stored.user_id)
            if _state(stored)[0] == "streaming":
                await asyncio.sleep(0.05)
        if _state(stored)[0] == "streaming":  # an end was not stored
            why = (live and live.error) or "The end of the drafts is not stored yet: load the page again."
            drafts = [replace(draft, state="failed", error=why) for draft in stored.drafts]
            stored = replace(stored, drafts=tuple(drafts))
        return stored

    # -- opening -------------------------------------------------------------------------------------

    async def _open(self, who: Asker, text: str) -> str:
        """Start a comparison and its drafts. Return its id."""
        if not text.strip():
            raise ThumbwiseError("Write a prompt first, or choose one of the suggestions.")
        self.assistant.consents.require_chats(who.user)
        messages = [Message(role="user", content=text)]
        opened = await self.assistant.comparisons.open(who, messages, 2, None, source="page")

        async def frames() -> AsyncGenerator[Pair, None]:
            async with aclosing(self.assistant.comparisons.stream(opened, who)) as drafts:
                async for left, right in drafts:
                    yield left, right

        id_ = opened.comparison_id
        live = self.live[id_] = Live(frames(), ("", ""), self.assistant.spawn, _render_pair)
        live.task.add_done_callback(lambda task: self.live.pop(id_, None))
        return id_


def place_compare(auth: Auth) -> None:
    """Place the components of the comparison page. compare.js fills them and handles the buttons."""
    gr.Navbar(visible=False)
    place_top("/compare", auth)
    with gr.Column(elem_id="tw-compare"):
        html(f'<div class="tw-intro">{THUMB}<h1>Which draft is better?</h1><p>{_ASK}</p></div>', elem_id="tw-intro")
        html(elem_id="tw-examples")
        html(elem_id="tw-stage")
        with gr.Row(elem_id="tw-after"):
            html(elem_id="tw-result")
            gr.Button("Next", variant="primary", elem_id="tw-next", min_width=0)
    with gr.Column(elem_id="tw-votes"):
        with gr.Row(elem_id="tw-scale"):
            for id_, label in VOTES[:5]:
                gr.Button(label, elem_id=id_, elem_classes="tw-vote", min_width=0)
        with gr.Row(elem_id="tw-other"):
            for id_, label in VOTES[5:]:
                gr.Button(label, elem_id=id_, elem_classes="tw-vote", min_width=0)
    with gr.Row(elem_id="tw-composer"):
        gr.Textbox(
            label="Prompt", show_label=False, placeholder="Your own prompt", container=False,
            lines=1, max_lines=6, scale=1, elem_id="tw-box",
        )  # fmt: skip
        gr.Button("Compare", variant="primary", elem_id="tw-go", min_width=0)
    html(what_is_stored(auth), elem_id="tw-stored")


def _stage(stored: StoredComparison) -> str:
    """Return the prompt and the two drafts, with their versions after the vote."""
    prompt = f'<div id="tw-prompt"><p dir="auto">{escape(stored.prompt[-1]["content"])}</p></div>'
    drafts = []
    for number, draft in enumerate(stored.drafts, start=1):
        version = draft.policy_version if stored.choice else ""
        head = _head(number, version, won=stored.choice == ("left", "right")[number - 1])
        text = "" if draft.state == "streaming" else render(draft.text)
        drafts.append(
            f'<section id="tw-draft-{number}" class="tw-draft">{head}'
            f'<div class="tw-text tw-draft-text" data-testid="markdown" dir="auto">{text}</div></section>'
        )
    return f'{prompt}<div id="tw-drafts">{"".join(drafts)}</div>'


def _head(number: int, version: str = "", won: bool = False) -> str:
    by = f'<span class="tw-by" title="{escape(version)}">{escape(short(version))}</span>' if version else ""
    mark = f'<span class="tw-won">{THUMB}<span class="tw-sr">preferred</span></span>' if won else ""
    return f'<div class="tw-head"><h2>Draft {number}</h2>{mark}{by}</div>'


def _render_pair(pair: Pair) -> list[str]:
    return [render_once(text) for text in pair]


def _state(stored: StoredComparison | None) -> tuple[str, str]:
    """Return the page's state for the style sheet and the tests, and a sentence for screen readers."""
    if stored is None:
        return "idle", ""
    if stored.choice is not None:
        return "voted", "Your vote is saved."
    states = {draft.state for draft in stored.drafts}
    if states & {"failed", "stopped"}:
        errors = [draft.error for draft in stored.drafts if draft.error]
        return "failed", f"The drafts could not be finished. {errors[0] if errors else ''}".strip()
    if "streaming" in states:
        return "streaming", "Two drafts are being written."
    return "ready", "Both drafts are finished. Which is better? Keys 1 to 5 vote, B is both bad, S skips."

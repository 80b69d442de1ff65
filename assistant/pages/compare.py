"""The comparison page: two drafts of one prompt, blind until the vote.

Which version wrote which draft stays on the server until the vote is stored; before that the browser gets
the texts, the comparison's id and nothing else. A reload opens the comparison again from the database. Left
out: more than two drafts, follow-up turns.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import gradio as gr

from thumbwise.contracts import Message
from thumbwise.errors import NotFound, ThumbwiseError
from thumbwise.feedback.records import LOCAL_USER, FeedbackRequest, StoredComparison
from thumbwise.pages.live import Live
from thumbwise.pages.look import THUMB, html
from thumbwise.pages.markup import escape, markdown, short
from thumbwise.pages.prompts import COMPARE
from thumbwise.pages.top import PRIVATE, STORED, Shown, make_top, shown
from thumbwise.pages.view import WAITING, status_html

if TYPE_CHECKING:
    from thumbwise.app import Assistant

Updates = dict[Any, Any]
Pair = tuple[str, str]
EXAMPLES = 4  # suggested prompts shown at once

_ASK = "Two drafts of one answer, side by side. You say which helps more; that is what the next version learns from."
# (key, element id, label, choice, strength), in the order of the bar
VOTES = (
    ("1", "tw-much-1", "1 is much better", "left", 2),
    ("2", "tw-better-1", "1 is better", "left", 1),
    ("3", "tw-same", "About the same", "tie", 1),
    ("4", "tw-better-2", "2 is better", "right", 1),
    ("5", "tw-much-2", "2 is much better", "right", 2),
    ("B", "tw-both-bad", "Both bad", "both_bad", 1),
    ("S", "tw-skip", "Skip", "skip", 1),
)
_CHOSE = {
    "left": "You preferred draft 1.",
    "right": "You preferred draft 2.",
    "tie": "You found them about the same.",
    "both_bad": "You found both bad.",
    "skip": "You skipped this one.",
}


@dataclass
class CompareView:
    """What one open page shows, kept on the server. The comparison itself is in the database."""

    comparison_id: str | None = None
    state: str = "loading"  # what the page last said of the comparison
    epoch: int = 0  # grows when the page turns to another comparison, which ends an older follower
    suggestion: int = -1  # which prompt is suggested next; drawn when the page is loaded
    top: Shown | None = None
    cookie: str = ""  # of the browser that loaded the page


class ComparePage:
    """The page at `/compare`."""

    def __init__(self, assistant: Assistant) -> None:
        self.assistant = assistant
        self.store = assistant.store
        self.live: dict[str, Live[Pair]] = {}  # drafts that are being written, by comparison

    # -- layout --------------------------------------------------------------------------------------

    def build(self, demo: gr.Blocks) -> None:
        """Place the components and bind the events."""
        gr.Navbar(visible=False)
        self.view = gr.State(CompareView())
        self.top = make_top("/compare")
        with gr.Column(elem_id="tw-compare"):
            self.intro = html(f'<div class="tw-intro">{THUMB}<h1>Which draft is better?</h1><p>{_ASK}</p></div>')
            with gr.Row(elem_id="tw-examples") as self.examples:
                self.example_buttons = [gr.Button("", elem_classes="tw-example") for _ in range(EXAMPLES)]
            self.prompt = html(elem_id="tw-prompt")
            with gr.Row(elem_id="tw-drafts", visible=False) as self.drafts:
                columns = [_draft_column(number) for number in (1, 2)]
            self.heads, self.texts = [head for head, _ in columns], [text for _, text in columns]
            with gr.Row(elem_id="tw-after"):
                self.result = html(elem_id="tw-result")
                self.next = gr.Button("Next", variant="primary", elem_id="tw-next", visible=False, min_width=0)
        with gr.Column(elem_id="tw-votes", visible=False) as self.bar:
            with gr.Row(elem_id="tw-scale"):
                scale = [_vote_button(vote) for vote in VOTES[:5]]
            with gr.Row(elem_id="tw-other"):
                other = [_vote_button(vote) for vote in VOTES[5:]]
            self.buttons = [*scale, *other]
        with gr.Row(elem_id="tw-composer") as self.composer:
            self.box = gr.Textbox(
                label="Prompt", show_label=False, placeholder="Your own prompt", container=False,
                lines=1, max_lines=6, scale=1, elem_id="tw-box",
            )  # fmt: skip
            self.go = gr.Button("Compare", variant="primary", elem_id="tw-go", min_width=0)
        html(STORED, elem_id="tw-stored")
        self.status = html(status_html("loading", "", ""), elem_id="tw-status")
        self._bind(demo)

    def _bind(self, demo: gr.Blocks) -> None:
        page = [
            self.intro, self.examples, self.prompt, self.drafts, *self.heads, *self.texts, self.bar, *self.buttons,
            self.result, self.next, self.composer, self.status, self.go, *self.top.outputs,
        ]  # fmt: skip

        def bound(inputs: list[Any], outputs: list[Any], **more: Any) -> dict[str, Any]:
            return {**PRIVATE, "inputs": inputs, "outputs": outputs, "concurrency_limit": None, **more}

        demo.load(self._load, **bound([self.view], [*page, *self.example_buttons]))
        gr.on([self.box.submit, self.go.click], self._open, **bound([self.box, self.view], [*page, self.box]))
        for number, button in enumerate(self.example_buttons):
            button.click(partial(self._example, number), **bound([self.view], [*page, self.box]))
        self.next.click(partial(self._example, 0), **bound([self.view], [*page, self.box]))
        for vote, button in zip(VOTES, self.buttons, strict=True):
            button.click(partial(self._vote, vote[3], vote[4]), **bound([self.view], page))
        self.top.timer.tick(self._tick, **bound([self.view], [*self.top.outputs, self.go]))

    # -- what the page shows -------------------------------------------------------------------------

    async def _stored(self, view: CompareView) -> StoredComparison | None:
        """The view's comparison, or None where there is none of this user with two drafts."""
        if view.comparison_id is None:
            return None
        try:
            found = await asyncio.to_thread(self.store.comparison, view.comparison_id, LOCAL_USER)
        except NotFound:
            return None
        return found if len(found.drafts) == 2 else None

    async def _page(self, view: CompareView) -> Updates:
        """Everything on the page, from the database."""
        stored = await self._stored(view)
        counts = await asyncio.to_thread(self.store.counts)
        now = view.top = shown(self.assistant)
        live = self.live.get(view.comparison_id or "")
        view.state, said = _state(stored)
        state = view.state
        open_ = stored is not None
        after = state in ("voted", "failed")
        voted = stored.choice if stored else None
        updates: Updates = {
            **self.top.update(now),
            self.intro: gr.update(visible=not open_),
            self.examples: gr.update(visible=not open_),
            self.prompt: _prompt(stored),
            self.drafts: gr.update(visible=open_),
            self.bar: gr.update(visible=open_ and not after),
            self.composer: gr.update(visible=after or not open_),
            self.result: self._result(stored, counts["untied_pairs"]),
            self.next: gr.update(visible=after, value=f"Next: {self._suggested(view)[0]}"),
            self.status: status_html(state, said, f"c={view.comparison_id}" if open_ else ""),
            self.go: gr.update(interactive=now.ready),
        }
        updates |= {button: gr.update(interactive=state == "ready") for button in self.buttons}
        for i, (head, text) in enumerate(zip(self.heads, self.texts, strict=True)):
            version = stored.drafts[i].policy_version if stored and voted else ""
            updates[head] = _head(i + 1, version, won=voted == ("left", "right")[i])
            updates[text] = _draft(live.frame[i] if live else stored.drafts[i].text if stored else "", state)
        return updates

    def _result(self, stored: StoredComparison | None, votes: int) -> str:
        """What became of the vote, and who wrote what: only after it."""
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

    def _suggested(self, view: CompareView) -> list[str]:
        if view.suggestion < 0:
            view.suggestion = random.randrange(len(COMPARE))
        return [COMPARE[(view.suggestion + i) % len(COMPARE)] for i in range(EXAMPLES)]

    async def _followed(self, view: CompareView) -> AsyncGenerator[Updates, None]:
        """Show the drafts that are being written until they end, or until the page turns to others."""
        epoch = view.epoch
        live = self.live.get(view.comparison_id or "")
        if live is not None:
            async with aclosing(live.follow(lambda: view.epoch == epoch)) as frames:
                async for frame in frames:
                    yield {text: _draft(draft, "streaming") for text, draft in zip(self.texts, frame, strict=True)}
        if view.epoch == epoch and view.state == "streaming":
            yield await self._page(view)
            if live is not None and live.error and view.state != "failed":  # it could not even be stored
                gr.Warning(live.error)
        yield {self.go: gr.skip()}  # Gradio sends an event's last update again when the event is over

    # -- opening and voting --------------------------------------------------------------------------

    async def _load(self, view: CompareView, request: gr.Request) -> AsyncGenerator[Updates, None]:
        """Open the comparison that the address names, or an empty page."""
        view.cookie = self.assistant.browsers.text_in(request.cookies)
        view.comparison_id = request.query_params.get("c")
        stored = await self._stored(view)
        if stored is None or (_state(stored)[0] == "failed" and stored.id not in self.live):
            view.comparison_id = None
        updates = await self._page(view)
        suggested = self._suggested(view)
        yield {**updates, **dict(zip(self.example_buttons, suggested, strict=True))}
        async for more in self._followed(view):
            yield more

    async def _example(self, number: int, view: CompareView) -> AsyncGenerator[Updates, None]:
        """Compare on one of our own prompts."""
        async for updates in self._opened(self._suggested(view)[number], view, {}):
            yield updates

    async def _open(self, text: str, view: CompareView) -> AsyncGenerator[Updates, None]:
        """Compare on what is in the box. What cannot be asked stays there, with the reason."""
        async for updates in self._opened(text, view, {self.box: ""}):
            yield updates

    async def _opened(self, text: str, view: CompareView, sent: Updates) -> AsyncGenerator[Updates, None]:
        """Begin a comparison, show `sent` once that is done, and follow its drafts."""
        try:
            if not text.strip():
                raise ThumbwiseError("Write a prompt first, or choose one of the suggestions.")
            messages = [Message(role="user", content=text)]
            asker = self.assistant.browsers.asker(view.cookie)
            opened = await self.assistant.comparisons.open(asker, messages, 2, None, source="page")
        except ThumbwiseError as error:
            gr.Warning(str(error), title="Not sent")
            yield {self.go: gr.skip()}  # without any value Gradio would clear the outputs
            return

        async def frames() -> AsyncGenerator[Pair, None]:
            async with aclosing(self.assistant.comparisons.stream(opened, asker)) as drafts:
                async for left, right in drafts:
                    yield left, right

        id_ = opened.comparison_id
        live = self.live[id_] = Live(frames(), ("", ""), self.assistant.spawn)
        live.task.add_done_callback(lambda task: self.live.pop(id_, None))
        view.comparison_id, view.epoch = id_, view.epoch + 1
        if text in self._suggested(view):
            view.suggestion += self._suggested(view).index(text) + 1
        yield {**sent, **await self._page(view)}
        async for updates in self._followed(view):
            yield updates

    async def _vote(self, choice: str, strength: int, view: CompareView) -> Updates:
        """Store the vote on the comparison that this page shows, then reveal who wrote what."""
        if view.comparison_id is None:
            gr.Warning("There are no drafts to vote on.", title="Not saved")
            return {self.go: gr.skip()}
        value = {"choice": choice, "strength": strength}
        request = FeedbackRequest(kind="pair", comparison_id=view.comparison_id, value=value)
        try:
            asker = self.assistant.browsers.asker(view.cookie)
            await asyncio.to_thread(self.assistant.vote, asker, f"page-{uuid4().hex}", request)
        except ThumbwiseError as error:
            gr.Warning(str(error), title="Not saved")
        return await self._page(view)

    async def _tick(self, view: CompareView) -> Updates:
        now = shown(self.assistant)
        if now == view.top:
            return {self.go: gr.skip()}
        view.top = now
        return {**self.top.update(now), self.go: gr.update(interactive=now.ready)}


def _vote_button(vote: tuple[str, str, str, str, int]) -> gr.Button:
    return gr.Button(vote[2], elem_id=vote[1], elem_classes="tw-vote", interactive=False, min_width=0)


def _draft_column(number: int) -> tuple[gr.HTML, gr.Markdown]:
    with gr.Column(elem_id=f"tw-draft-{number}", elem_classes="tw-draft", min_width=0):
        return html(_head(number)), gr.Markdown(elem_classes="tw-draft-text", sanitize_html=True)


def _head(number: int, version: str = "", won: bool = False) -> str:
    by = f'<span class="tw-by" title="{escape(version)}">{escape(short(version))}</span>' if version else ""
    mark = f'<span class="tw-won">{THUMB}<span class="tw-sr">preferred</span></span>' if won else ""
    return f'<div class="tw-head"><h2>Draft {number}</h2>{mark}{by}</div>'


def _draft(text: str, state: str) -> str:
    return markdown(text) or (WAITING if state == "streaming" else "")


def _prompt(stored: StoredComparison | None) -> str:
    return f"<p>{escape(stored.prompt[-1]['content'])}</p>" if stored else ""


def _state(stored: StoredComparison | None) -> tuple[str, str]:
    """The page's state for style sheet and tests, and a sentence for screen readers."""
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

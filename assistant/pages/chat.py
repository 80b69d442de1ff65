"""The chat page: streaming, stop, conversations, thumbs with a comment.

Handlers work from `View`, which Gradio keeps on the server for one page load, and from the database. What a
browser sends is used for three things only: the words a person typed, which reply was clicked in which
conversation, and which conversation to open; the last two are checked against view and database. Left out:
editing and regenerating, reasons to tick, search.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, Literal

import gradio as gr

from thumbwise.conversation import Turn, check_messages
from thumbwise.errors import Conflict, ThumbwiseError
from thumbwise.feedback.records import LOCAL_USER, MAX_COMMENT, Asker, FeedbackRequest, Reply, new_id
from thumbwise.pages.live import Live
from thumbwise.pages.look import THUMB, html
from thumbwise.pages.markup import escape
from thumbwise.pages.prompts import STARTERS
from thumbwise.pages.top import PRIVATE, STORED, make_top, shown
from thumbwise.pages.view import (
    View,
    bubble,
    excerpt,
    list_html,
    messages_of,
    notes_of,
    prompt_of,
    query_of,
    status_html,
    status_of,
    thumbs_of,
)

if TYPE_CHECKING:
    from thumbwise.app import Assistant

DOUBLE_CLICK_SECONDS = 0.5  # a second click this soon is a double click, not a vote taken back
LISTED = 30  # conversations; older ones by a button
Updates = dict[Any, Any]

_EMPTY = (
    f'<div class="tw-empty">{THUMB}<h1>What can I help with?</h1>'
    "<p>Thumbs on the replies teach the next version of this assistant.</p></div>"
)
_OPEN = """element.addEventListener('click', event => {
  const link = event.target.closest('a[data-open]');
  if (!link || event.ctrlKey || event.metaKey || event.shiftKey || event.button) return;
  event.preventDefault();
  trigger('click', {id: link.dataset.open});
});"""
_QUESTIONS = {"up": "What was good about", "down": "What was wrong with"}


class ChatPage:
    """The page at `/`."""

    def __init__(self, assistant: Assistant) -> None:
        self.assistant, self.browsers, self.store = assistant, assistant.browsers, assistant.store
        self.live: dict[str, Live[str]] = {}  # replies that are being written, by conversation
        self._asking = asyncio.Lock()
        self._voting = asyncio.Lock()  # first come, first stored: the last click is the one that counts

    # -- layout --------------------------------------------------------------------------------------

    def build(self, demo: gr.Blocks) -> None:
        """Place the components and bind the events."""
        gr.Navbar(visible=False)
        with gr.Sidebar(width=272, elem_id="tw-side"):
            self.new = gr.Button("New chat", elem_id="tw-new")
            self.list = html(elem_id="tw-list", js_on_load=_OPEN)
            self.older = gr.Button("Show older", elem_id="tw-older", visible=False)
        self.view = gr.State(View())
        self.top = make_top("/")
        self.chat = gr.Chatbot(
            elem_id="tw-chat", show_label=False, container=False, height=None, layout="bubble", buttons=["copy"],
            placeholder=_EMPTY, examples=[{"display_text": name, "text": text} for name, text in STARTERS],
            allow_tags=False, reasoning_tags=[], sanitize_html=True, scale=1,
        )  # fmt: skip
        self.notes = html(elem_id="tw-notes")
        with gr.Column(elem_id="tw-comment", visible=False) as self.panel:
            self.question = html()
            self.comment = gr.Textbox(
                label="Comment", show_label=False, placeholder="Optional: a few words help", container=False,
                lines=1, max_lines=5, max_length=MAX_COMMENT, elem_id="tw-comment-box",
            )  # fmt: skip
            with gr.Row(elem_id="tw-comment-buttons"):
                self.dismiss = gr.Button("Not now", elem_id="tw-comment-close", min_width=0)
                self.save = gr.Button("Save", variant="primary", elem_id="tw-comment-save", min_width=0)
        with gr.Row(elem_id="tw-composer"):
            self.box = gr.Textbox(
                label="Message", show_label=False, placeholder="Write a message", container=False, autofocus=True,
                lines=1, max_lines=8, scale=1, elem_id="tw-box",
            )  # fmt: skip
            self.stop = gr.Button("Stop", elem_id="tw-stop", visible=False, min_width=0)
            self.send = gr.Button("Send", variant="primary", elem_id="tw-send", min_width=0)
        html(STORED, elem_id="tw-stored")
        self.status = html(status_html("loading", "", ""), elem_id="tw-status")
        self._bind(demo)

    def _bind(self, demo: gr.Blocks) -> None:
        conversation = [
            self.chat, self.notes, self.status, self.list, self.older, self.stop, self.send, *self.top.outputs,
        ]  # fmt: skip
        panel = [self.panel, self.question, self.comment]
        page = [*conversation, *panel, self.box]

        def bound(inputs: list[Any], outputs: list[Any], **more: Any) -> dict[str, Any]:
            return {**PRIVATE, "inputs": inputs, "outputs": outputs, "concurrency_limit": None, **more}

        demo.load(self._load, **bound([self.view], conversation))
        gr.on([self.box.submit, self.send.click], self._send, **bound([self.box, self.view], page))
        self.chat.example_select(self._start, **bound([self.view], page))
        self.stop.click(self._stop, **bound([self.view], conversation))
        self.new.click(self._new, **bound([self.view], page))
        # Gradio would drop a click on the list while the reply of the one before is followed.
        self.list.click(self._open, **bound([self.view], page, trigger_mode="multiple"))
        self.older.click(self._older, **bound([self.view], [self.list, self.older]))
        # One at a time and none dropped: two clicks are judged in the order in which they were made.
        self.chat.like(
            self._thumb,
            **bound([self.view, self.status], [self.chat, *panel], concurrency_limit=1, trigger_mode="multiple"),
        )
        gr.on([self.comment.submit, self.save.click], self._comment, **bound([self.comment, self.view], panel))
        self.dismiss.click(self._no_panel, **bound([self.view], panel))
        self.top.timer.tick(self._tick, **bound([self.view], [*self.top.outputs, self.send]))

    # -- what the page shows -------------------------------------------------------------------------

    async def _path(self, conversation_id: str | None) -> list[Reply]:
        if conversation_id is None:
            return []
        return await asyncio.to_thread(self.store.conversation, conversation_id, LOCAL_USER)

    async def _page(self, view: View) -> Updates:
        """Everything about the conversation, from the database."""
        path = await self._path(view.conversation_id)
        live = self.live.get(view.conversation_id or "")
        now = view.top = shown(self.assistant, view.conversation_id)
        view.thumbs = thumbs_of(path)
        view.state, said = status_of(path)
        return {
            **self.top.update(now),
            self.chat: gr.update(value=messages_of(path, live.frame if live else ""), feedback_value=view.thumbs),
            self.notes: notes_of(path),
            **await self._listed(view),
            self.status: status_html(view.state, said, query_of(view)),
            self.stop: gr.update(visible=live is not None),
            self.send: gr.update(visible=live is None, interactive=now.ready),
        }

    async def _listed(self, view: View) -> Updates:
        """The list of conversations, and whether there are older ones than it has."""
        most = view.lists * LISTED
        titles = await asyncio.to_thread(self.store.conversations, LOCAL_USER, most + 1)
        return {
            self.list: list_html(titles[:most], view.conversation_id),
            self.older: gr.update(visible=len(titles) > most),
        }

    async def _older(self, view: View) -> Updates:
        view.lists += 1
        return await self._listed(view)

    async def _current(self, view: View, epoch: int) -> Updates:
        """The page, unless it was turned away from `epoch`'s while it was made."""
        page = await self._page(view)
        return page if view.epoch == epoch else self._unchanged()

    async def _turned(self, view: View, conversation_id: str | None) -> Updates:
        """Turn the page to a conversation, or to an empty one."""
        epoch = view.epoch = view.epoch + 1
        view.conversation_id = conversation_id
        return {**self._no_panel(view), **await self._current(view, epoch)}

    async def _followed(self, view: View, epoch: int) -> AsyncGenerator[Updates, None]:
        """Show the reply that is being written until it ends, or until the page turns away from `epoch`'s.

        The last update has no value in it: Gradio sends an event's last one again when the event is over,
        and by then the page may show something else.
        """
        live = self.live.get(view.conversation_id or "") if view.epoch == epoch else None
        if live is not None:
            messages = messages_of(await self._path(view.conversation_id), live.frame)
            async with aclosing(live.follow(lambda: view.epoch == epoch)) as frames:
                async for frame in frames:
                    messages = [*messages[:-1], {"role": "assistant", "content": bubble(frame, "streaming")}]
                    yield {self.chat: gr.update(value=messages, feedback_value=view.thumbs)}
        if view.epoch == epoch and view.state == "streaming":
            yield await self._current(view, epoch)
            if live is not None and live.error and view.state != "failed":  # it could not even be stored
                gr.Warning(live.error)
        yield self._unchanged()

    # -- opening and asking --------------------------------------------------------------------------

    async def _load(self, view: View, request: gr.Request) -> AsyncGenerator[Updates, None]:
        """Rebuild the page: the conversation that the address names, else the newest."""
        view.cookie = self.browsers.text_in(request.cookies)
        named = request.query_params.get("c")
        if named != "new" and not await self._owns(named):
            newest = await asyncio.to_thread(self.store.conversations, LOCAL_USER, 1)
            named = newest[0][0] if newest else None
        epoch = view.epoch = view.epoch + 1
        view.conversation_id = None if named == "new" else named
        yield await self._current(view, epoch)
        async for updates in self._followed(view, epoch):
            yield updates

    async def _new(self, view: View) -> Updates:
        return await self._turned(view, None)

    async def _open(self, view: View, event: gr.EventData) -> AsyncGenerator[Updates, None]:
        named = event._data.get("id") if isinstance(event._data, dict) else None
        if not await self._owns(named):
            gr.Warning("There is no such conversation of yours.")
            yield self._unchanged()
            return
        epoch = view.epoch + 1
        yield await self._turned(view, named)
        async for updates in self._followed(view, epoch):
            yield updates

    async def _owns(self, conversation_id: Any) -> bool:
        if not isinstance(conversation_id, str):
            return False
        return await asyncio.to_thread(self.store.owns_conversation, conversation_id, LOCAL_USER)

    async def _start(self, view: View, event: gr.EventData) -> AsyncGenerator[Updates, None]:
        """Ask one of our own first questions; the event only says which."""
        index = event._data.get("index") if isinstance(event._data, dict) else None
        texts = [text for i, (_, text) in enumerate(STARTERS) if i == index]
        async for updates in self._asked("".join(texts), view, {}):
            yield updates

    async def _send(self, text: str, view: View) -> AsyncGenerator[Updates, None]:
        """Ask what is in the box. What cannot be asked stays there, with the reason."""
        async for updates in self._asked(text, view, {self.box: ""}):
            yield updates

    async def _asked(self, text: str, view: View, sent: Updates) -> AsyncGenerator[Updates, None]:
        """Ask, show `sent` once that is done, and follow the reply."""
        try:
            if text.strip():
                await self._ask(text, view)
        except ThumbwiseError as error:
            gr.Warning(str(error), title="Not sent")
            text = ""
        if not text.strip():
            yield self._unchanged()
            return
        epoch = view.epoch = view.epoch + 1  # a comment that is being typed stays
        yield {**sent, **await self._current(view, epoch)}
        async for updates in self._followed(view, epoch):
            yield updates

    async def _ask(self, text: str, view: View) -> None:
        """Start the next reply of the view's conversation, which is made if need be."""
        epoch = view.epoch
        async with self._asking:  # so that a conversation never gets two replies at once, and stays one path
            id_ = view.conversation_id  # the page may turn to another one at every `await`
            if id_ in self.live:
                raise Conflict("A reply is still being written in this conversation: wait for its end, or stop it.")
            if view.epoch != epoch:
                raise Conflict("The page turned to another conversation: go back to send it there, or send it here.")
            self.assistant.require_engine()
            asker = self.browsers.asker(view.cookie)
            path = await self._path(id_)
            messages = prompt_of(path, text)
            check_messages(messages)
            if id_ is None:
                self.assistant.load.check(asker)  # a refusal leaves no empty conversation behind
                id_ = await asyncio.to_thread(self.store.start_conversation, LOCAL_USER, excerpt(text, 80))
                if view.epoch == epoch:
                    view.conversation_id = id_
            turn = await self.assistant.conversations.begin(
                asker,
                messages,
                self.assistant.conversations.sampling(),
                conversation_id=id_,
                parent_id=path[-1].id if path else None,
            )
            self._write(turn, asker, id_)

    def _write(self, turn: Turn, asker: Asker, conversation_id: str) -> None:
        async def frames() -> AsyncGenerator[str, None]:
            text = ""
            async with aclosing(self.assistant.conversations.stream(turn, asker)) as chunks:
                async for chunk in chunks:
                    text += chunk.text
                    yield text

        live = self.live[conversation_id] = Live(frames(), "", self.assistant.spawn)
        live.task.add_done_callback(lambda task: self.live.pop(conversation_id, None))

    async def _stop(self, view: View) -> Updates:
        if (live := self.live.get(view.conversation_id or "")) is not None:
            await live.stop()
        return await self._page(view)

    # -- votes ---------------------------------------------------------------------------------------

    async def _thumb(self, view: View, status: str, event: gr.EventData) -> AsyncGenerator[Updates, None]:
        """Store a thumb. Whatever the click was, the page then shows what is stored.

        `status` is what the browser showed when the thumb was clicked: the page may have been turned since.
        """
        panel: Updates = {}
        try:
            if f'data-query="{query_of(view)}"' not in str(status):
                raise Conflict("The page turned to another conversation: open that one again and click there.")
            panel = await self._vote(view, event._data)
        except ThumbwiseError as error:
            gr.Warning(str(error), title="Not saved")
        view.thumbs = thumbs_of(await self._path(view.conversation_id))
        # The component keeps a click that the server did not take until the value given to it differs.
        yield {self.chat: gr.update(feedback_value=["" for _ in view.thumbs])}
        yield {self.chat: gr.update(feedback_value=view.thumbs), **panel}
        view.clicked = (view.clicked[0], time.monotonic())  # a double click's second half has waited for all this

    async def _vote(self, view: View, click: Any) -> Updates:
        """Resolve a click against the conversation and store it; returns what becomes of the comment panel."""
        path = await self._path(view.conversation_id)
        reply, value = clicked(path, click)
        if value == (reply.thumb or "clear"):
            return {}
        again = view.clicked[0] == reply.id and time.monotonic() - view.clicked[1] < DOUBLE_CLICK_SECONDS
        if value == "clear" and again:
            return {}
        await self._store(view, FeedbackRequest(kind="thumb", message_id=reply.id, value=value))
        if value == "clear":
            gr.Info("Your thumb is taken back.", duration=4)
            return self._no_panel(view)
        view.clicked = (reply.id, time.monotonic())
        comment = {} if view.commenting_on == reply.id else {self.comment: ""}
        view.commenting_on = reply.id
        gr.Success("Saved. Click the thumb again to take it back.", duration=4)
        about = f"<p>{_QUESTIONS[value]} “{escape(excerpt(reply.text, 40))}”?</p>"
        return {self.panel: gr.update(visible=True), self.question: about, **comment}

    async def _comment(self, text: str, view: View) -> Updates:
        if view.commenting_on is None or not text.strip():
            if text.strip():
                gr.Warning("The page turned to another conversation: click the reply's thumb again.", title="Not saved")
            return self._no_panel(view)
        request = FeedbackRequest(kind="comment", message_id=view.commenting_on, value={"text": text.strip()})
        try:
            await self._store(view, request)
        except ThumbwiseError as error:
            gr.Warning(str(error), title="Not saved")
            return {self.panel: gr.update()}
        gr.Success("Saved. Thank you for the comment.", duration=4)
        return self._no_panel(view)

    async def _store(self, view: View, request: FeedbackRequest) -> None:
        asker = self.browsers.asker(view.cookie)
        async with self._voting:
            await asyncio.to_thread(self.assistant.vote, asker, new_id("page"), request)

    def _unchanged(self) -> Updates:
        """What a handler gives back where nothing changes: without any value Gradio would clear its outputs."""
        return {self.status: gr.skip()}

    def _no_panel(self, view: View) -> Updates:
        view.commenting_on = None
        return {self.panel: gr.update(visible=False)}

    async def _tick(self, view: View) -> Updates:
        now = shown(self.assistant, view.conversation_id)
        if now == view.top:
            return {self.send: gr.skip()}
        view.top = now
        return {**self.top.update(now), self.send: gr.update(interactive=now.ready)}


def clicked(path: list[Reply], click: Any) -> tuple[Reply, Literal["up", "down", "clear"]]:
    """Which reply a thumb event means and what it says; raises ThumbwiseError where it means none.

    `click` comes from the browser: `index` counts the messages of the conversation, two a reply, and `liked`
    is true, false, or "" where the thumb is taken back. Its text is not looked at.
    """
    index, liked = (click.get("index"), click.get("liked")) if isinstance(click, dict) else (None, None)
    if type(index) is int and index % 2 == 1 and 0 < index < 2 * len(path):
        if liked is True:
            return path[index // 2], "up"
        if liked is False:
            return path[index // 2], "down"
        if liked == "":
            return path[index // 2], "clear"
    raise ThumbwiseError("That click fits no reply of this conversation: reload the page.")

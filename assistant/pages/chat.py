"""The chat page, for its script `chat.js`: conversations, streaming, stop, thumbs with a comment.

What the browser and the server hold is explained in `thumbwise.pages`. Left out: editing and regenerating, reasons to
tick, search.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, Literal
from urllib.parse import urlencode

import gradio as gr
from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from thumbwise.accounts.principal import asker_of, principal_of
from thumbwise.chat.turns import Turn, check_messages
from thumbwise.errors import Conflict, NotFound, ThumbwiseError
from thumbwise.feedback.records import MAX_COMMENT, Asker, FeedbackRequest, Reply, new_id
from thumbwise.pages import live as timing
from thumbwise.pages.feed import Piece, Watch, feed
from thumbwise.pages.live import Live
from thumbwise.pages.locks import Locks
from thumbwise.pages.look import html
from thumbwise.pages.markup import escape, render_once
from thumbwise.pages.security import Id, login_holds
from thumbwise.pages.temporary import TemporaryChats, temporary_page
from thumbwise.pages.top import account_of, place_top, top_of, what_is_stored
from thumbwise.pages.view import excerpt, list_html, log_html, prompt_of, reply_html, status_of

if TYPE_CHECKING:
    from thumbwise.serving.assistant import Assistant
    from thumbwise.settings.access import Auth

DOUBLE_CLICK_SECONDS = 0.5  # a second click this soon is a double click, it does not take the vote back
LISTED = 30  # conversations in the list; a button adds older ones
Listed = Annotated[int, Field(ge=1, le=1000)]
"""The length of the list of conversations, in multiples of LISTED."""
_QUESTIONS = {"up": "What was good about", "down": "What was wrong with"}


class Ask(BaseModel):
    """A message. Without a conversation it starts a new one."""

    model_config = ConfigDict(extra="forbid")
    conversation: Id | None = None
    text: str
    listed: Listed = 1


class Stop(BaseModel):
    """Stop a reply that is being written."""

    model_config = ConfigDict(extra="forbid")
    message: Id


class Thumb(BaseModel):
    """A click on a thumb. `clear` takes it back."""

    model_config = ConfigDict(extra="forbid")
    message: Id
    thumb: Literal["up", "down", "clear"]


class Comment(BaseModel):
    """A few words about a reply."""

    model_config = ConfigDict(extra="forbid")
    message: Id
    text: str


class ChatPage:
    """The page at `/`."""

    def __init__(self, assistant: Assistant, watch: Watch) -> None:
        self.assistant, self.watch = assistant, watch
        self.store = assistant.store
        self.live: dict[str, Live[str]] = {}  # replies that are being written, by message id
        self.temporary = TemporaryChats(assistant, watch)
        self._asking = Locks()  # by conversation
        self._voting = Locks()  # by reply: votes are stored in the order of the clicks, and the last one counts
        self._voted_at: dict[str, float] = {}  # by message id: when the last thumb was stored, on the monotonic clock

    def add_routes(self, router: APIRouter) -> None:
        """Add the routes that the script calls."""
        self.temporary.add_routes(router)

        @router.get("/chat")
        async def page(request: Request, c: Id | None = None, listed: Listed = 1) -> dict[str, Any]:
            """Return the conversation `c`, an empty one if `c` is `new` or `temporary`, or the newest without `c`."""
            principal = principal_of(request)
            user = principal.asker.user
            keeps = self.assistant.consents.of(user).keep_chats
            if c is None and keeps:
                newest = await self.store.run(self.store.conversations, user, 1)
                c = newest[0][0] if newest else "new"
            new = c in (None, "new", "temporary")
            page = await self._page(user, None if new else c, listed)
            temporary = c == "temporary" or (new and not keeps)
            return page | (temporary_page(principal) if temporary else {}) | account_of(request)

        @router.post("/chat/messages")
        async def ask(request: Request, body: Ask) -> dict[str, Any]:
            who = asker_of(request)
            return await self._page(who.user, await self._ask(who, body.conversation, body.text), body.listed)

        @router.post("/chat/stop")
        async def stop(request: Request, body: Stop) -> dict[str, Any]:
            reply = await self._reply(asker_of(request).user, body.message)
            if live := self.live.get(reply.id):
                await live.stop()
            return await self._ended(reply, live)

        @router.post("/chat/thumbs")
        async def thumb(request: Request, body: Thumb) -> dict[str, Any]:
            async with self._voting.of(body.message):
                return await self._vote(asker_of(request), body.message, body.thumb)

        @router.post("/chat/comments")
        async def comment(request: Request, body: Comment) -> dict[str, str]:
            text = body.text.strip().encode("utf-8", "replace").decode()  # half a character would be an error
            if len(text) > MAX_COMMENT:
                raise ThumbwiseError(f"A comment may have at most {MAX_COMMENT} characters: this one has {len(text)}.")
            if text:
                request_ = FeedbackRequest(kind="comment", message_id=body.message, value={"text": text})
                await self._store(asker_of(request), request_)
            return {"said": "Saved. Thank you for the comment." if text else ""}

        @router.get("/chat/events")
        async def events(request: Request, c: Id | None = None, reply: Id | None = None) -> Response:
            user, holds = asker_of(request).user, login_holds(self.assistant, request)
            return feed(self.watch, lambda: top_of(self.assistant, user, c), self._pieces(user, reply), holds)

    # -- what the page shows -------------------------------------------------------------------------

    async def _page(self, user: str, id_: str | None, listed: int) -> dict[str, Any]:
        """Return everything about the conversation. Raises NotFound if it is not this user's.

        The text of a reply that is being written comes with the stream, a moment later.
        """

        def read() -> tuple[list[Reply], list[tuple[str, str]]]:
            if id_ is not None and not self.store.owns_conversation(id_, user):
                raise NotFound("There is no such conversation of yours.")
            path = [] if id_ is None else self.store.conversation(id_, user)
            return path, self.store.conversations(user, most + 1)

        most = listed * LISTED
        path, titles = await self.store.run(read)
        log = await asyncio.to_thread(log_html, path)
        state, said = status_of(path)
        return {
            "conversation": id_, "query": f"c={id_ or 'new'}", "state": state, "said": said, "log": log,
            "list": list_html(titles[:most]), "older": len(titles) > most, "events": _events(id_, path),
            "stored": what_is_stored(self.assistant.settings.auth),
        }  # fmt: skip

    async def _reply(self, user: str, message_id: str) -> Reply:
        """Return a reply of this user. Raises NotFound for a draft: a reply shows its version, and drafts are blind."""
        reply = await self.store.run(self.store.reply, message_id, user)
        if reply.comparison_id is not None:
            raise NotFound("There is no such reply of yours.")
        return reply

    async def _pieces(self, user: str, message_id: str | None) -> AsyncGenerator[Piece, None]:
        """Yield the reply as it grows, and then its end."""
        if message_id is None:
            return
        try:
            reply = await self._reply(user, message_id)
        except NotFound:  # other calls tell the page; here the browser would only connect again
            return
        live = self.live.get(message_id)
        if live is not None:
            async with aclosing(live.follow()) as frames:
                async for frame in frames:
                    yield ("frame", {"parts": [frame]}) if frame is not None else ("", None)
        yield "end", await self._ended(reply, live)

    async def _ended(self, reply: Reply, live: Live[str] | None) -> dict[str, Any]:
        """Return what a page shows of a reply that has ended, once its end is stored."""
        give_up = time.monotonic() + timing.END_SECONDS
        while reply.state == "streaming" and time.monotonic() < give_up:
            reply = await self.store.run(self.store.reply, reply.id, reply.user_id)
            if reply.state == "streaming":
                await asyncio.sleep(0.05)
        if reply.state == "streaming":  # its end was not stored
            why = (live and live.error) or "The end of this reply is not stored yet: load the page again."
            reply = replace(reply, state="failed", text=live.frame if live else "", error=why)
        html_ = await asyncio.to_thread(reply_html, reply)
        state, said = status_of([reply])
        return {"reply": reply.id, "html": html_, "state": state, "said": said}

    # -- asking --------------------------------------------------------------------------------------

    async def _ask(self, who: Asker, id_: str | None, text: str) -> str:
        """Start the next reply of a conversation. Without `id_` start a new one. Return the id of the conversation."""
        if id_ is None:
            return await self._begin(who, None, [], text)
        async with self._asking.of(id_):
            if not await self.store.run(self.store.owns_conversation, id_, who.user):
                raise NotFound("There is no such conversation of yours.")
            path = await self.store.run(self.store.conversation, id_, who.user)
            if path and (live := self.live.get(path[-1].id)) and live.running:
                raise Conflict("A reply is still being written in this conversation: wait for its end, or stop it.")
            return await self._begin(who, id_, path, text)

    async def _begin(self, who: Asker, id_: str | None, path: list[Reply], text: str) -> str:
        self.assistant.consents.require_chats(who.user)
        self.assistant.require_engine()
        messages = prompt_of(path, text)
        check_messages(messages)
        if id_ is None:
            self.assistant.admission.check(who)  # before an empty conversation is stored
            id_ = await self.store.run(self.store.start_conversation, who.user, excerpt(text, 80))
        turn = await self.assistant.conversations.begin(
            who,
            messages,
            self.assistant.conversations.sampling(),
            conversation_id=id_,
            parent_id=path[-1].id if path else None,
        )
        self._write(turn, who)
        return id_

    def _write(self, turn: Turn, who: Asker) -> None:
        async def frames() -> AsyncGenerator[str, None]:
            text = ""
            async with aclosing(self.assistant.conversations.stream(turn, who)) as chunks:
                async for chunk in chunks:
                    text += chunk.text
                    yield text

        Live(frames(), "", self.assistant.spawn, render_once).keep(self.live, turn.message_id)

    # -- votes ---------------------------------------------------------------------------------------

    async def _vote(self, who: Asker, message_id: str, value: Literal["up", "down", "clear"]) -> dict[str, Any]:
        """Store a thumb. Return the thumb that is stored now, and what the comment panel should show."""
        reply = await self.store.run(self.store.reply, message_id, who.user)
        now = {"thumb": reply.thumb}
        if value == (reply.thumb or "clear"):
            return now
        if value == "clear" and time.monotonic() - self._voted_at.get(reply.id, -1e9) < DOUBLE_CLICK_SECONDS:
            return now
        await self._store(who, FeedbackRequest(kind="thumb", message_id=reply.id, value=value))
        if value == "clear":
            return {"thumb": None, "said": "Your thumb is taken back.", "question": ""}
        self._note_vote(reply.id)
        question = f"<p>{_QUESTIONS[value]} “{escape(excerpt(reply.text, 40))}”?</p>"
        return {"thumb": value, "said": "Saved. Click the thumb again to take it back.", "question": question}

    def _note_vote(self, message_id: str) -> None:
        now = time.monotonic()
        self._voted_at = {id_: at for id_, at in self._voted_at.items() if now - at < DOUBLE_CLICK_SECONDS}
        self._voted_at[message_id] = now

    async def _store(self, who: Asker, request: FeedbackRequest) -> None:
        await self.store.run(self.assistant.vote, who, new_id("page"), request)


def _events(conversation_id: str | None, path: list[Reply]) -> str:
    """Return the address of the page's events."""
    named = {"c": conversation_id} if conversation_id else {}
    if path and path[-1].state == "streaming":
        named["reply"] = path[-1].id
    return f"/pages/chat/events?{urlencode(named)}"


def place_chat(auth: Auth) -> None:
    """Place the components of the chat page; chat.js fills them and says what the buttons do."""
    gr.Navbar(visible=False)
    with gr.Sidebar(width=272, elem_id="tw-side"):
        gr.Button("New chat", elem_id="tw-new")
        gr.Button("Temporary chat", elem_id="tw-temporary")
        html(elem_id="tw-list")
        gr.Button("Show older", elem_id="tw-older")
    place_top("/", auth)
    html('<div class="tw-log" role="log" aria-live="off" aria-label="Conversation"></div>', elem_id="tw-chat")
    with gr.Column(elem_id="tw-comment"):
        html('<div class="tw-question"></div>')
        gr.Textbox(
            label="Comment", show_label=False, placeholder="Optional: a few words help", container=False,
            lines=1, max_lines=5, max_length=MAX_COMMENT, elem_id="tw-comment-box",
        )  # fmt: skip
        with gr.Row(elem_id="tw-comment-buttons"):
            gr.Button("Not now", elem_id="tw-comment-close", min_width=0)
            gr.Button("Save", variant="primary", elem_id="tw-comment-save", min_width=0)
    with gr.Row(elem_id="tw-composer"):
        gr.Textbox(
            label="Message", show_label=False, placeholder="Write a message", container=False, autofocus=True,
            lines=1, max_lines=8, scale=1, elem_id="tw-box",
        )  # fmt: skip
        gr.Button("Stop", elem_id="tw-stop", min_width=0)
        gr.Button("Send", variant="primary", elem_id="tw-send", min_width=0)
    html(what_is_stored(auth), elem_id="tw-stored")

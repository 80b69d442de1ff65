"""Temporary chats: nothing of them is stored, not even that there was one.

The page holds the conversation and sends all of it with each question. The server holds a reply only while it is being
written, and for `live.KEPT_SECONDS` after that, so that a page whose connection broke gets the end of it. There is no
row, so there are no thumbs, no title and no comparison. A reload and another account end the chat.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal
from urllib.parse import urlencode

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, FailFast, Field
from starlette.responses import Response

from thumbwise.accounts.principal import principal_of
from thumbwise.chat.turns import MAX_MESSAGES
from thumbwise.contracts import Message
from thumbwise.errors import Conflict, NotFound, ThumbwiseError
from thumbwise.feedback.records import Asker, Reply, ReplyState, new_id, sha256
from thumbwise.pages.feed import Piece, Watch, feed
from thumbwise.pages.live import Live
from thumbwise.pages.markup import render_once
from thumbwise.pages.security import Id, login_holds
from thumbwise.pages.top import top_of
from thumbwise.pages.view import TEMPORARY, log_html, reply_html, status_of

if TYPE_CHECKING:
    from thumbwise.accounts.principal import Principal
    from thumbwise.chat.turns import Turn
    from thumbwise.serving.assistant import Assistant

NOTE = (
    '<p class="tw-stored">A temporary chat: nothing of it is stored, so its replies have no thumbs. '
    "Loading this page again ends it.</p>"
)
GONE = "The connection broke for too long, and nothing of this reply is kept: ask again."


class Said(BaseModel):
    """One message of a temporary chat, as its page keeps it."""

    model_config = ConfigDict(extra="forbid")
    role: Literal["user", "assistant"]
    content: str


class Ask(BaseModel):
    """The whole chat so far; the last message is the question. `chat` is the name that the first answer gave it."""

    model_config = ConfigDict(extra="forbid")
    whose: str = Field(max_length=64)
    chat: Id | None = None
    messages: Annotated[list[Said], FailFast(), Field(max_length=MAX_MESSAGES)]


class Stop(BaseModel):
    """Stop a reply that is being written."""

    model_config = ConfigDict(extra="forbid")
    message: Id


@dataclass(frozen=True)
class Part:
    """A reply as far as it is written."""

    turn: Turn
    text: str = ""
    tokens: int = 0
    reason: str | None = None

    def reply(self, state: ReplyState, error: str = "") -> Reply:
        """The same as a stored reply, for the code that shows these."""
        turn, cut = self.turn, self.tokens >= self.turn.sampling.max_tokens
        return Reply(
            turn.message_id, "", turn.messages, None, None, None, turn.version, state, self.text, self.reason,
            error or None, cut=("length" if cut else "context") if self.reason == "length" else "",
        )  # fmt: skip


def whose(principal: Principal) -> str:
    """Return a name for one account, or for one browser where there are none. It tells nothing about it."""
    return sha256(f"temporary {principal.account or principal.asker.person}")[:32]


class TemporaryChats:
    """Answers the script of a chat page that is in a temporary chat."""

    def __init__(self, assistant: Assistant, watch: Watch) -> None:
        self.assistant, self.watch = assistant, watch
        self.live: dict[str, Live[Part]] = {}  # by whose reply it is, and its id

    def add_routes(self, router: APIRouter) -> None:
        """Add the routes that the script calls."""

        @router.post("/chat/temporary")
        async def ask(request: Request, body: Ask) -> dict[str, Any]:
            principal = principal_of(request)
            if body.whose != whose(principal):
                raise Conflict("Somebody else began this chat, so it has ended: start a new one.")
            messages = [Message(role=said.role, content=said.content) for said in body.messages]
            return await self._ask(principal, body.chat or new_id("tmp"), messages)

        @router.post("/chat/temporary/stop")
        async def stop(request: Request, body: Stop) -> dict[str, Any]:
            live = self.live.get(self._name(principal_of(request), body.message))
            if live is None:
                raise NotFound("There is no such reply of yours.")
            await live.stop()
            return await _ended(live)

        @router.get("/chat/temporary/events")
        async def events(request: Request, reply: Id, c: Id | None = None) -> Response:
            principal = principal_of(request)
            pieces = self._pieces(reply, self.live.get(self._name(principal, reply)))
            holds = login_holds(self.assistant, request)
            return feed(self.watch, lambda: top_of(self.assistant, principal.asker.user, c), pieces, holds)

    @staticmethod
    def _name(principal: Principal, message_id: str) -> str:
        return f"{whose(principal)} {message_id}"

    async def _ask(self, principal: Principal, chat: str, messages: list[Message]) -> dict[str, Any]:
        roles = [message["role"] for message in messages]
        if roles != ["user", "assistant"] * (len(roles) // 2) + ["user"]:
            raise ThumbwiseError("The messages of a chat alternate, and the last one is a question.", param="messages")
        conversations = self.assistant.conversations
        # `chat` only draws the version, in `local`: all turns of one chat get the same.
        turn = await conversations.begin(
            principal.asker, messages, conversations.sampling(), conversation_id=chat, temporary=True
        )
        live = Live(self._parts(turn, principal.asker), Part(turn), self.assistant.spawn, _shown)
        live.keep(self.live, self._name(principal, turn.message_id))
        path = [Part(turn).reply("streaming")]
        state, said = status_of(path)
        log = await asyncio.to_thread(log_html, path, temporary=True)
        return {
            "chat": chat, "reply": turn.message_id, "state": state, "said": said, "log": log,
            "events": f"/pages/chat/temporary/events?{urlencode({'reply': turn.message_id, 'c': chat})}",
        }  # fmt: skip

    async def _parts(self, turn: Turn, who: Asker) -> AsyncGenerator[Part, None]:
        text, tokens = "", 0
        async with aclosing(self.assistant.conversations.stream(turn, who)) as chunks:
            async for chunk in chunks:
                text, tokens = text + chunk.text, tokens + len(chunk.response_ids)
                yield Part(turn, text, tokens, chunk.finish_reason)

    async def _pieces(self, message_id: str, live: Live[Part] | None) -> AsyncGenerator[Piece, None]:
        """Yield the reply as it grows, and then its end."""
        if live is None:
            gone = Reply(message_id, "", (), None, None, None, "", "failed", "", None, GONE)
            yield "end", await _end(gone)
            return
        async with aclosing(live.follow()) as frames:
            async for frame in frames:
                yield ("frame", {"parts": [frame]}) if frame is not None else ("", None)
        yield "end", await _ended(live)


def temporary_page(principal: Principal) -> dict[str, Any]:
    """Return what the page shows of a new temporary chat."""
    return {
        "temporary": whose(principal), "conversation": None, "query": "c=temporary", "state": "idle", "said": "",
        "log": TEMPORARY, "stored": NOTE, "events": "/pages/chat/events",
    }  # fmt: skip


def _shown(part: Part) -> str:
    return render_once(part.text)


async def _ended(live: Live[Part]) -> dict[str, Any]:
    state: ReplyState = "failed" if live.error else "done" if live.frame.reason is not None else "stopped"
    return await _end(live.frame.reply(state, live.error))


async def _end(reply: Reply) -> dict[str, Any]:
    state, said = status_of([reply])
    if state == "done":
        said = "Reply finished."
    html = await asyncio.to_thread(reply_html, reply, temporary=True)
    return {"reply": reply.id, "html": html, "text": reply.text, "state": state, "said": said}

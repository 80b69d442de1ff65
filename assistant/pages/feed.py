"""What the server pushes to a page: how the assistant is, and the reply or the drafts that are being written.

A page listens to one stream of server-sent events for as long as it is looked at. All pages share one look at the
assistant's state; a page that shows nothing new costs a comment line every HEARTBEAT seconds.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import orjson

from thumbwise.chat.admission import EventStream

if TYPE_CHECKING:
    from thumbwise.serving.assistant import Assistant

LOOK_SECONDS = 0.5  # between two looks at the assistant's state
HEARTBEAT = 25.0  # seconds; shorter than the minute after which proxies hang up
SERVER = uuid4().hex
"""Names this run of the server: a page that meets another one loads itself again."""
Piece = tuple[str, Any]
"""An event's name and data; without a name nothing is sent."""


class Watch:
    """Tells all open pages when something at their top may have changed; looks only while there are any."""

    def __init__(self, assistant: Assistant) -> None:
        self.assistant = assistant
        self._change = asyncio.Event()
        self._waiting = 0
        self._looking: asyncio.Task[None] | None = None

    def _state(self) -> Any:
        engine = self.assistant.engine
        return self.assistant.status(), engine and engine.state, self.assistant.versions.pointer()

    async def _look(self, before: Any) -> None:
        while self._waiting:
            await asyncio.sleep(LOOK_SECONDS)
            if (now := self._state()) != before:
                before = now
                self._change.set()
                self._change = asyncio.Event()

    async def changed(self, seconds: float) -> bool:
        """Wait for a change, at most for so long; says whether there was one."""
        if self._looking is None or self._looking.done():
            self._looking = self.assistant.spawn(self._look(self._state()))
        self._waiting += 1
        try:
            async with asyncio.timeout(seconds):
                await self._change.wait()
            return True
        except TimeoutError:
            return False
        finally:
            self._waiting -= 1


def feed(watch: Watch, top: Callable[[], dict[str, Any]], pieces: AsyncGenerator[Piece, None]) -> EventStream:
    """An answer that sends what `top` says whenever that has changed, `pieces` as they come, and then only the top."""

    async def events() -> AsyncGenerator[bytes, None]:
        told: dict[str, Any] | None = None
        async with aclosing(pieces):
            while True:
                if (now := top()) != told:
                    told = now
                    yield _event("top", {**now, "server": SERVER})
                piece = await anext(pieces, None)
                if piece is None:
                    break
                if piece[0]:
                    yield _event(*piece)
        while True:
            while (now := top()) != told:  # asked again after each, since a change while one is sent is nobody's news
                told = now
                yield _event("top", {**now, "server": SERVER})
            if not await watch.changed(HEARTBEAT):
                yield b":\n\n"

    return EventStream(events())


def _event(name: str, data: Any) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (name.encode(), orjson.dumps(data))

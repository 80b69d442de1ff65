"""What the server pushes to a page: the assistant's state, and the reply or the drafts that are being written.

A page has one stream of server-sent events while somebody looks at it. All pages share one check of the assistant's
state. A page without news costs one comment line every HEARTBEAT seconds.
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

LOOK_SECONDS = 0.5  # between two checks of the assistant's state
HEARTBEAT = 25.0  # seconds; proxies disconnect after a minute without data
LOGIN_SECONDS = 2.0  # between two checks whether the login still holds
SERVER = uuid4().hex
"""The name of this run of the server: see rule 5 in `thumbwise.pages`."""
Piece = tuple[str, Any]
"""The name and data of an event. Without a name nothing is sent."""


class Watch:
    """Tells all open pages when something at their top may have changed. It checks only while a page is open."""

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
        """Wait for a change, at most for `seconds`. Return whether there was one."""
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


def feed(
    watch: Watch, top: Callable[[], dict[str, Any]], pieces: AsyncGenerator[Piece, None], holds: Callable[[], bool]
) -> EventStream:
    """Return a stream that sends `top()` whenever it changes, and `pieces` as they come, and then only the top.

    It ends when `holds()` is false. The page then asks again, and sees that its login has ended.
    """

    async def events() -> AsyncGenerator[bytes, None]:
        told: dict[str, Any] | None = None
        quiet = 0.0
        async with aclosing(pieces):
            while holds():
                if (now := top()) != told:
                    told = now
                    yield _event("top", {**now, "server": SERVER})
                piece = await anext(pieces, None)
                if piece is None:
                    break
                if piece[0]:
                    yield _event(*piece)
        while holds():
            while (now := top()) != told:  # again after each send: no one announces a change that happens meanwhile
                told = now
                yield _event("top", {**now, "server": SERVER})
            wait = min(HEARTBEAT, LOGIN_SECONDS)
            quiet = 0.0 if await watch.changed(wait) else quiet + wait
            if quiet >= HEARTBEAT:
                quiet = 0.0
                yield b":\n\n"

    return EventStream(events())


def _event(name: str, data: Any) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (name.encode(), orjson.dumps(data))

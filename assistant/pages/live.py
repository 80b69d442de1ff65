"""A reply (or a pair of drafts) that is being written, apart from the browser that asked for it.

The writing runs in a task of the server: a reload or a lost connection loses nothing, and a page that comes
back follows the same reply on. Stopping cancels the task, which closes the engine's stream. Left out: ending
a reply because nobody watches it; its length is limited anyway.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import aclosing
from typing import Any, Generic, TypeVar

from thumbwise.errors import ThumbwiseError

log = logging.getLogger(__name__)
FRAME_SECONDS = 0.12  # at most eight updates a second reach a browser
SHARE = 10  # of the time until the next update, making one may take a tenth
QUIET_SECONDS = 1.0
KEPT_SECONDS = 30.0
END_SECONDS = 5.0  # that the end of a reply may take to be stored after its last word
Frame = TypeVar("Frame")
Spawn = Callable[[Coroutine[Any, Any, None]], "asyncio.Task[None]"]


class Live(Generic[Frame]):
    """Runs an iterator of frames to its end and keeps the newest; `error` is a sentence where it broke off.

    `show` makes of a frame what its followers are sent, once for all of them.
    """

    def __init__(
        self, frames: AsyncGenerator[Frame, None], first: Frame, spawn: Spawn, show: Callable[[Frame], Any]
    ) -> None:
        self.frame = first
        self.error = ""
        self._show = show
        self._shown: tuple[Frame, Any] | None = None
        self._pause = FRAME_SECONDS
        self._change = asyncio.Event()
        self.task = spawn(self._run(frames))

    async def _run(self, frames: AsyncGenerator[Frame, None]) -> None:
        try:
            async with aclosing(frames):
                async for frame in frames:
                    self.frame = frame
                    self._change.set()
                    self._change = asyncio.Event()
        except ThumbwiseError as error:
            self.error = str(error)
        except Exception:
            log.exception("a reply broke off")
            self.error = "The reply broke off because of a fault in the assistant: its log says which."

    def keep(self, among: dict[str, Live[Frame]], name: str) -> None:
        """Be found `among` others by `name`, until a while after the end: who follows late still hears of a fault."""
        among[name] = self
        loop = asyncio.get_running_loop()
        self.task.add_done_callback(lambda task: loop.call_later(KEPT_SECONDS, among.pop, name, None))

    @property
    def running(self) -> bool:
        """Whether frames may still come."""
        return not self.task.done()

    @property
    def shown(self) -> Any:
        """What followers are sent of the newest frame."""
        if self._shown is None or self._shown[0] is not self.frame:
            begun = time.thread_time()
            self._shown = (self.frame, self._show(self.frame))
            self._pause = max(FRAME_SECONDS, SHARE * (time.thread_time() - begun))
        return self._shown[1]

    async def stop(self) -> None:
        """End the writing; returns when what was written is stored, or owed to the database."""
        self.task.cancel()
        await asyncio.wait([self.task])

    async def follow(self) -> AsyncGenerator[Any, None]:
        """Yield what is `shown` each time that it has changed, until the end; None where nothing changed for a while.

        A follower who is slow, or a frame that takes long to make, gets fewer of them. The last frame is part of what
        is said at the end.
        """
        seen: Frame | None = None
        while self.running:
            if self.frame is not seen:
                seen = self.frame
                yield self.shown
                await asyncio.wait([self.task], timeout=self._pause)
                continue
            change = asyncio.ensure_future(self._change.wait())
            done, _ = await asyncio.wait(
                [self.task, change], timeout=QUIET_SECONDS, return_when=asyncio.FIRST_COMPLETED
            )
            change.cancel()
            if not done:
                yield None

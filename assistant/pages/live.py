"""A reply (or a pair of drafts) that is being written, independent of the browser: see rule 3 in `thumbwise.pages`.

Stopping cancels the task, and this closes the engine's stream. Left out: ending a reply because nobody watches it. Its
length is limited anyway.
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
FRAME_SECONDS = 0.12  # between two updates: a browser gets at most eight a second
SHARE = 10  # making an update takes at most a tenth of the time until the next one
QUIET_SECONDS = 1.0  # `follow` yields None after this time without a change
KEPT_SECONDS = 30.0  # a reply that has ended can still be followed for this time
END_SECONDS = 5.0  # time to store the end of a reply after its last word
Frame = TypeVar("Frame")
Spawn = Callable[[Coroutine[Any, Any, None]], "asyncio.Task[None]"]


class Live(Generic[Frame]):
    """Runs an iterator of frames to its end and keeps the newest frame. If it fails, `error` is a sentence.

    `show` turns a frame into what followers get. It is called once for all of them.
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
            self.error = "The reply broke off because of a fault in the assistant: its log says what."

    def keep(self, among: dict[str, Live[Frame]], name: str) -> None:
        """Put this into `among` under `name`, until KEPT_SECONDS after its end: late followers still get the error."""
        among[name] = self
        loop = asyncio.get_running_loop()
        self.task.add_done_callback(lambda task: loop.call_later(KEPT_SECONDS, among.pop, name, None))

    @property
    def running(self) -> bool:
        """Whether more frames may come."""
        return not self.task.done()

    @property
    def shown(self) -> Any:
        """The newest frame as followers get it."""
        if self._shown is None or self._shown[0] is not self.frame:
            begun = time.thread_time()
            self._shown = (self.frame, self._show(self.frame))
            self._pause = max(FRAME_SECONDS, SHARE * (time.thread_time() - begun))
        return self._shown[1]

    async def stop(self) -> None:
        """Stop the writing. Returns when the text so far is stored, or waits to be stored."""
        self.task.cancel()
        await asyncio.wait([self.task])

    async def follow(self) -> AsyncGenerator[Any, None]:
        """Yield `shown` each time that it changes, until the end, and None after QUIET_SECONDS without a change.

        A slow follower gets fewer frames, and so does every follower of a reply whose frames take long to make. The
        last frame may be missing: the end of the reply contains it.
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

"""A reply (or a pair of drafts) that is being written, apart from the browser that asked for it.

The writing runs in a task of the server: a reload or a lost connection loses nothing, and a page that comes
back follows the same reply on. Stopping cancels the task, which closes the engine's stream. Left out: ending
a reply because nobody watches it; its length is limited anyway.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import aclosing
from typing import Any, Generic, TypeVar

from thumbwise.errors import ThumbwiseError

log = logging.getLogger(__name__)
FRAME_SECONDS = 0.045  # at most 22 updates a second reach a browser
Frame = TypeVar("Frame")
Spawn = Callable[[Coroutine[Any, Any, None]], "asyncio.Task[None]"]


class Live(Generic[Frame]):
    """Runs an iterator of frames to its end and keeps the newest; `error` is a sentence where it broke off."""

    def __init__(self, frames: AsyncGenerator[Frame, None], first: Frame, spawn: Spawn) -> None:
        self.frame = first
        self.error = ""
        self.task = spawn(self._run(frames))

    async def _run(self, frames: AsyncGenerator[Frame, None]) -> None:
        try:
            async with aclosing(frames):
                async for frame in frames:
                    self.frame = frame
        except ThumbwiseError as error:
            self.error = str(error)
        except Exception:
            log.exception("a reply broke off")
            self.error = "The reply broke off because of a fault in the assistant: its log says which."

    @property
    def running(self) -> bool:
        """Whether frames may still come."""
        return not self.task.done()

    async def stop(self) -> None:
        """End the writing; returns when what was written is stored."""
        self.task.cancel()
        await asyncio.wait([self.task])

    async def follow(self, wanted: Callable[[], bool]) -> AsyncGenerator[Frame, None]:
        """Yield the newest frame each time that it has changed, and once at the end, for as long as it is `wanted`.

        That is asked between frames too: Gradio drops an event's next click while this one waits for a frame.
        """
        shown: Frame | None = None
        while self.running and wanted():
            if self.frame is not shown:
                shown = self.frame
                yield shown
            await asyncio.wait([self.task], timeout=FRAME_SECONDS)
        if wanted():
            yield self.frame

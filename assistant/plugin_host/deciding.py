"""Calls plugins for whose decision somebody waits: each call in a thread of its own, with a time limit.

A thread cannot be ended. A call that takes too long is left running, and keeps its place. There are PLACES places, so a
plugin that hangs takes a few threads and no more. The threads are not asyncio's own, because the end of the process
would wait for those.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import TypeVar

T = TypeVar("T")
PLACES = 4
"""Calls that may run at the same time."""


def in_thread(work: Callable[[], T]) -> Future[T]:
    """Run `work` in a daemon thread, which the end of the process does not wait for."""
    found: Future[T] = Future()

    def run() -> None:
        if not found.set_running_or_notify_cancel():
            return
        try:
            found.set_result(work())
        except BaseException as error:
            found.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return found


async def in_background(work: Callable[[], T]) -> T:
    """Run `work` like that, and wait for its result."""
    return await asyncio.wrap_future(in_thread(work))


class Deciding:
    """Asks plugins, with a limit on time and on the number of threads."""

    def __init__(self) -> None:
        self._places = asyncio.Semaphore(PLACES)

    async def ask(self, question: Callable[[], T], seconds: float) -> T:
        """Return what `question` returns; raises TimeoutError if that takes longer, waiting for a place included."""
        loop = asyncio.get_running_loop()

        def leave(answer: Future[T]) -> None:
            with suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(self._places.release)

        async with asyncio.timeout(seconds):
            await self._places.acquire()
            try:
                answer = in_thread(question)
            except RuntimeError:  # no thread can be started now
                self._places.release()
                raise
            answer.add_done_callback(leave)
            return await asyncio.shield(asyncio.wrap_future(answer))

"""What plugins decide while somebody waits they are asked in threads of their own, and for so long only.

A thread cannot be ended. So one that takes too long is left behind, and keeps its place: a plugin that is stuck takes a
few threads and no more. The threads are none of asyncio's, which the end of the process would wait for.
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
"""Plugins that may be asked at a time."""


def in_thread(work: Callable[[], T]) -> Future[T]:
    """What `work` will return, from a thread that the end of the process does not wait for."""
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
    """The same for who waits for it."""
    return await asyncio.wrap_future(in_thread(work))


class Deciding:
    """Asks plugins, each question in a thread."""

    def __init__(self) -> None:
        self._places = asyncio.Semaphore(PLACES)

    async def ask(self, question: Callable[[], T], seconds: float) -> T:
        """What `question` returns; raises TimeoutError where that takes longer, or no place is free for so long."""
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

"""One change of the pointer at a time, and rollbacks first.

A promotion takes long: every server loads the version and answers a probe. A rollback must not wait for that, because
people meet a bad version meanwhile. So the slow parts of a change are interruptible. A rollback that arrives cancels
the slow part that is under way. Whoever ran it gets `RolledBack`, gives the lock back, and may begin again.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

T = TypeVar("T")


class RolledBack(Exception):
    """A rollback arrived and did not wait."""


class RollbacksFirst:
    """The lock around changes of the pointer."""

    def __init__(self) -> None:
        self._lock = asyncio.Lock()
        self._rollbacks = 0  # that wait for the lock, or hold it
        self._interruptible: asyncio.Future[Any] | None = None  # the slow part that is under way

    @asynccontextmanager
    async def change(self) -> AsyncIterator[None]:
        """Hold the lock for a change that is no rollback."""
        async with self._lock:
            yield

    @asynccontextmanager
    async def rollback(self) -> AsyncIterator[None]:
        """Hold the lock for a rollback; what is interruptible is cancelled, not waited for."""
        self._rollbacks += 1
        try:
            if self._interruptible is not None:
                self._interruptible.cancel()
            async with self._lock:
                yield
        finally:
            self._rollbacks -= 1

    def give_way(self) -> None:
        """Raise RolledBack where a rollback waits for the lock."""
        if self._rollbacks:
            raise RolledBack

    async def interruptible(self, work: Awaitable[T], *, in_rollback: bool = False) -> T:
        """Return what `work` returns; raise RolledBack where a rollback waits, or arrives before `work` ends.

        Call it with the lock held; `in_rollback` where a rollback holds it, which another one may interrupt.
        """
        future: asyncio.Future[T] = asyncio.ensure_future(work)
        self._interruptible = future
        if self._rollbacks > in_rollback:
            future.cancel()
        try:
            return await future
        except asyncio.CancelledError:
            if (task := asyncio.current_task()) is not None and task.cancelling():
                raise  # it is the caller who was cancelled
            raise RolledBack from None
        finally:
            self._interruptible = None

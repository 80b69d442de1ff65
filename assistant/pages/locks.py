"""Locks by name, such as one for each conversation. Locks of different names do not wait for each other."""

from __future__ import annotations

import asyncio
from weakref import WeakValueDictionary


class Locks:
    """A lock for each name. It is kept only while a task holds it or waits for it."""

    def __init__(self) -> None:
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    def of(self, name: str) -> asyncio.Lock:
        """Return the lock of that name."""
        return self._locks.setdefault(name, asyncio.Lock())

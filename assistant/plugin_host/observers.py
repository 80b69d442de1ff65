"""What plugins observe they are told in one thread of their own, in order: a slow one keeps nobody waiting.

Left out: telling again after a crash. What a plugin must not miss it reads from the database or the log.
"""

from __future__ import annotations

import atexit
import logging
import queue
import threading
from collections.abc import Callable

logger = logging.getLogger(__name__)

MOST = 10_000
"""Events that may wait for a plugin which has got stuck; later ones are dropped, with a line in the log each."""
PATIENCE = 5.0
"""Seconds that the end of the process waits for what is left to be told."""


class Observers:
    """A queue of calls, and the thread that makes them, begun with the first one."""

    def __init__(self) -> None:
        self._calls: queue.Queue[Callable[[], None]] = queue.Queue(MOST)
        self._begun = False
        self._lock = threading.Lock()

    def tell(self, call: Callable[[], None]) -> None:
        """Have `call` called soon, after those before it; returns at once. It must not raise."""
        with self._lock:
            if not self._begun:
                try:
                    threading.Thread(target=self._work, name="observers", daemon=True).start()
                except RuntimeError:  # none can be started now; the next event tries again, and tells this one too
                    logger.error("plugins that observe are told later: no thread can be started")
                else:
                    self._begun = True
                    atexit.register(self.drain)
        try:
            self._calls.put_nowait(call)
        except queue.Full:
            logger.error("%d events wait for a plugin that observes: this one is told to none", MOST)

    def drain(self, seconds: float = PATIENCE) -> bool:
        """Wait until all that was told so far has been heard; False where it has not after that many seconds."""
        heard = threading.Event()
        self.tell(heard.set)
        return heard.wait(seconds)

    def _work(self) -> None:
        while True:
            self._calls.get()()

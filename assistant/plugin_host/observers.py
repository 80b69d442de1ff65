"""Calls plugins that only observe: in one background thread, in order, so that nobody waits for a slow one.

Left out: repeating calls after a crash. A plugin that must not miss anything reads the database or the log.
"""

from __future__ import annotations

import atexit
import logging
import queue
import threading
from collections.abc import Callable

logger = logging.getLogger(__name__)

MOST = 10_000
"""Events that may wait while a plugin hangs. Later ones are dropped, each with a line in the log."""
PATIENCE = 5.0
"""Seconds that the end of the process waits for the events that are still in the queue."""


class Observers:
    """A queue of calls, and the thread that makes them. The thread starts with the first call."""

    def __init__(self) -> None:
        self._calls: queue.Queue[Callable[[], None]] = queue.Queue(MOST)
        self._begun = False
        self._lock = threading.Lock()

    def tell(self, call: Callable[[], None]) -> None:
        """Call `call` soon, after the earlier ones; returns at once. `call` must not raise."""
        with self._lock:
            if not self._begun:
                try:
                    threading.Thread(target=self._work, name="observers", daemon=True).start()
                except (
                    RuntimeError
                ):  # no thread can be started now; the next event tries again, and then this one is told too
                    logger.error("observing plugins are told later: no thread can be started")
                else:
                    self._begun = True
                    atexit.register(self.drain)
        try:
            self._calls.put_nowait(call)
        except queue.Full:
            logger.error("%d events wait for an observing plugin: this event is dropped", MOST)

    def drain(self, seconds: float = PATIENCE) -> bool:
        """Wait until all calls so far were made; returns False if they were not after that many seconds."""
        heard = threading.Event()
        self.tell(heard.set)
        return heard.wait(seconds)

    def _work(self) -> None:
        while True:
            self._calls.get()()

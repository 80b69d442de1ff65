"""A server that lets open replies end when it is asked to stop.

uvicorn closes its port first and then waits for every connection, also for those of pages that only listen, which it
cancels in the end with a traceback in the log for each. Here nothing new is begun and the port stays open to say so
(503), until the replies have ended or `drain_seconds` are over; then what still listens is hung up on, as if its reader
had left. A second signal stops at once.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from types import FrameType
from typing import TYPE_CHECKING

import uvicorn

if TYPE_CHECKING:
    from thumbwise.serving.assistant import Assistant

log = logging.getLogger(__name__)
SHORT = 1.0
"""Seconds that requests which are not replies, a vote for one, have to end."""


class Drained(uvicorn.Server):
    """As uvicorn's, but for the first signal."""

    def __init__(self, config: uvicorn.Config, assistant: Assistant, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(config)
        self.assistant, self.loop = assistant, loop
        self._draining: asyncio.Task[None] | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Drain, then stop; runs as a signal handler, so the work is left to the loop."""
        if self.assistant.load.stopping:
            super().handle_exit(sig, frame)
        else:
            self.assistant.load.stopping = True
            self.loop.call_soon_threadsafe(self._begin, sig)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn's, but who is still connected after SHORT seconds is hung up on."""
        hang_up = self.loop.call_later(SHORT, self._hang_up)
        await super().shutdown(sockets)
        hang_up.cancel()

    def _hang_up(self) -> None:
        for connection in list(self.server_state.connections):
            if connection.transport is not None:
                connection.transport.abort()

    def _begin(self, sig: int) -> None:
        self._draining = asyncio.create_task(self._drain(sig))

    async def _drain(self, sig: int) -> None:
        load, seconds = self.assistant.load, self.assistant.settings.drain_seconds
        if load.open:
            log.info("%d replies may end within %g s; a second signal stops at once", load.open, seconds)
        if not await load.drain(seconds):
            log.warning("%d replies had not ended after %g s and are cut off", load.open, seconds)
        super().handle_exit(sig, None)

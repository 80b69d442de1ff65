"""Graceful shutdown: drain the replies in flight, then stop.

| when | what happens |
|---|---|
| first signal | the drain begins: nothing new is admitted (503), and the port stays open to answer so |
| no reply is in flight, or the grace period `drain_seconds` is over | uvicorn stops; what still runs is cancelled |
| LAST_SECONDS later | connections that are still open are aborted, as if their reader had disconnected |
| second signal, at any time | uvicorn stops at once |

uvicorn's own shutdown is not enough. It closes the port first and then waits for every connection, also for the streams
of open pages. These never end. At last it cancels them, with a traceback in the log for each.
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
LAST_SECONDS = 1.0
"""After the drain, requests that are not replies (such as a vote) have this long to end."""


class DrainingServer(uvicorn.Server):
    """uvicorn's server, with a drain before its shutdown."""

    def __init__(self, config: uvicorn.Config, assistant: Assistant, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(config)
        self.assistant, self.loop = assistant, loop
        self._drain_task: asyncio.Task[None] | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Start the drain at the first signal, and stop at the second; a signal handler, so the event loop does it."""
        if self.assistant.admission.draining:
            super().handle_exit(sig, frame)
        else:
            self.assistant.admission.draining = True
            self.loop.call_soon_threadsafe(self._start_drain, sig)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Shut down as uvicorn does, but abort the connections that are still open after LAST_SECONDS."""
        abort = self.loop.call_later(LAST_SECONDS, self._abort_connections)
        await super().shutdown(sockets)
        abort.cancel()

    def _abort_connections(self) -> None:
        for connection in list(self.server_state.connections):
            if connection.transport is not None:
                connection.transport.abort()

    def _start_drain(self, sig: int) -> None:
        self._drain_task = asyncio.create_task(self._drain(sig))

    async def _drain(self, sig: int) -> None:
        admission, grace = self.assistant.admission, self.assistant.settings.drain_seconds
        if admission.in_flight:
            log.info("%d replies in flight have %g s to end; a second signal stops at once", admission.in_flight, grace)
        if not await admission.drain(grace):
            log.warning("%d replies have not ended after %g s and are cancelled", admission.in_flight, grace)
        super().handle_exit(sig, None)

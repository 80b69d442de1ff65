"""Time limits for the head and the body of HTTP requests.

uvicorn limits only the time between two requests. Without these limits, a client that connects and sends nothing, stops
inside a head, or announces a body that never comes would hold a connection and a file handle until the process ends. A
reply may take any time. `thumbwise.chat.admission.EventStream` limits how long its reader may take nothing.
"""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_SECONDS = 15.0
"""From the connection, or from the first byte of a request, to the end of its head."""
BODY_SECONDS = 30.0
"""From the end of a head to the end of its body. Each byte of the body adds time, at LEAST_RATE."""
LEAST_RATE = 64 * 1024
"""Bytes a second. An adapter of a gigabyte may take four hours."""
MAX_HEAD = 64 * 1024
"""Bytes of a head. uvicorn's parser has no limit."""


class TimedProtocol(HttpToolsProtocol):
    """uvicorn's protocol, with a timer for the head or the body that is expected."""

    _timer: asyncio.TimerHandle | None = None
    _since = 0.0
    _received = 0
    _in_head = True

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Expect a head."""
        super().connection_made(transport)
        self._start(in_head=True)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the timer."""
        self._stop()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Count the bytes, and expect a head if a request begins."""
        if self._timer is None and (self.cycle is None or self.cycle.response_complete):
            self._start(in_head=True)
        self._received += len(data)
        if self._in_head and self._timer is not None and self._received > MAX_HEAD + len(data):
            self.send_400_response("The head of the request is too long.")
            return
        super().data_received(data)

    def on_message_begin(self) -> None:
        """Expect a head. The request before this one may still be in progress."""
        self._start(in_head=True)
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Expect the body."""
        self._start(in_head=False)
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """Stop the timer: the request is complete."""
        self._stop()
        super().on_message_complete()

    def _start(self, *, in_head: bool) -> None:
        self._stop()
        self._since, self._received, self._in_head = self.loop.time(), 0, in_head
        self._timer = self.loop.call_later(HEAD_SECONDS if in_head else BODY_SECONDS, self._check)

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _check(self) -> None:
        self._timer = None
        if self.transport.is_closing():
            return
        left = 0.0 if self._in_head else self._since + BODY_SECONDS + self._received / LEAST_RATE - self.loop.time()
        if not self._in_head and self.flow.read_paused:  # the server does not read, so the client cannot send
            left = BODY_SECONDS
        if left <= 0:
            self.transport.close()
        else:
            self._timer = self.loop.call_later(left, self._check)

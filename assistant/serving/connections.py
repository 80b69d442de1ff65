"""HTTP connections that do not wait for ever: for a request's head, for its body, for the next byte of either.

uvicorn has a limit for the time between two requests only. Who connects and says nothing, breaks off in a head, or
announces a body that does not come would hold a connection, and a file handle, until the process ends. There is no
limit on how long a reply takes; `thumbwise.chat.admission.EventStream` has one on how long its reader does.
"""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_SECONDS = 15.0
"""From the connection, or a request's first byte, to the end of its head."""
BODY_SECONDS = 30.0
"""From the end of a head to the end of its body, and longer by what came at LEAST_RATE."""
LEAST_RATE = 64 * 1024
"""Bytes a second; an adapter of a gigabyte may take four hours."""
MAX_HEAD = 64 * 1024
"""Bytes of a head; uvicorn's parser knows no limit."""


class Patient(HttpToolsProtocol):
    """uvicorn's protocol, and a clock for what has been begun."""

    _clock: asyncio.TimerHandle | None = None
    _since = 0.0
    _came = 0
    _in_head = True

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A head is expected from now on."""
        super().connection_made(transport)
        self._start(in_head=True)

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is expected any more."""
        self._stop()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Count what comes, and begin to expect a head where a request begins."""
        if self._clock is None and (self.cycle is None or self.cycle.response_complete):
            self._start(in_head=True)
        self._came += len(data)
        if self._in_head and self._clock is not None and self._came > MAX_HEAD + len(data):
            self.send_400_response("The head of the request is too long.")
            return
        super().data_received(data)

    def on_message_begin(self) -> None:
        """A request begins, perhaps while the one before it is being answered."""
        self._start(in_head=True)
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Now the body is expected."""
        self._start(in_head=False)
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """The request is whole."""
        self._stop()
        super().on_message_complete()

    def _start(self, *, in_head: bool) -> None:
        self._stop()
        self._since, self._came, self._in_head = self.loop.time(), 0, in_head
        self._clock = self.loop.call_later(HEAD_SECONDS if in_head else BODY_SECONDS, self._look)

    def _stop(self) -> None:
        if self._clock is not None:
            self._clock.cancel()
            self._clock = None

    def _look(self) -> None:
        self._clock = None
        if self.transport.is_closing():
            return
        left = 0.0 if self._in_head else self._since + BODY_SECONDS + self._came / LEAST_RATE - self.loop.time()
        if not self._in_head and self.flow.read_paused:  # it is we who do not read
            left = BODY_SECONDS
        if left <= 0:
            self.transport.close()
        else:
            self._clock = self.loop.call_later(left, self._look)

"""A proxy in front of a server that lets what the server sends wait, so that separate pieces arrive as one."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from urllib.parse import urlsplit


class Relay:
    """Passes connections on to `to`; what comes back is held for `seconds` from its first byte on."""

    def __init__(self, to: int, seconds: float, port: int) -> None:
        self.to, self.seconds, self.port = to, seconds, port
        self.ready = threading.Event()
        self.loop = asyncio.new_event_loop()
        self._over = asyncio.Event()
        self._open: set[asyncio.Future[None]] = set()

    def run(self) -> None:
        """Relay until `stop`; in a thread of its own, since Playwright keeps a loop in that of a test."""
        with asyncio.Runner(loop_factory=lambda: self.loop) as runner:
            runner.run(self._serve())

    def stop(self) -> None:
        """End all connections."""
        self.loop.call_soon_threadsafe(self._over.set)

    async def _serve(self) -> None:
        server = await asyncio.start_server(self._connected, "127.0.0.1", self.port)
        self.port = server.sockets[0].getsockname()[1]
        self.ready.set()
        await self._over.wait()
        server.close()
        if self._open:
            await asyncio.wait(self._open, timeout=10)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if this := asyncio.current_task():
            self._open.add(this)
            this.add_done_callback(self._open.discard)
        try:
            back, forth = await asyncio.open_connection("127.0.0.1", self.to)
        except OSError:
            writer.close()
            return
        both = (self._pass(reader, forth, 0.0), self._pass(back, writer, self.seconds))
        ways = [asyncio.ensure_future(way) for way in both]
        over = asyncio.ensure_future(self._over.wait())
        await asyncio.wait([*ways, over], return_when=asyncio.FIRST_COMPLETED)
        for task in (*ways, over):
            task.cancel()
        for end in (writer, forth):
            end.close()
            with suppress(OSError):
                await end.wait_closed()

    async def _pass(self, source: asyncio.StreamReader, target: asyncio.StreamWriter, held: float) -> None:
        with suppress(ConnectionError):
            while data := await source.read(2**16):
                if held:
                    await asyncio.sleep(held)
                    with suppress(TimeoutError):  # all that has come meanwhile
                        while more := await asyncio.wait_for(source.read(2**16), 0.001):
                            data += more
                target.write(data)
                await target.drain()


@contextmanager
def holding(url: str, seconds: float = 0.04, port: int = 0) -> Iterator[str]:
    """The address of a relay to `url` for as long as the block lasts; its connections end with it."""
    relay = Relay(urlsplit(url).port or 80, seconds, port)
    thread = threading.Thread(target=relay.run, daemon=True)
    thread.start()
    assert relay.ready.wait(20)
    try:
        yield f"http://127.0.0.1:{relay.port}"
    finally:
        relay.stop()
        thread.join(20)

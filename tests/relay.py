"""A proxy in front of a server that lets what the server sends wait, so that separate pieces arrive as one."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from urllib.parse import urlsplit


class Holding:
    """Passes connections on to `port`; what comes back is held for `seconds` from its first byte on."""

    def __init__(self, port: int, seconds: float) -> None:
        self.port, self.seconds = port, seconds

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Relay one connection, both ways, until either side closes it."""
        try:
            back, forth = await asyncio.open_connection("127.0.0.1", self.port)
        except OSError:
            writer.close()
            return
        ways = [
            asyncio.ensure_future(self._pass(reader, forth, False)),
            asyncio.ensure_future(self._pass(back, writer, True)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            for end in (writer, forth):
                end.transport.abort()

    async def _pass(self, source: asyncio.StreamReader, target: asyncio.StreamWriter, held: bool) -> None:
        with suppress(ConnectionError):
            while data := await source.read(2**16):
                if held:
                    await asyncio.sleep(self.seconds)
                    with suppress(TimeoutError):  # all that has come meanwhile
                        while more := await asyncio.wait_for(source.read(2**16), 0.001):
                            data += more
                target.write(data)
                await target.drain()


@contextmanager
def holding(url: str, seconds: float = 0.04, port: int = 0) -> Iterator[str]:
    """The address of a relay to `url` for as long as the block lasts; its connections end with it."""
    relay, loop = Holding(urlsplit(url).port or 80, seconds), asyncio.new_event_loop()
    server = loop.run_until_complete(asyncio.start_server(relay.serve, "127.0.0.1", port))
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        server.close()
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()

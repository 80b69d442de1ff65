"""An assistant whose engine writes WORDS words, 20 a second: `server.py HOME`. Prints its address. Runs in any build.

What it imports is what every build has had since the pages keep their replies in tasks of the server.
"""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import uvicorn

from thumbwise.engine.client import Chunk
from thumbwise.home import Home, HomeLock
from thumbwise.serving.assistant import Assistant
from thumbwise.settings import Settings
from thumbwise.web import create_app

WORDS = 60
SECONDS = 0.05  # a word


class Client:
    """Writes words of a few letters, at an even pace whatever the machine does."""

    heard = 0.0

    async def chat(self, model: str, messages: Any, sampling: Any) -> AsyncGenerator[Chunk, None]:
        """Yield one reply."""
        loop = asyncio.get_running_loop()
        begun = loop.time()
        for number in range(WORDS):
            await asyncio.sleep(begun + (number + 1) * SECONDS - loop.time())
            reason = "stop" if number + 1 == WORDS else None
            yield Chunk(f"word{number} ", (number,), reason, model, prompt_ids=(1, 2, 3) if number == 0 else None)


class Engine:
    """A supervisor whose engine is always there."""

    def __init__(self) -> None:
        self.client = Client()
        self.state, self.detail, self.warning, self.answering = "ready", "The engine is ready.", "", 1
        self.on_ready: list[Any] = []

    async def stop(self) -> None:
        """Nothing to stop."""


async def nothing() -> None:
    """Stands in for the start of a real engine."""


def main(folder: Path) -> None:
    """Serve until the process is ended."""
    home = Home.find(folder)
    home.config.write_text("in_flight = 1000\nlocal_in_flight = 1000\n")
    with HomeLock(home) as lock, socket.socket() as bound:
        assistant = Assistant(home, Settings.load(home))
        assistant.engine, assistant.start = Engine(), nothing  # type: ignore[assignment, method-assign]
        bound.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        bound.bind(("127.0.0.1", 0))
        bound.listen()
        lock.announce(url := f"http://127.0.0.1:{bound.getsockname()[1]}")
        print(url, flush=True)
        uvicorn.Server(uvicorn.Config(create_app(assistant), log_level="warning")).run(sockets=[bound])


if __name__ == "__main__":
    main(Path(sys.argv[1]))

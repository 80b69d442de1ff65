"""An assistant whose engine writes WORDS words, 20 a second: `server.py HOME` prints its address. Runs in any build."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from any_build import either, serve

WORDS = 60
SECONDS = 0.05  # a word


class Client:
    """Writes words of a few letters, at an even pace whatever the machine does."""

    heard = 0.0

    async def chat(self, model: str, messages: Any, sampling: Any) -> AsyncGenerator[Any, None]:
        """Yield one reply."""
        make = either("engine.client", "engine_client").Chunk
        loop = asyncio.get_running_loop()
        begun = loop.time()
        for number in range(WORDS):
            await asyncio.sleep(begun + (number + 1) * SECONDS - loop.time())
            reason = "stop" if number + 1 == WORDS else None
            yield make(f"word{number} ", (number,), reason, model, prompt_ids=(1, 2, 3) if number == 0 else None)


if __name__ == "__main__":
    serve(Path(sys.argv[1]), "in_flight = 1000\nlocal_in_flight = 1000\n", Client())

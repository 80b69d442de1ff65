"""An assistant with accounts; its engine repeats the question's marker: `people_server.py HOME` prints its address."""

from __future__ import annotations

import re
import sys
from collections.abc import AsyncGenerator
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from any_build import serve

from page_parts.server import Client

MARKER = re.compile(r"marker[0-9a-f]{12}")


class Echo(Client):
    """Each word carries the marker of the last question, so that a reply in the wrong page is seen."""

    async def chat(self, model: str, messages: Any, sampling: Any) -> AsyncGenerator[Any, None]:
        """Yield one reply."""
        marker = MARKER.findall(str(messages))[-1]
        async for chunk in super().chat(model, messages, sampling):
            yield replace(chunk, text=f"{marker} ")


if __name__ == "__main__":
    serve(Path(sys.argv[1]), 'auth = "accounts"\nin_flight = 1000\n', Echo())

"""Two servers for the gateway's benchmark, each a process of its own: `python servers.py fake|assistant ...`.

`fake SOCKET` speaks vLLM's stream of events as fast as it can; `assistant HOME SOCKET` is a whole assistant in front of
it, which prints its URL and runs in any build. So what is measured is the gateway, and not a model.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from aiohttp import web

sys.path.insert(0, str(Path(__file__).parents[1]))

from any_build import either, serve

TOKENS = 8


def events(model: str) -> bytes:
    """A reply of TOKENS tokens, as vLLM sends it with `return_token_ids`."""

    def event(choice: dict[str, Any], **rest: Any) -> bytes:
        return b"data: " + json.dumps({"model": model, "choices": [{"index": 0, **choice}], **rest}).encode() + b"\n\n"

    first = event({"delta": {"role": "assistant", "content": ""}, "token_ids": []}, prompt_token_ids=[1] * 256)
    words = [
        event({"delta": {"content": " word"}, "token_ids": [n], "finish_reason": "length" if n == TOKENS else None})
        for n in range(1, TOKENS + 1)
    ]
    return first + b"".join(words) + b"data: [DONE]\n\n"


def fake(socket: str) -> None:
    """Answer every chat request with `events`."""

    async def chat(request: web.Request) -> web.Response:
        model = (await request.json())["model"]
        return web.Response(body=events(model), content_type="text/event-stream")

    app = web.Application()
    app.router.add_post("/v1/chat/completions", chat)
    app.router.add_get("/health", lambda request: web.Response())
    web.run_app(app, path=socket, print=None)


def assistant(home: str, socket: str) -> None:
    """Serve a home whose engine is the fake one."""
    client = either("engine.client", "engine_client").EngineClient(uds=Path(socket))
    serve(Path(home), "in_flight = 10000\nnames_are_people = true\n", client)


if __name__ == "__main__":
    {"fake": fake, "assistant": assistant}[sys.argv[1]](*sys.argv[2:])

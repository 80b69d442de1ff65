"""Calls of an ASGI application in this process that also end where the answer is a stream without an end."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote, urlsplit

LISTEN = 0.1
"""Seconds that a stream of events is read."""


@dataclass(frozen=True)
class Answer:
    """What came back. Status 500 also where the application raised an error."""

    status: int
    headers: dict[str, str]
    body: bytes


async def asgi_call(app: Any, method: str, url: str, headers: dict[str, str], body: bytes = b"") -> Answer:
    """Send one request; leave a stream of events after LISTEN seconds, as a browser that closes the page."""
    parts = urlsplit(url)
    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "scheme": parts.scheme,
        "path": unquote(parts.path), "raw_path": parts.path.encode(), "query_string": parts.query.encode(),
        "root_path": "", "headers": [(name.lower().encode(), value.encode("utf-8")) for name, value in headers.items()],
        "client": ("127.0.0.1", 1), "server": (parts.hostname, parts.port), "state": {},
    }  # fmt: skip
    told: list[dict[str, Any]] = []
    sent, leave, begun = False, asyncio.Event(), asyncio.Event()

    async def receive() -> dict[str, Any]:
        nonlocal sent
        if not sent:
            sent = True
            return {"type": "http.request", "body": body, "more_body": False}
        await leave.wait()
        return {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        told.append(message)
        begun.set()

    work = asyncio.create_task(app(scope, receive, send))
    started = asyncio.create_task(begun.wait())
    await asyncio.wait({work, started}, return_when=asyncio.FIRST_COMPLETED, timeout=120)
    started.cancel()
    if not work.done() and told and b"event-stream" in dict(told[0]["headers"]).get(b"content-type", b""):
        await asyncio.wait({work}, timeout=LISTEN)
    elif not work.done():
        await asyncio.wait({work}, timeout=120)
    leave.set()
    await asyncio.wait({work}, timeout=10)
    failed = None if not work.done() or work.cancelled() else work.exception()
    if failed is not None or not told:
        return Answer(500, {}, repr(failed).encode())
    named = {name.decode().lower(): value.decode("latin-1") for name, value in told[0]["headers"]}
    return Answer(told[0]["status"], named, b"".join(message.get("body", b"") for message in told[1:]))

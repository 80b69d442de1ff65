"""Pages without a browser: they send the requests that the page's own script sends, and read the answers."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Protocol

import httpx

WAIT = httpx.Timeout(120)


class Session(Protocol):
    """One open page."""

    async def load(self) -> None:
        """What a browser asks for while the page loads."""

    async def say(self, text: str) -> None:
        """Ask, and return with the last word."""

    async def idle(self) -> None:
        """Be looked at, until cancelled."""


class Routes:
    """A page whose script asks routes of its own, and listens to one stream."""

    def __init__(self, url: str, http: httpx.AsyncClient) -> None:
        self.url, self.http = url, http
        self.shown: dict[str, Any] = {}
        self._listening: asyncio.Task[None] | None = None
        self._over = asyncio.Event()

    async def load(self) -> None:
        """An empty conversation, and its stream."""
        self.shown = (await self.http.get(f"{self.url}/pages/chat?listed=1&c=new")).json()
        self._listen()

    def _listen(self) -> None:
        if self._listening is not None:
            self._listening.cancel()
        self._over.clear()
        self._listening = asyncio.create_task(self._read(self.url + self.shown["events"]))

    async def _read(self, address: str) -> None:
        async with self.http.stream("GET", address, timeout=None) as stream:
            async for line in stream.aiter_lines():
                if line == "event: end":
                    self._over.set()

    async def say(self, text: str) -> None:
        """Post the question, and follow the reply on the stream of the page that comes back."""
        body = {"conversation": self.shown["conversation"], "text": text, "listed": 1}
        answer = await self.http.post(f"{self.url}/pages/chat/messages", json=body)
        answer.raise_for_status()
        self.shown = answer.json()
        self._listen()
        await self._over.wait()

    async def idle(self) -> None:
        """The stream is open already."""
        await asyncio.Event().wait()

    async def close(self) -> None:
        """Close the page."""
        if self._listening is not None:
            self._listening.cancel()
            await asyncio.wait([self._listening])


class Queue:
    """A page whose words and ticks are Gradio's events: each is put in its queue and read from its stream."""

    def __init__(self, url: str, http: httpx.AsyncClient) -> None:
        self.url, self.http = url, http
        self.session = secrets.token_hex(6)
        self.functions: dict[str, int] = {}

    async def load(self) -> None:
        """The page's events by name, and its first."""
        config = (await self.http.get(f"{self.url}/config")).json()
        names = {part["id"]: part["props"].get("elem_id") for part in config["components"]}
        for dependency in reversed(config["dependencies"]):  # the chat page's come first
            for target, event in dependency["targets"]:
                self.functions[event if event in ("load", "tick") else f"{names.get(target)} {event}"] = dependency[
                    "id"
                ]
        await self._event("load", [None])

    async def _event(self, name: str, data: list[Any]) -> None:
        body = {"data": data, "event_data": None, "fn_index": self.functions[name], "trigger_id": None}
        joined = await self.http.post(f"{self.url}/gradio_api/queue/join", json=body | {"session_hash": self.session})
        wanted = joined.raise_for_status().json()["event_id"]
        address = f"{self.url}/gradio_api/queue/data?session_hash={self.session}"
        async with self.http.stream("GET", address, timeout=None) as stream:
            async for line in stream.aiter_lines():
                if not line.startswith("data:"):
                    continue
                told = json.loads(line.removeprefix("data:"))
                if told["msg"] == "process_completed" and told["event_id"] == wanted:
                    return

    async def say(self, text: str) -> None:
        """Press Send."""
        await self._event("tw-send click", [text, None])

    async def idle(self) -> None:
        """The page's timer, which is 8 s where the engine is ready."""
        while True:
            await asyncio.sleep(8)
            await self._event("tick", [None])

    async def close(self) -> None:
        """Nothing is open between events."""


@asynccontextmanager
async def opened(kind: type[Routes | Queue], url: str, count: int) -> AsyncIterator[list[Any]]:
    """`count` loaded pages."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    async with httpx.AsyncClient(timeout=WAIT, limits=limits, trust_env=False) as http:
        pages = [kind(url, http) for _ in range(count)]
        for page in pages:
            await page.load()
        try:
            yield pages
        finally:
            await asyncio.gather(*(page.close() for page in pages))

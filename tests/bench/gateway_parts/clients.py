"""Clients that ask vLLM directly or through the assistant, alike, and how long they waited."""

from __future__ import annotations

import asyncio
import json
import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

WORDS = ("river", "stone", "bread", "window", "garden", "letter", "summer", "market", "winter", "music", "paper")
PROMPT_WORDS = 236  # with the template, 256 tokens or somewhat more


@dataclass(frozen=True)
class Reply:
    """Seconds to the first token and to the end, and the tokens of prompt and reply."""

    first: float
    whole: float
    prompt: int
    tokens: int


class Asker:
    """Asks one server; `url` is the assistant's, `socket` vLLM's."""

    def __init__(self, *, url: str = "", socket: Path | None = None, seed: int = 0) -> None:
        self.direct = socket is not None
        self.url = url or "http://engine"
        self.socket = socket
        self.rng = random.Random(seed)
        self.asked = 0

    def session(self) -> aiohttp.ClientSession:
        """Connections that are kept."""
        link = aiohttp.UnixConnector(str(self.socket), limit=0) if self.socket else aiohttp.TCPConnector(limit=0)
        return aiohttp.ClientSession(connector=link)

    def body(self, tokens: int) -> dict[str, Any]:
        """A prompt that nobody asked before, so that no cache knows it; sampling as the assistant asks for it."""
        self.asked += 1
        text = f"{self.asked} " + " ".join(self.rng.choices(WORDS, k=PROMPT_WORDS))
        body: dict[str, Any] = {
            "messages": [{"role": "user", "content": text}], "max_completion_tokens": tokens, "temperature": 0.7,
            "stream": True, "stream_options": {"include_usage": True},
        }  # fmt: skip
        if self.direct:
            return body | {"model": "policy-0000", "return_token_ids": True}
        return body | {"user": f"user-{self.asked % 64}"}

    async def ask(self, session: aiohttp.ClientSession, tokens: int) -> Reply:
        """One streamed reply."""
        start, first, usage, rest = time.perf_counter(), 0.0, {}, b""
        async with session.post(f"{self.url}/v1/chat/completions", json=self.body(tokens)) as answer:
            if answer.status != 200:
                raise SystemExit(f"status {answer.status}: {(await answer.text())[:300]}")
            async for data in answer.content.iter_any():
                *lines, rest = (rest + data).split(b"\n\n")
                for line in lines:
                    if not line.startswith(b"data: {"):
                        continue
                    event = json.loads(line[6:])
                    if not first and any(choice["delta"].get("content") for choice in event["choices"]):
                        first = time.perf_counter() - start
                    usage = event.get("usage") or usage
        whole = time.perf_counter() - start
        return Reply(first or whole, whole, usage.get("prompt_tokens", 0), usage.get("completion_tokens", 0))

    async def burst(self, streams: int, tokens: int) -> tuple[float, list[Reply]]:
        """`streams` replies begun together: tokens a second of all, and each."""
        async with self.session() as session:
            start = time.perf_counter()
            replies = await asyncio.gather(*(self.ask(session, tokens) for _ in range(streams)))
            return sum(reply.tokens for reply in replies) / (time.perf_counter() - start), replies

    async def at_rate(self, rate: float, seconds: float) -> list[float]:
        """Seconds of whole replies that are asked for at `rate` a second, whether or not earlier ones have ended."""
        async with self.session() as session:
            start, tasks = time.perf_counter(), []
            for number in range(int(rate * seconds)):
                await asyncio.sleep(max(0.0, start + number / rate - time.perf_counter()))
                tasks.append(asyncio.create_task(self.ask(session, 8)))
            return [reply.whole for reply in await asyncio.gather(*tasks)]

"""Stand-ins for vLLM in tests that are about something else: same interface, canned replies."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from thumbwise.contracts import Message
from thumbwise.engine.client import Chunk, Sampling
from thumbwise.errors import ThumbwiseError
from thumbwise.feedback.records import LOCAL_USER, Asker


def asker(user: str = LOCAL_USER) -> Asker:
    """Somebody who is a person of their own."""
    return Asker(user, f"name:{user}")


class FakeEngineClient:
    """Streams `words`, one a chunk; `fail_after` chunks it raises `failure`; `gate` holds chunks back."""

    def __init__(self, words: Sequence[str] = ("Hello", " there", " friend")) -> None:
        self.words = list(words)
        self.fail_after: int | None = None
        self.failure: ThumbwiseError | None = None
        self.gate: asyncio.Event | None = None
        self.asked: list[tuple[str, list[Message], Sampling]] = []
        self.open_streams = 0
        self.heard = 0.0  # never, on time.monotonic()'s clock
        self.loaded: dict[str, Path] = {}
        self.logprobs: dict[str, dict[int, float]] = {}

    async def chat(self, model: str, messages: Sequence[Message], sampling: Sampling) -> AsyncGenerator[Chunk, None]:
        self.asked.append((model, list(messages), sampling))
        self.open_streams += 1
        try:
            for i, word in enumerate(self.words[: sampling.max_tokens]):
                if self.fail_after == i and self.failure is not None:
                    raise self.failure
                if self.gate is not None and i > 0:
                    await self.gate.wait()
                await asyncio.sleep(0)
                last = i + 1 == min(len(self.words), sampling.max_tokens)
                reason = ("stop" if i + 1 == len(self.words) else "length") if last else None
                chunk = Chunk(word, (10 + i,), reason, model, prompt_ids=(1, 2, 3) if i == 0 else None)
                yield replace(chunk, logprobs=(-0.5 * i,), tokens=(word,)) if sampling.logprobs else chunk
        finally:
            self.open_streams -= 1

    async def next_tokens(self, model: str, contexts: Sequence[Any], top: int = 20) -> list[dict[int, float]]:
        return [self.logprobs[model]] * len(contexts)

    async def load_adapter(self, name: str, path: Path) -> None:
        self.loaded[name] = path

    async def on_each(self, work: Callable[[Any], Awaitable[Any]]) -> list[Any]:
        return [await work(self)]

    def others(self, client: Any) -> bool:
        return False


class FakeEngine:
    """A supervisor whose engine is always there."""

    def __init__(self, client: FakeEngineClient) -> None:
        self.client = client
        self.state = "ready"
        self.detail = "The engine is ready."
        self.warning = ""
        self.answering = 1
        self.on_ready: list[Callable[[Any], Awaitable[None]]] = []

    async def start(self) -> None:
        for call in self.on_ready:
            await call(self.client)

    async def stop(self) -> None:
        self.state = "stopped"

"""Readers who hold streamed replies open across a swap, and what their replies show about it.

A reply is *dropped* if it ends in an error, without a finish reason, or after 60 s of silence. Nothing is asked again.

A reply is *mixed* if some span of it fits another live version better than the version that it names. To find out, the
engine's log-probabilities of the sampled tokens are compared with those that the trainer computes for the same tokens
under every version.

So both are counted by what replies contain, not by what the server says about itself.

Left out: faults shorter than a span of tokens, which the formats' rounding hides.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import httpx

from thumbwise.training.run.folders import read_json, write_json

READERS = 12
SPAN = 8
MARGIN = 0.1
"""The margin, in nats a token, by which a span must fit another version better. bfloat16 differs by far less."""
SILENCE = 60.0
"""After how many seconds a reader gives up. The assistant waits longer for vLLM."""
LONGEST = 4096
ASKED = (
    "Tell me a long story about a lighthouse keeper.",
    "Explain in detail how bread is made, step by step.",
    "Write a long letter to a friend about your summer.",
    "Describe a walk through an old town, street by street.",
)


@dataclass
class Reply:
    """One streamed reply. Times are UTC seconds: of the question, of its first token and of its end."""

    asked: float = 0.0
    begun: float = 0.0
    ended: float = 0.0
    version: str = ""
    messages: list[dict[str, str]] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    """The times of each piece with tokens, in UTC seconds."""
    finish_reason: str | None = None
    error: str = ""
    wanted: int = 0
    """The number of tokens that were asked for."""

    @property
    def dropped(self) -> bool:
        """Whether the reply was dropped."""
        return bool(self.error) or self.finish_reason is None

    def take(self, event: dict[str, Any]) -> None:
        """Take in one event of the stream. The first one says which version answers, before there is a token."""
        if "error" in event:
            self.error = str(event["error"]["message"])
            return
        self.version = event.get("model", self.version)
        for choice in event["choices"]:
            self.finish_reason = choice.get("finish_reason") or self.finish_reason
            logprobs = choice.get("logprobs") or {}
            if logprobs.get("token_ids"):
                self.times.append(time.time())
                self.begun = self.times[0]
            self.token_ids += logprobs.get("token_ids", [])
            self.logprobs += [row["logprob"] for row in logprobs.get("content") or ()]


@dataclass
class Seen:
    """What readers saw of a swap."""

    replies: list[Reply] = field(default_factory=list)
    flip: float | None = None
    """When the pointer moved, in UTC seconds, by the assistant's own log."""
    stable: str = ""
    """The version that the pointer names since then."""

    def save(self, path: Path) -> None:
        """Write it as JSON."""
        write_json(
            path, {"replies": [asdict(reply) for reply in self.replies], "flip": self.flip, "stable": self.stable}
        )

    @classmethod
    def load(cls, path: Path) -> Seen:
        """Read what `save` wrote. If there is no such file, nothing was seen."""
        found = read_json(path)
        return (
            cls() if found is None else cls([Reply(**row) for row in found["replies"]], found["flip"], found["stable"])
        )

    def across(self) -> list[Reply]:
        """Replies that were open while the pointer moved: the old version was chosen, and the reply had not ended."""
        if self.flip is None:
            return []
        span = [reply for reply in self.replies if reply.asked <= self.flip <= reply.ended]
        return [reply for reply in span if reply.version not in ("", self.stable)]

    def nearest(self, count: int) -> list[Reply]:
        """The `count` whole replies that were streamed nearest to the flip (to the end, if there was no flip)."""
        whole = [reply for reply in self.replies if not reply.dropped and reply.token_ids]
        at = self.flip if self.flip is not None else max((reply.ended for reply in whole), default=0.0)
        return sorted(whole, key=lambda r: max(r.begun - at, at - r.ended, 0.0))[:count]


class SwapMonitor(Seen):
    """Keeps `readers` replies open at `url` from `start` to `stop`, then asks when the pointer moved.

    What it has seen is complete when `stop` has returned.
    """

    def __init__(self, url: str, max_tokens: int, readers: int = READERS) -> None:
        super().__init__()
        self.url, self.max_tokens, self.readers = url, min(max_tokens, LONGEST), readers
        self._open = 0
        self._enough = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._all()), name="swap monitor", daemon=True)

    def start(self) -> None:
        """Open the streams."""
        self._thread.start()

    @property
    def watching(self) -> bool:
        """Whether the streams have been opened."""
        return self._thread.ident is not None

    def wait_open(self, count: int, patience: float = 120.0) -> bool:
        """Wait until `count` replies are being streamed, for at most `patience` seconds. Returns whether they are."""
        deadline = time.monotonic() + patience
        while self._open < count and time.monotonic() < deadline:
            time.sleep(0.05)
        return self._open >= count

    def stop(self, linger: float = 1.0) -> None:
        """Ask for `linger` more seconds, then let every reader finish the reply that is open."""
        if not self.watching:
            return
        time.sleep(linger)
        self._enough.set()
        self._thread.join()
        ready = httpx.get(f"{self.url}/health/ready", timeout=30, trust_env=False).json()
        first = min((reply.asked for reply in self.replies), default=0.0)
        if ready["stable_since"] is not None and ready["stable_since"] > first:
            self.flip, self.stable = ready["stable_since"], ready["stable"]

    async def _all(self) -> None:
        # One connection per reply: if the server closed a shared one, that would look like a dropped reply.
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
        timeout = httpx.Timeout(SILENCE)
        async with httpx.AsyncClient(base_url=self.url, timeout=timeout, limits=limits, trust_env=False) as http:
            await asyncio.gather(*(self._read(http, number) for number in range(self.readers)))

    async def _read(self, http: httpx.AsyncClient, number: int) -> None:
        # First replies have different lengths: otherwise all readers would be between two replies at the same time.
        length = max(self.max_tokens * (number + 1) // self.readers, 1)
        while not self._enough.is_set():
            reply = Reply(time.time(), messages=[{"role": "user", "content": ASKED[number % len(ASKED)]}])
            reply.wanted = length
            body = {
                "messages": reply.messages, "max_tokens": length, "stream": True, "logprobs": True,
                "user": f"reader-{number % 8}",
            }  # fmt: skip
            try:
                async with http.stream("POST", "/v1/chat/completions", json=body) as stream:
                    await self._take_all(stream, reply)
            except httpx.HTTPError as error:
                reply.error = f"{type(error).__name__}: {error}"
            self._open -= reply.begun > 0
            reply.ended = time.time()
            self.replies.append(reply)
            length = self.max_tokens
            if reply.error:
                await asyncio.sleep(0.5)

    async def _take_all(self, stream: httpx.Response, reply: Reply) -> None:
        """Read a stream to its end. Lines are split at newlines only, because JSON may hold U+2028."""
        rest = b""
        async for data in stream.aiter_bytes():
            *lines, rest = (rest + data).split(b"\n")
            before = reply.begun > 0
            for line in lines:
                if line.startswith(b"data: {"):
                    reply.take(json.loads(line[6:]))
            self._open += (reply.begun > 0) - before
        if stream.is_error:
            reply.error = f"status {stream.status_code}: {rest.decode(errors='replace')[:200]}"


def strangest_span(own: Sequence[float], other: Sequence[float], span: int = SPAN) -> float:
    """How much better some span of tokens fits `other` than `own`, in nats a token (negative: nowhere better).

    Both are |engine's - trainer's log-probability| per token: of the version that a reply names, and of another one. A
    reply shorter than `span` is one span.
    """
    gains = [a - b for a, b in zip(own, other, strict=True)]
    width = min(span, len(gains))
    return max(sum(gains[at : at + width]) / width for at in range(len(gains) - width + 1))


Force = Callable[[Sequence[Reply], str], list[list[float]]]
"""The trainer's log-probabilities of replies' tokens under a version, one list a reply."""


def mixed(replies: Sequence[Reply], versions: Sequence[str], force: Force) -> list[tuple[Reply, str, float]]:
    """The replies with a span that fits another of `versions` better by MARGIN, with which one and how much."""
    found: list[tuple[Reply, str, float]] = []
    replies = [reply for reply in replies if reply.token_ids and reply.version in versions]
    distances: Mapping[str, list[list[float]]] = {
        version: [
            [abs(a - b) for a, b in zip(reply.logprobs, forced, strict=True)]
            for reply, forced in zip(replies, force(replies, version), strict=True)
        ]
        for version in versions
    }
    for number, reply in enumerate(replies):
        gains = {
            other: strangest_span(distances[reply.version][number], distances[other][number])
            for other in versions
            if other != reply.version
        }
        worst = max(gains, key=lambda other: gains[other], default="")
        if worst and gains[worst] > MARGIN:
            found.append((reply, worst, gains[worst]))
    return found

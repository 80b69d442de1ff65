"""People for chaos.py: voters that keep a ledger of what was acknowledged, readers that watch how streams end."""

from __future__ import annotations

import asyncio
import json
import random
import time
import uuid
from collections import Counter
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any

import httpx

THINK = (1.0, 3.0)  # seconds that a person takes; unpaced ones would leave two cores nothing to train with
AGAIN = 0.5
SILENCE = 210.0  # seconds without a byte; the assistant itself gives up after 180
REPEATED = 0.1  # share of the acknowledged votes that are sent once more
ENOUGH = 60  # votes that a run can learn from
WORDS = 200  # longest streamed reply, in tokens


@dataclass(frozen=True)
class Vote:
    """An acknowledged vote; times are monotonic."""

    user: str
    comparison: str
    choice: str
    feedback: str
    asked: float
    acknowledged: float


@dataclass
class Read:
    """What one reader saw of one reply."""

    message: str = ""
    text: str = ""
    versions: set[str] = field(default_factory=set)
    reason: str | None = None
    done: bool = False
    error: str | None = None

    def take(self, data: bytes) -> None:
        """Note what one event says."""
        if data == b"[DONE]":
            self.done = True
            return
        event = json.loads(data)
        if "error" in event:
            self.error = str(event["error"]["message"])
            return
        extra = event.get("thumbwise", {})
        self.message = extra.get("message_id", self.message)
        self.versions |= {event["model"], extra.get("policy_version", event["model"])}
        for choice in event["choices"]:
            self.text += choice["delta"].get("content") or ""
            self.reason = choice["finish_reason"] or self.reason


def sentence(answer: httpx.Response) -> str:
    """The sentence of a refusal; nothing where there is none, or where a fault shows through."""
    try:
        message = str(answer.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return ""
    return "" if answer.status_code == 500 or "Traceback" in message else message


class Clients:
    """Everything that people do, and what they were told; `over` ends them after what they are about."""

    def __init__(self, url: str, seed: int) -> None:
        self.url, self.seed = url, seed
        self.over = False
        self.votes: dict[str, Vote] = {}  # by idempotency key
        self.whole: list[Read] = []
        self.ends: Counter[str] = Counter()  # how replies ended
        self.faults: Counter[str] = Counter()
        self.retried = 0
        self.sending = asyncio.Event()  # set while a vote is on its way

    def people(self, each: int) -> list[Coroutine[Any, Any, None]]:
        """`each` voters and as many readers."""
        return [work(f"{name}-{n}") for n in range(each) for name, work in (("v", self._voter), ("r", self._reader))]

    def figures(self) -> dict[str, Any]:
        """Counts for the report."""
        faults = ("twice", "refused", "unclear", "silent", "mixed")
        return {
            "acknowledged": len(self.votes),
            "retried": self.retried,
            "replies": self.ends["whole"],
            "errors": {end: n for end, n in self.ends.items() if end != "whole"},
            **{fault: self.faults[fault] for fault in faults},
        }

    # -- what others ask ------------------------------------------------------------------------------

    async def alive(self) -> bool:
        """Whether the assistant answers at all."""
        return await self._get("/health/live") is not None

    async def ready(self) -> bool:
        """Whether it says that it is ready."""
        return await self._get("/health/ready") is not None

    async def answered(self) -> bool:
        """Whether it says that it is ready, and then answers."""
        return await self._stable() is not None

    async def stable_answers(self) -> bool:
        """Whether the version that is stable is the one that answers."""
        found = await self._stable()
        return found is not None and found[0] == found[1]

    async def enough(self) -> bool:
        """Whether there are votes that a run can learn from."""
        return len(self.votes) >= ENOUGH

    async def _stable(self) -> tuple[str, str] | None:
        """(what health says is stable, which version wrote a reply)."""
        if (health := await self._get("/health/ready")) is None:
            return None
        body = {"messages": [{"role": "user", "content": "Well?"}], "max_tokens": 4}
        async with httpx.AsyncClient(base_url=self.url, timeout=SILENCE) as http:
            answer = await self._post(http, "/v1/chat/completions", body)
        if answer is None or answer.status_code != 200:
            return None
        return health["stable"], answer.json()["thumbwise"]["policy_version"]

    async def _get(self, path: str) -> dict[str, Any] | None:
        try:
            async with httpx.AsyncClient(base_url=self.url, timeout=10) as http:
                answer = await http.get(path)
        except httpx.HTTPError:
            return None
        return dict(answer.json()) if answer.status_code == 200 else None

    async def _post(
        self, http: httpx.AsyncClient, path: str, body: dict[str, Any], **headers: str
    ) -> httpx.Response | None:
        """The answer, or None where nobody gave one; a refusal must be a sentence."""
        try:
            answer = await http.post(path, json=body, headers=headers)
        except httpx.HTTPError:
            return None
        if answer.is_error and not sentence(answer):
            self.faults["unclear"] += 1
        return answer

    # -- voters ---------------------------------------------------------------------------------------

    async def _voter(self, user: str) -> None:
        rng = random.Random(f"{self.seed}:{user}")
        async with httpx.AsyncClient(base_url=self.url, timeout=SILENCE) as http:
            while not self.over:
                await asyncio.sleep(rng.uniform(*THINK))
                asked = time.monotonic()
                prompt = f"What is {rng.randrange(40)} plus {rng.randrange(3)}?"
                body = {"messages": [{"role": "user", "content": prompt}], "user": user}
                drafts = await self._post(http, "/v1/comparisons", body)
                if drafts is not None and drafts.status_code == 200:
                    await self._vote(http, rng, user, drafts.json(), asked)

    async def _vote(
        self, http: httpx.AsyncClient, rng: random.Random, user: str, drafts: dict[str, Any], asked: float
    ) -> None:
        """Send a vote until it is acknowledged, and now and then once more."""
        left, right = (draft["text"].count("e") / max(1, len(draft["text"])) for draft in drafts["drafts"])
        choice = "tie" if left == right else "left" if left > right else "right"
        value = {"choice": choice}
        body = {"kind": "pair", "comparison_id": drafts["comparison_id"], "value": value, "user": user}
        key = str(uuid.UUID(int=rng.getrandbits(128)))
        while True:
            self.sending.set()
            answer = await self._post(http, "/v1/feedback", body, **{"Idempotency-Key": key})
            self.sending.clear()
            if answer is None or answer.status_code in (502, 503):
                self.retried += 1
                await asyncio.sleep(AGAIN)
                continue
            if answer.status_code != 201:
                self.faults["refused"] += 1
                return
            feedback = answer.json()["feedback_id"]
            if key in self.votes:
                self.faults["twice"] += feedback != self.votes[key].feedback
                return
            self.votes[key] = Vote(user, drafts["comparison_id"], choice, feedback, asked, time.monotonic())
            if rng.random() >= REPEATED:
                return

    # -- readers --------------------------------------------------------------------------------------

    async def _reader(self, user: str) -> None:
        rng = random.Random(f"{self.seed}:{user}")
        async with httpx.AsyncClient(base_url=self.url, timeout=SILENCE) as http:
            while not self.over:
                await asyncio.sleep(rng.uniform(*THINK))
                body = {"messages": [{"role": "user", "content": f"Tell me story {rng.randrange(99)}."}]}
                await self._read(http, body | {"max_tokens": WORDS, "stream": True, "user": user})

    async def _read(self, http: httpx.AsyncClient, body: dict[str, Any]) -> None:
        """Read one reply and note how it ended; only a whole one, a sentence or a cut connection will do."""
        read = Read()
        try:
            async with http.stream("POST", "/v1/chat/completions", json=body) as stream:
                if stream.is_error:
                    await stream.aread()
                    self.ends["refused"] += 1
                    self.faults["unclear"] += not sentence(stream)
                    return
                rest = b""
                async for data in stream.aiter_bytes():  # not by lines: JSON carries U+2028 and U+0085 unescaped
                    *events, rest = (rest + data).split(b"\n\n")
                    for event in events:
                        read.take(event.removeprefix(b"data: "))
        except httpx.ConnectError:
            self.ends["nobody there"] += 1
            await asyncio.sleep(AGAIN)
            return
        except httpx.TimeoutException:
            self.faults["silent"] += 1
            return
        except httpx.HTTPError:
            self.ends["connection cut"] += 1
            return
        finally:
            self.faults["mixed"] += len(read.versions) > 1
        if read.error is not None:
            self.ends["error event"] += 1
        elif read.done and read.reason:
            self.ends["whole"] += 1
            self.whole.append(read)
        else:
            self.faults["silent"] += 1

"""How much is being answered, and when to say no: by person, in all, and while the assistant is being stopped.

A person is a browser, a key, or all programs without one, whatever names they give: names cost nothing. Some places
are kept for the pages, so that programs never take all. A flood gets 429 or 503 with a `Retry-After` before it costs a
row in the database or a place in vLLM's queue. A reader who takes nothing off the wire for SLOW seconds is let go, and
vLLM drops the request. Left out: limits by the minute (what costs is what is open at once) and a queue of our own
(vLLM's is first come, first served already).
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, TypeVar

from fastapi.responses import StreamingResponse

from thumbwise.errors import EngineUnavailable, ThumbwiseError
from thumbwise.feedback.records import is_browser

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.types import Message, Send

    from thumbwise.feedback.records import Asker
    from thumbwise.metrics import Metrics
    from thumbwise.settings import Settings

log = logging.getLogger(__name__)
Answer = TypeVar("Answer")
SLOW = 30.0
"""Seconds for which a reader may leave what was sent to them untouched, and up to a tenth more."""
BETWEEN = 0.1
"""Seconds that a turn may take from its row, committed, to its stream: between them it is not counted as open."""


class Load:
    """Replies that are being generated, or are about to be."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self.settings, self.metrics = settings, metrics
        self.stopping = False
        self._by_person: Counter[str] = Counter()
        self._none = asyncio.Event()
        self._none.set()

    @property
    def open(self) -> int:
        """How many there are."""
        return self._by_person.total()

    def check(self, asker: Asker, wanted: int = 1) -> None:
        """Raise EngineUnavailable (503) or ThumbwiseError (429) where `asker` cannot have `wanted` more now."""
        if self.stopping:
            self.metrics.refused.labels("stopping").inc()
            raise EngineUnavailable("The assistant is being stopped: try again in a minute.")
        limit = self.settings.local_in_flight
        if self._by_person[asker.person] + wanted > limit:
            self.metrics.refused.labels("user").inc()
            raise ThumbwiseError(
                f"{self._by_person[asker.person]} of your requests are being answered, and at most {limit} may be at "
                "once: wait for one to end.",
                status=429,
            )
        open_, places = self.open, self.settings.in_flight
        if not asker.is_browser:
            open_ = sum(count for person, count in self._by_person.items() if not is_browser(person))
            places = max(1, places - math.ceil(places * self.settings.page_share))
        if open_ + wanted > places or self.open + wanted > self.settings.in_flight:
            self.metrics.refused.labels("all").inc()
            raise EngineUnavailable(f"{self.open} replies are being written, as many as may be: try again soon.")

    def enter(self, asker: Asker) -> None:
        """Count one more of `asker`'s, until `leave`."""
        self._by_person[asker.person] += 1
        self._none.clear()
        self.metrics.in_flight.inc()

    def leave(self, asker: Asker) -> None:
        """Count one of `asker`'s less."""
        self._by_person[asker.person] -= 1
        if not self._by_person[asker.person]:
            del self._by_person[asker.person]
        self.metrics.in_flight.dec()
        if not self._by_person:
            self._none.set()

    @contextmanager
    def held(self, asker: Asker, number: int = 1) -> Iterator[None]:
        """Count `number` more of `asker`'s for as long as the block lasts."""
        for _ in range(number):
            self.enter(asker)
        try:
            yield
        finally:
            for _ in range(number):
                self.leave(asker)

    async def drain(self, seconds: float) -> bool:
        """Take nothing more on, and wait until what is open has ended; says whether it did within `seconds`."""
        self.stopping = True
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await asyncio.sleep(BETWEEN)
                while self.open:
                    await self._none.wait()
                    await asyncio.sleep(BETWEEN)
        return not self.open


async def unless_gone(request: Request, answer: Awaitable[Answer]) -> Answer:
    """What `answer` returns; where the reader hangs up before that, it is cancelled, and ThumbwiseError (499) raised.

    `request` must have been read to its end. `answer` runs in this task, so that it is counted from its turn's row on.
    """

    async def watch(limit: asyncio.Timeout) -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        limit.reschedule(asyncio.get_running_loop().time())

    try:
        async with asyncio.timeout(None) as limit:
            watching = asyncio.create_task(watch(limit))
            try:
                return await answer
            finally:
                watching.cancel()
    except TimeoutError:
        if not limit.expired():
            raise
        raise ThumbwiseError("The reader hung up before the answer was whole.", status=499) from None


_STREAMED = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
"""Neither kept nor gathered by a proxy: nginx would hold a reply back until it has 4 kB of it."""


class Stream(StreamingResponse):
    """Server-sent events; a reader who takes nothing for SLOW seconds is as good as gone."""

    def __init__(self, events: AsyncGenerator[bytes, None]) -> None:
        super().__init__(events, media_type="text/event-stream", headers=_STREAMED)
        self.events = events

    async def stream_response(self, send: Send) -> None:
        """Send each event within about SLOW seconds; after that the reply ends as it does for a reader who hung up."""
        loop = asyncio.get_running_loop()
        since = math.inf  # when the event that is being sent was begun

        async def noted(message: Message) -> None:
            nonlocal since
            since = loop.time()
            await send(message)
            since = math.inf

        async def watch(limit: asyncio.Timeout) -> None:  # a timer for each event would cost more than the event
            while loop.time() - since < SLOW:
                await asyncio.sleep(SLOW / 10)
            limit.reschedule(loop.time())

        try:
            async with asyncio.timeout(None) as limit:
                watching = asyncio.create_task(watch(limit))
                try:
                    await super().stream_response(noted)
                finally:
                    watching.cancel()
        except TimeoutError:
            log.info("a reader took nothing for %g seconds and is let go", SLOW)
        finally:
            await self.events.aclose()  # where the end came while an event was sent, nobody else does so soon

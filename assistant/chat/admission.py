"""Admission control: how many replies are in flight, whom to refuse, the drain, and readers who are gone.

A request that is refused gets 429 or 503 with `Retry-After`. It costs neither a row in the database nor a place in
vLLM's queue.

| limit on replies in flight | counted over | answer |
|---|---|---|
| `local_in_flight` | one person: a browser, an API key, or all programs without a key | 429 |
| `in_flight` | everybody | 503 |
| `in_flight` without the share `page_share` | all programs, so that they never take every place from the pages | 503 |
| none are admitted | everybody, during the drain | 503 |

A name in the `user` field is no person, because a name costs nothing to invent.

A reader who takes nothing off the wire for STALL_SECONDS counts as disconnected: the reply is cancelled, and vLLM drops
its request. Left out: limits per minute (what costs is the number in flight), and a queue of our own (vLLM's queue
already is first come, first served).
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

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.types import Message, Send

    from thumbwise.feedback.records import Asker
    from thumbwise.metrics import Metrics
    from thumbwise.settings import Settings

log = logging.getLogger(__name__)
Answer = TypeVar("Answer")
STALL_SECONDS = 30.0
"""A reader may take nothing for this long, and for up to a tenth longer."""
START_SECONDS = 0.1
"""A turn whose row is committed starts its stream within this time. Until then it is not counted as in flight."""


class Admission:
    """Counts the replies in flight, and refuses requests beyond the limits."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self.settings, self.metrics = settings, metrics
        self.draining = False
        """Whether the assistant was asked to stop. Then nothing is admitted."""
        self._by_person: Counter[tuple[str, bool]] = Counter()  # by person, and whether from a page
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def in_flight(self) -> int:
        """The number of replies in flight."""
        return self._by_person.total()

    def check(self, asker: Asker, wanted: int = 1) -> None:
        """Raise EngineUnavailable (503) or ThumbwiseError (429) if `asker` cannot have `wanted` more replies now."""
        if self.draining:
            self.metrics.refused.labels("stopping").inc()
            raise EngineUnavailable("The assistant is being stopped: try again in a minute.")
        limit, own = self.settings.local_in_flight, sum(self._by_person[asker.person, page] for page in (True, False))
        if own + wanted > limit:
            self.metrics.refused.labels("user").inc()
            raise ThumbwiseError(
                f"{own} of your requests are in progress, and the limit is {limit}: wait until one of them has ended.",
                status=429,
            )
        used, places = self.in_flight, self.settings.in_flight
        if not asker.page:
            used = sum(count for (_, page), count in self._by_person.items() if not page)
            places = max(1, places - math.ceil(places * self.settings.page_share))
        if used + wanted > places or self.in_flight + wanted > self.settings.in_flight:
            self.metrics.refused.labels("all").inc()
            raise EngineUnavailable(f"{self.in_flight} replies are being written, which is the limit: try again soon.")

    def enter(self, asker: Asker) -> None:
        """Count one more reply of `asker` as in flight, until `leave`."""
        self._by_person[asker.person, asker.page] += 1
        self._idle.clear()
        self.metrics.in_flight.inc()

    def leave(self, asker: Asker) -> None:
        """Count one reply of `asker` as ended."""
        self._by_person[asker.person, asker.page] -= 1
        if not self._by_person[asker.person, asker.page]:
            del self._by_person[asker.person, asker.page]
        self.metrics.in_flight.dec()
        if not self._by_person:
            self._idle.set()

    @contextmanager
    def reserved(self, asker: Asker, number: int = 1) -> Iterator[None]:
        """Count `number` more replies of `asker` as in flight while the block runs."""
        for _ in range(number):
            self.enter(asker)
        try:
            yield
        finally:
            for _ in range(number):
                self.leave(asker)

    async def drain(self, grace: float) -> bool:
        """Admit nothing more, and wait until no reply is in flight, at most `grace` seconds. Return whether all ended.

        It looks twice, START_SECONDS apart: a turn between its row and its stream is not counted.
        """
        self.draining = True
        with suppress(TimeoutError):
            async with asyncio.timeout(grace):
                await asyncio.sleep(START_SECONDS)
                while self.in_flight:
                    await self._idle.wait()
                    await asyncio.sleep(START_SECONDS)
        return not self.in_flight


async def unless_disconnected(request: Request, answer: Awaitable[Answer]) -> Answer:
    """Return what `answer` returns. If the client disconnects first, cancel it and raise ThumbwiseError (499).

    The body of `request` must have been read to its end. `answer` runs in this task, not in a task of its own, so that
    its reply is in flight from the moment when its row is committed.
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
        raise ThumbwiseError("The client disconnected before the answer was complete.", status=499) from None


_NO_BUFFERING = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
"""Proxies must neither cache nor buffer a stream: nginx would hold a reply back until it has 4 kB of it."""


class EventStream(StreamingResponse):
    """Server-sent events. A reader who takes nothing for STALL_SECONDS counts as disconnected."""

    def __init__(self, events: AsyncGenerator[bytes, None]) -> None:
        super().__init__(events, media_type="text/event-stream", headers=_NO_BUFFERING)
        self.events = events

    async def stream_response(self, send: Send) -> None:
        """Send the events. If one of them takes too long to send, end as for a reader who disconnected."""
        loop = asyncio.get_running_loop()
        since = math.inf  # when the sending of the current event began

        async def timed(message: Message) -> None:
            nonlocal since
            since = loop.time()
            await send(message)
            since = math.inf

        async def watch(limit: asyncio.Timeout) -> None:  # a timer for each event would cost more than the event
            while loop.time() - since < STALL_SECONDS:
                await asyncio.sleep(STALL_SECONDS / 10)
            limit.reschedule(loop.time())

        try:
            async with asyncio.timeout(None) as limit:
                watching = asyncio.create_task(watch(limit))
                try:
                    await super().stream_response(timed)
                finally:
                    watching.cancel()
        except TimeoutError:
            log.info("a reader took nothing for %g seconds: the reply is cancelled", STALL_SECONDS)
        finally:
            await self.events.aclose()  # if the end came while an event was sent, nobody else closes it this soon

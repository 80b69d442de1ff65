"""vLLM servers that somebody else runs: one that is watched, and several that answer as one.

With several, a turn goes to the server with the fewest open replies, and to another one where it gets no first token.
Publishing has two phases: every server that answers people loads and probes the version, then the pointer moves once.
A server that fails or lags may be taken out (`thumbwise.engine.taken_out` has the rules). It comes back as a new one
does: after a token, the check of mixed batches, and a probe of the stable version. Meanwhile nobody gets another
version: vLLM refuses a version that it has not loaded. Left out: sending a conversation to the server that has its
prefix in its cache; starting and stopping servers, which the operator's own tools do.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any, TypeVar

from thumbwise.contracts import Message
from thumbwise.engine.client import SILENCE, Chunk, EngineClient, Sampling
from thumbwise.engine.supervised import State, Supervised, told
from thumbwise.engine.taken_out import Then, after_reply, after_work
from thumbwise.errors import EngineFailed, EngineUnavailable, ThumbwiseError
from thumbwise.names import BASE

PATIENCE = 20.0
"""Seconds that the remaining servers get after another one has loaded or probed a version, or failed to."""

T = TypeVar("T")


class ExternalEngine(Supervised):
    """A vLLM that already runs at `url` (http://… or unix:/socket); it is watched, never started or stopped.

    deploy/README.md says how it is started; it must see the policies under the same paths as we do.
    """

    poll_every = 2.0  # seconds; a restart of vLLM takes much longer, so none is missed
    most = 30.0  # seconds; the longest pause between two tries at a server that answers wrongly

    def __init__(
        self, url: str, *, silence: float = SILENCE, api_key: str = "", template: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__()
        self.url = url
        socket_path = Path(url.removeprefix("unix:")) if url.startswith("unix:") else None
        base = None if socket_path else url
        self.client = EngineClient(uds=socket_path, base_url=base, silence=silence, api_key=api_key, template=template)

    def take_out(self, why: str) -> None:
        """Send it no requests until it has passed its checks again."""
        if self.state == "ready":
            self._set("restarting", f"vLLM at {self.url} was taken out: {why}")

    async def _supervise(self) -> None:
        self._set("starting", f"Waiting for vLLM at {self.url}.")
        wrong = 0
        while True:
            try:
                if BASE not in await self.client.adapters():
                    raise EngineFailed(f"start it with --served-model-name {BASE}.")
                await self._get_ready()
            except EngineUnavailable:
                await asyncio.sleep(self.poll_every)
            except Exception as error:  # whatever it is, the next try may succeed
                wrong += 1
                self._set(self.state, f"vLLM at {self.url} cannot be used: {told(error)}")
                await asyncio.sleep(min(self.most, self.poll_every * 2 ** min(wrong - 1, 10)))
            else:
                # Nothing is awaited between the last callback and here: no version can be published in between.
                wrong = 0
                self._set("ready", f"vLLM at {self.url} is ready.")
                while self.state == "ready" and await self._alive():
                    await asyncio.sleep(self.poll_every)
                if self.state == "ready":
                    self._set("restarting", f"vLLM at {self.url} does not answer.")

    async def _alive(self) -> bool:
        return await self.client.alive() or await self.client.alive()  # a single miss may just be load


class Pool:
    """Several servers with the methods of one `EngineClient` that turns and versions need."""

    def __init__(self, members: Sequence[ExternalEngine]) -> None:
        self._members = members
        self._open = dict.fromkeys(members, 0)  # replies that each server is writing

    def _ready(self) -> list[ExternalEngine]:
        return [member for member in self._members if member.state == "ready"]

    async def chat(self, model: str, messages: Sequence[Message], sampling: Sampling) -> AsyncGenerator[Chunk, None]:
        """As `EngineClient.chat`, on the server with the fewest open replies; a lone reader stays with one.

        What follows where it fails is in `after_reply`.
        """
        tried: set[ExternalEngine] = set()
        while True:
            left = [member for member in self._ready() if member not in tried]
            if not left:
                raise EngineUnavailable("No vLLM server is ready: try again in a minute.")
            member = min(left, key=self._open.__getitem__)
            tried.add(member)
            self._open[member] += 1
            begun = False
            try:
                async with aclosing(member.client.chat(model, messages, sampling)) as chunks:
                    async for chunk in chunks:
                        begun = True
                        yield chunk
                return
            except ThumbwiseError as error:
                silent = time.monotonic() - member.client.heard
                match after_reply(error.status, begun=begun, others=len(left) - 1, silent=silent):
                    case Then.RAISE:
                        raise
                    case Then.TAKE_OUT:
                        member.take_out(str(error))
            finally:
                self._open[member] -= 1

    async def on_each(self, work: Callable[[EngineClient], Awaitable[T]]) -> list[T]:
        """Do `work` on every server that answers people; return its results from the servers where it went well.

        A server is late where it takes PATIENCE longer than another one. What follows where it fails or is late is in
        `after_work`; raises the error that the caller gets by it.
        """
        members = self._ready()
        if not members:
            raise EngineUnavailable("No vLLM server is ready: try again in a minute.")
        tasks = {member: asyncio.ensure_future(work(member.client)) for member in members}
        try:
            await _settled(set(tasks.values()))
        finally:
            for task in tasks.values():
                task.cancel()
            await asyncio.gather(*tasks.values(), return_exceptions=True)
        results: list[T] = []
        errors: dict[ExternalEngine, ThumbwiseError] = {}
        for member, task in tasks.items():
            if task.cancelled():
                errors[member] = EngineFailed(f"it took {PATIENCE:g} seconds longer than another one.")
            elif isinstance(error := task.exception(), ThumbwiseError):
                errors[member] = error
            else:
                results.append(task.result())
        verdict = after_work(len(results), errors)
        if verdict.error is not None:
            raise verdict.error
        for member, why in verdict.out.items():
            member.take_out(why)
        return results

    def others(self, client: EngineClient) -> bool:
        """Whether a server other than that of `client` answers people."""
        return any(member.client is not client for member in self._ready())


async def _settled(tasks: set[asyncio.Future[T]]) -> None:
    """Return when all `tasks` have ended; or, once one went well, when none has ended for PATIENCE seconds."""
    good = False
    while tasks:
        done, tasks = await asyncio.wait(tasks, timeout=PATIENCE if good else None, return_when=asyncio.FIRST_COMPLETED)
        if not done:
            return
        good = good or any(task.exception() is None for task in done)


class Replicas:
    """Several external vLLM servers as one engine. It is ready while any of them is."""

    def __init__(
        self, urls: Sequence[str], *, silence: float = SILENCE, api_key: str = "",
        template: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        self.members = [ExternalEngine(url, silence=silence, api_key=api_key, template=template) for url in urls]
        self.client = Pool(self.members)
        self.on_ready: list[Callable[[EngineClient], Awaitable[None]]] = []
        for member in self.members:
            member.on_ready = self.on_ready

    @property
    def answering(self) -> int:
        """How many servers answer people."""
        return sum(member.answering for member in self.members)

    @property
    def state(self) -> State:
        """Ready while one server is; else the most frequent state."""
        states = [member.state for member in self.members]
        return "ready" if "ready" in states else max(states, key=states.count)

    @property
    def detail(self) -> str:
        """How many servers answer, and a sentence for each that does not."""
        out = [member.detail for member in self.members if member.state != "ready"]
        return " ".join([f"{self.answering} of {len(self.members)} vLLM servers answer.", *out])

    @property
    def warning(self) -> str:
        """The same, while some servers answer and others do not."""
        return self.detail if 0 < self.answering < len(self.members) else ""

    async def start(self) -> None:
        """Start to watch every server and return at once."""
        for member in self.members:
            await member.start()

    async def stop(self) -> None:
        """Stop watching; the servers keep running."""
        await asyncio.gather(*(member.stop() for member in self.members))

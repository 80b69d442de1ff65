"""Supervision of a vLLM server, whoever started it: its state, waiting for it, stopping it.

Supervision never ends by itself. An error in it, or in a callback that runs when vLLM is ready, is told in a sentence,
and supervision starts again after a pause. `supervisor.py` has the vLLM that we start, `external.py` those of others.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from typing import Literal

from thumbwise.engine.client import EngineClient
from thumbwise.errors import EngineFailed, EngineUnavailable, ThumbwiseError
from thumbwise.names import BASE

State = Literal["starting", "ready", "restarting", "failed", "stopped"]

PAUSES = (5.0, 15.0, 60.0)
"""Seconds of pause after each failure of the supervision itself; the last one repeats."""

_logger = logging.getLogger(__name__)


class Supervised(ABC):
    """State, waiting and stopping; a subclass brings `_supervise`."""

    client: EngineClient
    warning = ""  # what is wrong although people are answered

    def __init__(self) -> None:
        self.state: State = "starting"
        self.detail = "The engine has not been started."
        self.on_ready: list[Callable[[EngineClient], Awaitable[None]]] = []
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def answering(self) -> int:
        """How many vLLM servers answer people: 0 or 1."""
        return int(self.state == "ready")

    async def start(self) -> None:
        """Start supervision and return at once."""
        self._task = asyncio.create_task(self._run(), name="engine")

    async def wait_ready(self, timeout: float) -> None:
        """Return when ready. Raises EngineUnavailable after `timeout` seconds, EngineFailed in the state "failed"."""
        try:
            async with asyncio.timeout(timeout):
                while self.state in ("starting", "restarting"):
                    await self._changed.wait()
        except TimeoutError:
            raise EngineUnavailable(f"vLLM is not ready after {timeout:g} seconds: {self.detail}") from None
        if self.state == "failed":
            raise EngineFailed("\n".join([self.detail, *self.last_lines()]))
        if self.state == "stopped":
            raise EngineUnavailable("The engine was stopped.")

    async def stop(self) -> None:
        """Stop supervision and what it started; safe to call twice."""
        self._set("stopped", "The engine is being stopped.")
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._release()
        await self.client.aclose()
        self._set("stopped", "The engine was stopped.")

    def _set(self, state: State, detail: str) -> None:
        if state == "ready" != self.state:
            _logger.info(detail)  # whoever started the server in a terminal waits for this
        self.state, self.detail = state, detail
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def _first_token(self) -> None:
        """Wait for a token of the base model; EngineUnavailable means that nobody answers yet."""
        while True:
            try:
                await self.client.next_token_logprobs(BASE, [0], top=1)
                return
            except EngineUnavailable:
                await asyncio.sleep(0.2)

    async def _get_ready(self) -> None:
        await self._first_token()
        await self.client.adapters()  # the client learns from it how long the context is
        for callback in self.on_ready:
            await callback(self.client)

    async def _run(self) -> None:
        pauses = itertools.chain(PAUSES, itertools.repeat(PAUSES[-1]))
        while True:
            try:
                await self._supervise()
            except Exception as error:  # a bug in this class: nobody awaits this task, but people wait for its work
                self._set("restarting", f"The supervision of vLLM failed and starts again: {told(error)}")
                with contextlib.suppress(Exception):
                    await self._release()
            await asyncio.sleep(next(pauses))

    def last_lines(self) -> list[str]:
        """vLLM's last log lines, for the operator only: they may name paths. Empty if we did not start it."""
        return []

    @abstractmethod
    async def _supervise(self) -> None:
        """Start, watch and restart, until cancelled."""

    async def _release(self) -> None:  # noqa: B027 - an external engine holds nothing
        """Release what the supervision holds."""


def told(error: Exception) -> str:
    """What went wrong, in a sentence for everybody. Of a bug it names only the type; the rest goes to the log."""
    if isinstance(error, ThumbwiseError):
        return str(error)
    _logger.error("an unexpected error", exc_info=error)
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}."
    return f"something went wrong in the assistant ({type(error).__name__}): its log says what."

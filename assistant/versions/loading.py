"""Loading versions into vLLM servers, and probing them there.

Two steps, always in this order. *Load*: the files are verified against their manifest, and the server loads the
adapter. *Probe*: the server's log-probabilities on the manifest's fixed prompts are compared with the trainer's
(`thumbwise.engine.probes`). Only then may the version take traffic, because vLLM answers with the base model and status
200 where an adapter's keys match nothing.

An error with status 422 is the version's own fault. Any other is the server's: it is starting, broken or gone. The base
is always there, so it is neither loaded nor probed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from contextlib import suppress
from typing import TYPE_CHECKING

from thumbwise.engine.probes import Probe, ask
from thumbwise.errors import EngineFailed, EngineUnavailable, ThumbwiseError
from thumbwise.names import BASE
from thumbwise.versions import artifacts

if TYPE_CHECKING:
    from pathlib import Path

    from thumbwise.engine.client import EngineClient
    from thumbwise.engine.external import Pool
    from thumbwise.home import Home
    from thumbwise.metrics import Metrics


class Loading:
    """What the servers have loaded, and how they came to have it. `tolerance` is `engine.probe_tolerance`."""

    def __init__(self, home: Home, tolerance: float, metrics: Metrics) -> None:
        self.home, self.tolerance, self.metrics = home, tolerance, metrics
        self.engine: EngineClient | Pool | None = None
        self._probed = {BASE}  # every server that answers people has answered a probe for these since it started

    def servers(self) -> EngineClient | Pool:
        """Every server that answers people; raises ThumbwiseError (503) where there is none yet."""
        if self.engine is None:
            raise ThumbwiseError("The engine is still starting: try again in a minute.", status=503)
        return self.engine

    def folder(self, version: str) -> Path:
        """Where a version's files are."""
        return self.home.policies / version

    def note_probed(self, version: str) -> None:
        """Remember that every server has loaded a version and answered its probe."""
        self._probed.add(version)

    def only_probed(self, versions: Collection[str]) -> None:
        """A server has started, which knows only `versions`: forget all others."""
        self._probed = {BASE, *versions}

    async def load(self, version: str, server: EngineClient) -> None:
        """Load a version into one server; loading it once more is success."""
        if version != BASE:
            await asyncio.to_thread(artifacts.verify, self.folder(version))
            await server.load_adapter(version, self.folder(version))

    async def probe(self, version: str, server: EngineClient) -> Probe:
        """Probe a version on one server; raises ThumbwiseError (422) where it does not answer as it was trained."""
        manifest = await asyncio.to_thread(artifacts.verify, self.folder(version))
        result = await ask(server, version, manifest["probes"])
        self.metrics.probes.labels("passed" if result.to_trainer <= self.tolerance else "failed").inc()
        result.check(version, self.tolerance)
        return result

    async def load_and_probe(self, version: str, server: EngineClient) -> None:
        """Load and probe a version on one server."""
        await self.load(version, server)
        if version != BASE:
            await self.probe(version, server)

    async def everywhere(self, version: str) -> None:
        """Load and probe a version on every server that answers people, unless they have done so since they started.

        Its files are verified in any case. Where no server answers, nothing is done: each one loads what it needs when
        it starts.
        """
        if version == BASE:
            return
        if version in self._probed:
            await asyncio.to_thread(artifacts.verify, self.folder(version))
        elif self.engine is not None:
            with suppress(EngineUnavailable):
                await self.engine.on_each(lambda server: self.load_and_probe(version, server))
                self.note_probed(version)

    async def fault_of(self, version: str, server: EngineClient) -> ThumbwiseError | None:
        """Load and probe a version on a server that has just started; return what is wrong with the version, or None.

        Raises the error where the server is at fault, which is then restarted. While other servers answer with the
        version, it is always the server: EngineFailed.
        """
        try:
            await self.load_and_probe(version, server)
        except ThumbwiseError as error:
            if error.status >= 500:
                raise
            if self.servers().others(server):
                raise EngineFailed(f"{error} Other servers answer with it: look at that one.") from None
            return error
        return None

"""A live assistant with two versions that can be told apart by what they say, and readers in mid-reply."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from crash_tools import trained
from live_server import Live, serving, wait_ready
from tiny_engine import TinyEngine
from tiny_model import ROUND, make_token_adapter

from thumbwise.home import Home
from thumbwise.plugin_host.manager import PluginManager
from thumbwise.settings import Settings
from thumbwise.training.rehearsal.measure import Measure
from thumbwise.training.rehearsal.swap_monitor import Reply, SwapMonitor, mixed
from thumbwise.training.run.client import OpsClient

READERS = 10
LENGTH = 200  # tokens: some seconds
TOKENS = (70, 90)


@dataclass
class World:
    """A live assistant with two versions, each of which greedily says one token, and the trainer's view of them."""

    live: Live
    engine: TinyEngine
    versions: list[str]
    measure: Measure

    def watch(self) -> SwapMonitor:
        watch = SwapMonitor(self.live.url, LENGTH, READERS)
        watch.start()
        assert watch.wait_open(READERS)
        return watch

    def finish(self, watch: SwapMonitor) -> None:
        """Stop when each reader has ended a reply of the version that is stable now: what was open before is over."""
        deadline, stable = time.monotonic() + 120, self.live.assistant.versions.stable()
        while [reply.version for reply in watch.replies].count(stable) < READERS and time.monotonic() < deadline:
            time.sleep(0.05)
        watch.stop()

    def mixed(self, watch: SwapMonitor) -> list[Any]:
        return mixed(watch.nearest(64), ["policy-0000", *self.versions], self.measure.force)


@contextmanager
def two_versions(folder: Path, model: Path, engine: TinyEngine, url: str) -> Iterator[World]:
    """A world in `folder` in front of the vLLM servers at `url`; the first version is stable."""
    home = Home.find(folder / "home")
    home.config.write_text(f'model = "{model}"\nmax_tokens = 24\nengine_url = "{url}"\n{ROUND}')
    with serving(home) as live:
        wait_ready(live)
        names = []
        with OpsClient(live.url, live.assistant.token) as client:
            for token in TOKENS:
                run = client.begin()
                adapter = make_token_adapter(model, folder / str(token), token)
                candidate = trained(model, adapter).candidate(run)
                client.publish(run, candidate.version, candidate.files)
                client.finish(run, "promoted", "")
                names.append(candidate.version)
        measure = Measure(home, Settings.load(home), PluginManager(home).load())
        world = World(live, engine, names, measure)
        promote(world, names[0])
        yield world


def promote(world: World, version: str, **rest: Any) -> dict[str, Any]:
    return ops(world, f"policies/{version}/promote", {"expect_stable": world.live.assistant.versions.stable(), **rest})


def ops(world: World, path: str, body: dict[str, Any]) -> dict[str, Any]:
    token = {"Authorization": f"Bearer {world.live.assistant.operator_token}"}
    answer = httpx.post(f"{world.live.url}/ops/api/{path}", json=body, headers=token, timeout=60)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def share(reply: Reply, token: int) -> float:
    """How much of a reply is one token; the adapters say theirs nearly always (temperature is not 0)."""
    return reply.token_ids.count(token) / len(reply.token_ids)

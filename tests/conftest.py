"""Fixtures that every test file may use: the tiny model, its adapters, and one vLLM for the whole session.

`tiny_engine` starts vLLM at its first use (about 25 s) in a thread with an event loop of its own, so that
tests make their own clients on its socket: `tiny_engine.client()`. Adapters that a test loads stay
loaded: give them names that no other test uses. A test that hurts the engine starts its own.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import loop_guard
import pytest
from fakes import FakeEngine, FakeEngineClient
from live_server import Live, serving, wait_ready
from stub_engine import StubEngine
from tiny_engine import TINY, TinyEngine, running
from tiny_model import make_tiny_adapter, make_tiny_model

from thumbwise.feedback.store import Store
from thumbwise.home import Home
from thumbwise.serving.assistant import Assistant
from thumbwise.settings import Settings
from thumbwise.web import create_api

# What torch compiles for vLLM is compiled once for all tests, and not once for each of their homes. And vLLM starts one
# more Python to look at a model's class, which takes 9 seconds, unless its cache says what was found.
_CACHE = Path(__file__).parents[1] / ".pytest_cache"
os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(_CACHE / "inductor"))
os.environ.setdefault("VLLM_CACHE_ROOT", str(_CACHE / "vllm"))


@pytest.fixture(autouse=True)
def no_event_loop_waits_for_the_database() -> Iterator[None]:
    """Fail a test in which one did, also where what is raised then was caught."""
    loop_guard.waited.clear()
    yield
    assert not loop_guard.waited, loop_guard.waited[0]


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[Live]:
    """A real server of one test file's own, with the scripted engine."""
    home = Home.find(tmp_path_factory.mktemp("home"))
    home.config.write_text(f'model = "{tiny_model}"\n')
    with serving(home, lambda: FakeEngine(FakeEngineClient())) as live:
        wait_ready(live)
        yield live


@pytest.fixture
async def stubbed(tmp_path: Path) -> AsyncIterator[StubEngine]:
    settings = TINY.model_copy(update={"silence": 0.3})
    engine = StubEngine(tmp_path, settings, run_dir=tmp_path / "run", log=tmp_path / "log" / "vllm.log")
    engine.client.silence = 180.0
    yield engine
    await engine.stop()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path / "feedback.db")
    yield store
    store.close()


@pytest.fixture
async def assistant(tmp_path: Path) -> AsyncIterator[Assistant]:
    """An assistant with a fake engine; a module may have one of its own."""
    home = Home.find(tmp_path)
    assistant = Assistant(home, Settings.load(home))
    assistant.engine = FakeEngine(FakeEngineClient())  # type: ignore[assignment]
    yield assistant
    await assistant.stop()


@pytest.fixture
async def http(assistant: Assistant) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the API of the test's own `assistant`."""
    transport = httpx.ASGITransport(create_api(assistant))
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:7860") as client:
        yield client


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="session")
def tiny_adapters(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Four adapters of rank 8 that answer quite differently from the base and from each other."""
    folder = tmp_path_factory.mktemp("adapters")
    return [make_tiny_adapter(tiny_model, folder / str(seed), seed) for seed in (1, 2, 3, 4)]


@pytest.fixture(scope="session")
def tiny_engine(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TinyEngine]:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="tiny engine", daemon=True)
    thread.start()
    try:
        with running(tiny_model, tmp_path_factory.mktemp("engine"), loop) as tiny:
            yield tiny
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """A two-layer model gains nothing from threads, which wait for each other on a busy machine."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)

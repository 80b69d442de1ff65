"""One assistant in front of two real vLLM servers: a swap on both, one that stands still, one that is killed."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from live_server import probes_passed
from stub_engine import children, named
from tiny_engine import TinyEngine, running
from two_versions import TOKENS, World, promote, share, two_versions

from thumbwise.engine import external

pytestmark = [pytest.mark.engine, pytest.mark.usefixtures("one_thread")]


@pytest.fixture(scope="module")
def second(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, tiny_engine: TinyEngine) -> Iterator[TinyEngine]:
    with running(tiny_model, tmp_path_factory.mktemp("second"), tiny_engine.loop) as second:
        yield second


@pytest.fixture(scope="module")
def world(
    tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, tiny_engine: TinyEngine, second: TinyEngine
) -> Iterator[World]:
    folder, urls = tmp_path_factory.mktemp("two"), f"unix:{tiny_engine.uds}, unix:{second.uds}"
    with two_versions(folder, tiny_model, tiny_engine, urls) as world:
        until(lambda: answering(world) == 2)
        yield world


def until(holds: Callable[[], bool], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.1)


def answering(world: World) -> int:
    lines = httpx.get(f"{world.live.url}/metrics").text.splitlines()
    return int(next(float(line.split()[-1]) for line in lines if line.startswith("thumbwise_engines ")))


def warning(world: World) -> str:
    found = httpx.get(f"{world.live.url}/health/ready")
    assert found.status_code == 200
    return str(found.json()["warning"])


def ask(world: World) -> str:
    """Have a reply, and return the version that wrote it."""
    body = {"messages": [{"role": "user", "content": "Who is there?"}], "max_tokens": 8}
    answer = httpx.post(f"{world.live.url}/v1/chat/completions", json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["thumbwise"]["policy_version"])


def answered(engine: TinyEngine) -> float:
    """How many requests a vLLM has answered."""
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(engine.uds)), base_url="http://engine") as client:
        lines = client.get("/metrics").text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith("vllm:request_success_total"))


def loaded(engine: TinyEngine) -> set[str]:
    return set(engine.run(engine.client().adapters()))


def test_a_swap_on_two_servers_drops_and_mixes_nothing(world: World, second: TinyEngine) -> None:
    before = [answered(engine) for engine in (world.engine, second)]
    with world.engine.paced(), second.paced():
        watch = world.watch()
        promote(world, world.versions[1])
        world.finish(watch)
    assert [reply for reply in watch.replies if reply.dropped] == []
    assert world.mixed(watch) == []
    assert {reply.version for reply in watch.replies} == set(world.versions)
    for version, token in zip(world.versions, TOKENS, strict=True):
        assert all(share(reply, token) > 0.9 for reply in watch.replies if reply.version == version)
    assert all(answered(engine) >= was + 4 for engine, was in zip((world.engine, second), before, strict=True))
    assert warning(world) == ""


def test_a_server_that_stands_still_is_left_behind_and_catches_up(
    world: World, second: TinyEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(external, "PATIENCE", 1.0)
    promote(world, world.versions[0])
    with second.held():
        promote(world, world.versions[1])
        assert "1 of 2 vLLM servers answer." in warning(world)
        assert {ask(world) for _ in range(4)} == {world.versions[1]}
    until(lambda: answering(world) == 2)
    assert warning(world) == ""
    assert world.versions[1] in loaded(second)


def test_a_killed_server_is_stood_in_for_and_comes_back_after_a_probe(world: World, second: TinyEngine) -> None:
    stable, passed = world.live.assistant.versions.stable(), probes_passed(world.live.url)
    launcher = second.engine.pid
    assert launcher is not None
    os.kill(next(pid for pid in children(launcher) if "api_server" in named(pid)), signal.SIGKILL)
    with ThreadPoolExecutor(8) as people:
        assert set(people.map(ask, [world] * 8)) == {stable}
    until(lambda: answering(world) == 1)
    until(lambda: answering(world) == 2)
    assert stable in loaded(second)
    assert probes_passed(world.live.url) > passed

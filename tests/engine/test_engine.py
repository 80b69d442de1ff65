"""Supervision: against a stub that answers like vLLM (fast), and against vLLM where only it can tell."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from stub_engine import STUB, StubEngine, children, is_gone, named, until
from tiny_engine import TINY, TinyEngine
from tiny_model import LINEAR

from thumbwise.base_model.weights import linear_layers
from thumbwise.engine import supervisor as module
from thumbwise.engine.client import EngineClient
from thumbwise.engine.external import ExternalEngine
from thumbwise.engine.supervisor import Engine
from thumbwise.errors import EngineFailed, EngineUnavailable
from thumbwise.names import BASE


async def test_ready_only_after_a_token_and_after_every_callback(stubbed):
    seen: list[str] = []

    async def reload(client: EngineClient) -> None:
        seen.append(stubbed.state)
        await client.adapters()  # vLLM can be used in here

    stubbed.on_ready.append(reload)
    await stubbed.start()
    await until(lambda: stubbed.log.exists() and "stub is up" in stubbed.log.read_text())
    with pytest.raises(EngineUnavailable, match="not ready after"):
        await stubbed.wait_ready(0.2)
    assert (stubbed.state, seen) == ("starting", [])
    (stubbed.uds.parent / "go").touch()
    await stubbed.wait_ready(20)
    assert (stubbed.state, seen) == ("ready", ["starting"])


async def test_a_server_killed_with_9_is_restarted_and_leaves_no_child_behind(stubbed):
    readies: list[str] = []

    async def count(client: EngineClient) -> None:
        readies.append(stubbed.state)

    stubbed.on_ready.append(count)
    (stubbed.uds.parent / "go").touch()
    await stubbed.start()
    await stubbed.wait_ready(20)
    server, child = children(stubbed.pid)
    os.kill(server, signal.SIGKILL)
    await until(lambda: len(readies) == 2)
    await stubbed.wait_ready(20)
    assert readies == ["starting", "restarting"]
    assert is_gone(child)
    assert len(children(stubbed.pid)) == 2
    assert stubbed.log.with_name("vllm.log.1").exists()


async def test_a_killed_launcher_takes_the_server_with_it(stubbed):
    (stubbed.uds.parent / "go").touch()
    await stubbed.start()
    await stubbed.wait_ready(20)
    launcher, below = stubbed.pid, children(stubbed.pid)
    os.kill(launcher, signal.SIGKILL)
    await until(lambda: all(map(is_gone, below)))
    await until(lambda: stubbed.state == "ready" and stubbed.pid not in (None, launcher))
    assert not set(below) & set(children(stubbed.pid))


async def test_a_server_that_hangs_is_restarted(stubbed):
    (stubbed.uds.parent / "go").touch()
    await stubbed.start()
    await stubbed.wait_ready(20)
    server, _ = children(stubbed.pid)
    os.kill(server, signal.SIGSTOP)
    await until(lambda: stubbed.state == "restarting")
    assert "hung" in stubbed.detail
    await stubbed.wait_ready(20)
    assert is_gone(server)


async def test_stop_ends_even_a_server_that_ignores_sigterm(stubbed):
    stubbed.extra = ("stubborn",)
    (stubbed.uds.parent / "go").touch()
    await stubbed.start()
    await stubbed.wait_ready(20)
    below = [stubbed.pid, *children(stubbed.pid)]
    await stubbed.stop()
    assert all(map(is_gone, below))
    assert not stubbed.uds.exists()
    with pytest.raises(EngineUnavailable, match="stopped"):
        await stubbed.wait_ready(1)


async def test_three_failed_starts_in_a_row_give_up_with_the_last_log_lines(stubbed, monkeypatch):
    script = "print('x' * 9); print('ValueError: no such model'); print('nanobind: leaked'); raise SystemExit(3)"
    starts: list[None] = []
    monkeypatch.setattr(stubbed, "command", lambda: starts.append(None) or [sys.executable, "-uc", script])
    await stubbed.start()
    stubbed.retry = 300.0
    with pytest.raises(EngineFailed, match="ended with status 3") as caught:
        await stubbed.wait_ready(30)
    assert (stubbed.state, len(starts)) == ("failed", 3)
    assert str(caught.value).splitlines()[1:] == ["xxxxxxxxx", "ValueError: no such model"]
    assert "\n" not in stubbed.detail  # which everybody sees; the lines may name paths of this machine
    assert "no such model" not in stubbed.detail


async def test_after_that_it_is_tried_again_now_and_then_and_heals(stubbed, monkeypatch):
    fails, works = [sys.executable, "-c", "raise SystemExit(3)"], stubbed.command()
    monkeypatch.setattr(stubbed, "command", lambda: fails)
    await stubbed.start()
    with pytest.raises(EngineFailed, match="It is tried again every"):
        await stubbed.wait_ready(30)
    (stubbed.uds.parent / "go").touch()
    monkeypatch.setattr(stubbed, "command", lambda: works)
    await until(lambda: stubbed.state == "ready")


async def test_a_start_that_takes_too_long_is_a_failed_one(tmp_path):
    settings = TINY.model_copy(update={"start_timeout": 0.5})
    engine = StubEngine(tmp_path, settings, run_dir=tmp_path / "run", log=tmp_path / "log")
    engine.tries = 1
    await engine.start()
    with pytest.raises(EngineFailed, match=r"not ready after 0\.5 seconds"):
        await engine.wait_ready(30)
    assert engine.pid is None
    await engine.stop()


async def test_a_callback_with_a_bug_is_a_failure_and_not_a_silence(stubbed):
    async def wrong(client: EngineClient) -> None:
        raise KeyError("bug")

    stubbed.on_ready.append(wrong)
    (stubbed.uds.parent / "go").touch()
    await stubbed.start()
    with pytest.raises(EngineFailed, match="KeyError"):
        await stubbed.wait_ready(20)
    assert stubbed.pid is None


async def test_the_socket_is_private_short_and_never_anothers(tmp_path):
    long = Engine(tmp_path, TINY, run_dir=tmp_path / ("x" * 120), log=tmp_path / "log")
    assert len(os.fsencode(long.uds)) < 108
    for engine in (long, Engine(tmp_path, TINY, run_dir=tmp_path / "run", log=tmp_path / "log")):
        assert engine.uds.parent.stat().st_mode & 0o777 == 0o700
    await long.stop()
    assert not long.uds.parent.exists()
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(engine.uds))
        stale.listen()
        with pytest.raises(EngineFailed, match="another process"):
            module._remove_stale(engine.uds)
    module._remove_stale(engine.uds)
    assert not engine.uds.exists()


def test_the_child_gets_no_secret_of_ours_and_no_setting_that_opens_vllm(tmp_path, monkeypatch):
    for key in ("THUMBWISE_HOME", "VLLM_SERVER_DEV_MODE", "VLLM_API_KEY", "VLLM_PLUGINS"):
        monkeypatch.setenv(key, "1")
    environment = Engine(tmp_path, TINY, run_dir=tmp_path / "run", log=tmp_path / "log").environment()
    assert not {"THUMBWISE_HOME", "VLLM_SERVER_DEV_MODE", "VLLM_API_KEY"} & set(environment)
    assert environment["VLLM_PLUGINS"] == "thumbwise_cpu_adapters"
    assert environment["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] == environment["HF_HUB_OFFLINE"] == "1"
    assert environment["PATH"] == os.environ["PATH"]


def test_adapters_go_on_every_linear_layer_of_the_blocks_and_not_on_the_head(tiny_model, tmp_path):
    assert linear_layers(tiny_model) == sorted(LINEAR)
    line = Engine(tiny_model, TINY, run_dir=tmp_path / "run", log=tmp_path / "log").command()
    assert line[line.index("--lora-target-modules") + 1 :] == sorted(LINEAR)
    (tmp_path / "model.safetensors").write_bytes(b"cut")
    assert linear_layers(tmp_path) == []


async def test_an_external_engine_is_watched_and_never_touched(monkeypatch):
    monkeypatch.setattr(ExternalEngine, "poll_every", 0.05)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    readies: list[str] = []

    async def count(client: EngineClient) -> None:
        readies.append(engine.state)

    engine = ExternalEngine(f"http://127.0.0.1:{port}")
    engine.on_ready.append(count)
    await engine.start()
    with pytest.raises(EngineUnavailable, match="Waiting for vLLM"):
        await engine.wait_ready(0.2)
    for n, expected in enumerate((["starting"], ["starting", "restarting"])):
        server = subprocess.Popen([sys.executable, "-c", STUB, port])
        await engine.wait_ready(20)
        assert readies == expected
        if n == 1:
            await engine.stop()
            assert server.poll() is None
        for pid in (*children(server.pid), server.pid):
            os.kill(pid, signal.SIGKILL)
        server.wait()
        await until(lambda: engine.state != "ready")
    assert engine.state == "stopped"


# A whole assistant, as far as the engine sees one: prints a line of JSON at every on_ready.
PARENT = """
import asyncio, json, sys
from pathlib import Path
from tiny_engine import TINY
from thumbwise.engine.supervisor import Engine
async def main(model, folder, adapter):
    engine = Engine(Path(model), TINY, run_dir=Path(folder), log=Path(folder) / "log")
    async def reload(client):
        await client.load_adapter("policy-1-reloaded", Path(adapter))
        print(json.dumps({"launcher": engine.pid, "uds": str(engine.uds)}), flush=True)
    engine.on_ready.append(reload)
    await engine.start()
    await asyncio.sleep(3600)
asyncio.run(main(*sys.argv[1:]))
"""


@pytest.mark.engine
async def test_vllm_survives_kill_9_of_its_server_and_its_core_and_dies_with_us(tiny_model, tiny_adapters, tmp_path):
    """One start and two restarts, about 75 s: every process that can be lost is lost in turn."""
    command = [sys.executable, "-c", PARENT, str(tiny_model), str(tmp_path / "run"), str(tiny_adapters[0])]
    path = os.pathsep.join([str(Path(__file__).parents[1] / "support" / "servers"), os.environ.get("PYTHONPATH", "")])
    parent = await asyncio.create_subprocess_exec(
        *command, stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": path}
    )
    assert parent.stdout
    try:
        for victim in ("api_server", "VLLM::EngineCore", None):
            there = json.loads(await parent.stdout.readline())
            below = children(there["launcher"])
            client = EngineClient(uds=Path(there["uds"]))
            assert set(await client.adapters()) == {BASE, "policy-1-reloaded"}
            assert await client.next_token_logprobs("policy-1-reloaded", [1, 2, 3])
            await client.aclose()
            assert any("VLLM::Worker" in named(pid) for pid in below)
            if victim is None:
                parent.kill()
            else:
                os.kill(next(pid for pid in below if victim in named(pid)), signal.SIGKILL)
            await until(lambda left=[there["launcher"], *below]: all(map(is_gone, left)))
    finally:
        if parent.returncode is None:
            parent.kill()
        await parent.wait()


@pytest.mark.engine
async def test_a_broken_model_folder_fails_with_vllms_reason(tiny_model, tmp_path):
    model = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"architectures": ["NoSuchModel"]}))
    engine = Engine(model, TINY, run_dir=tmp_path / "run", log=tmp_path / "log")
    engine.tries = 1
    await engine.start()
    with pytest.raises(EngineFailed, match="NoSuchModel"):
        await engine.wait_ready(120)
    assert engine.state == "failed"
    await engine.stop()


@pytest.mark.engine
def test_vllm_offers_no_development_endpoint(tiny_engine: TinyEngine):
    import httpx

    with httpx.Client(transport=httpx.HTTPTransport(uds=str(tiny_engine.uds)), base_url="http://x") as plain:
        paths = {path: plain.post(path, json={}).status_code for path in ("/collective_rpc", "/sleep", "/pause")}
        assert paths == dict.fromkeys(paths, 404)
        assert plain.get("/docs").status_code == 404
        assert plain.get("/health").status_code == 200

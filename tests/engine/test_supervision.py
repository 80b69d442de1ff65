"""A supervision goes on whatever happens, and takes for hung only what neither answers nor computes."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest
from stub_engine import StubEngine, children, is_gone, until
from tiny_engine import TINY

from thumbwise.engine import supervised
from thumbwise.engine.client import EngineClient
from thumbwise.system import child_logs


async def test_a_server_that_computes_is_not_taken_to_hang_before_its_patience_is_over(stubbed):
    """As one that reads long prompts: no token comes for much longer than a hanging one is given."""
    (stubbed.uds.parent / "go").touch()
    stubbed.busy, stubbed.patience = 0.01, 10**9
    await stubbed.start()
    await stubbed.wait_ready(20)
    (stubbed.uds.parent / "compute").touch()
    begun, silences = stubbed.client.heard, 4 * stubbed.settings.silence
    while asyncio.get_running_loop().time() < begun + silences + stubbed.probe_every:
        await asyncio.sleep(0.05)
    assert stubbed.state == "ready"
    stubbed.patience = 1
    await until(lambda: stubbed.state == "restarting")
    assert "hung" in stubbed.detail


@pytest.mark.parametrize("bug", [KeyError("choices"), RuntimeError("a bug"), ValueError("not JSON")])
async def test_a_bug_in_a_callback_is_told_and_tried_again_until_it_is_gone(stubbed, bug, caplog):
    caplog.set_level("INFO", "thumbwise")
    calls: list[str] = []

    async def reload(client: EngineClient) -> None:
        calls.append(stubbed.detail)
        if len(calls) < 5:
            raise bug

    stubbed.on_ready.append(reload)
    (stubbed.uds.parent / "go").touch()
    await stubbed.start()
    await until(lambda: stubbed.state == "ready")
    assert len(calls) == 5
    assert caplog.messages.count("vLLM is ready.") == 1
    assert f"({type(bug).__name__}): its log says what. It is tried again every" in calls[-1]


async def test_a_bug_in_the_supervision_itself_is_not_its_end(stubbed, monkeypatch):
    bugs = iter([RuntimeError("a bug")])

    async def failing() -> str:
        for bug in bugs:
            raise bug
        return await works()

    works = stubbed._until_ended
    monkeypatch.setattr(stubbed, "_until_ended", failing)
    monkeypatch.setattr(supervised, "PAUSES", (0.05,))
    (stubbed.uds.parent / "go").touch()
    await stubbed.start()
    await until(lambda: "starts again: something went wrong" in stubbed.detail)
    await until(lambda: stubbed.state == "ready")
    assert next(bugs, None) is None


async def test_it_begins_again_also_where_the_sockets_folder_is_a_temporary_one(tmp_path: Path, monkeypatch):
    engine = StubEngine(tmp_path, TINY, run_dir=tmp_path / ("far" * 40), log=tmp_path / "vllm.log")
    folder, launch, there = engine.uds.parent, engine._launch, []
    assert not folder.is_relative_to(tmp_path)  # the other path is too long for a socket

    async def launching() -> None:
        there.append(folder.exists())
        await launch()

    async def failing() -> str:
        raise RuntimeError("a bug")

    monkeypatch.setattr(engine, "_launch", launching)
    monkeypatch.setattr(engine, "_until_ended", failing)
    monkeypatch.setattr(supervised, "PAUSES", (0.05,))
    (folder / "go").touch()
    await engine.start()
    await until(lambda: len(there) == 2)
    await engine.stop()
    assert there == [True, True]
    assert not folder.exists()


async def test_a_stop_in_the_midst_of_ending_a_server_ends_it_all_the_same(stubbed):
    (stubbed.uds.parent / "go").touch()
    await stubbed.start()
    await stubbed.wait_ready(20)
    launcher = stubbed.pid
    below = children(launcher)
    os.kill(launcher, signal.SIGSTOP)  # it ends nothing, however it is asked to
    ending = asyncio.create_task(stubbed._end(0))
    await asyncio.sleep(0)
    ending.cancel()
    await asyncio.wait([ending])
    await stubbed.stop()
    try:
        assert is_gone(launcher)
    finally:
        for pid in (launcher, *below):
            if not is_gone(pid):
                os.kill(pid, signal.SIGKILL)


async def test_its_log_is_cut_while_it_runs(stubbed, monkeypatch):
    monkeypatch.setattr(child_logs, "LARGEST", 10_000)
    script = "import time\nwhile True: print('x' * 99, flush=True); time.sleep(0.0005)"
    monkeypatch.setattr(stubbed, "command", lambda: [sys.executable, "-c", script])
    await stubbed.start()
    older = child_logs.older(stubbed.log)
    await until(older.exists)
    first = older.stat().st_mtime_ns
    await until(lambda: older.stat().st_mtime_ns > first)  # it was cut, and is written on
    await until(stubbed.last_lines)
    assert set(stubbed.last_lines()) <= {"x" * 99, ""}

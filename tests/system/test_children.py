"""Child processes of ours: none runs a file of the folder that we are started in, and their output stays small."""

from __future__ import annotations

import ast
import asyncio
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import packaged
import pytest

from thumbwise.base_model import prepare
from thumbwise.cli import doctor
from thumbwise.engine.supervisor import Engine
from thumbwise.home import Home
from thumbwise.serving.schedule import Schedule
from thumbwise.settings.engine import EngineSettings
from thumbwise.system import child_logs, children
from thumbwise.training.rehearsal import home

PLANTED = ("ctypes", "json", "signal", "sitecustomize", "thumbwise", "typing", "vllm")


@pytest.fixture
def planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder we are in has modules named like others, each of which leaves a mark; PYTHONPATH means it too."""
    folder = tmp_path / "downloads"
    folder.mkdir()
    for name in PLANTED:
        (folder / f"{name}.py").write_text(f"open({str(tmp_path / 'marked')!r}, 'a').write({name!r})\n")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PYTHONPATH", f":.:{os.environ.get('PYTHONPATH', '')}")
    return tmp_path / "marked"


def engine(tmp_path: Path) -> Engine:
    return Engine(tmp_path, EngineSettings(), run_dir=tmp_path / "run", log=tmp_path / "log")


async def test_vllm_runs_no_file_of_the_folder_we_are_in(tmp_path: Path, planted: Path) -> None:
    vllm = engine(tmp_path)
    command = vllm.command()
    assert command[:4] == [sys.executable, "-P", "-m", "vllm.entrypoints.openai.api_server"]
    vllm.command = lambda: children.python("-c", "import json, vllm")  # type: ignore[method-assign]
    await vllm._launch()
    assert vllm._process is not None
    assert await vllm._process.wait() == 0
    await vllm.stop()
    assert not planted.exists()


def test_neither_does_what_vllm_starts_in_its_turn(tmp_path: Path, planted: Path) -> None:
    for command in ([sys.executable, "-c", "import json"], [sys.executable, "-m", "timeit", "-n1", "pass"]):
        subprocess.run(command, env=engine(tmp_path).environment(), check=True, stdout=subprocess.DEVNULL)
    assert not planted.exists()
    subprocess.run([sys.executable, "-c", "import json"], check=False, capture_output=True)
    assert planted.exists()  # so it would be seen


def test_neither_do_the_model_the_rehearsal_and_doctor(tmp_path: Path, planted: Path) -> None:
    prepare._run("convert_gguf", "nothing", "nowhere", stderr=subprocess.DEVNULL)
    env = home.environment(Home(tmp_path / "home"), 48, 96, 0)
    assert home.start(["--version"], env, stdout=subprocess.DEVNULL).wait() == 0
    assert doctor._imports("json")
    assert not planted.exists()


async def test_neither_does_the_scheduled_job(tmp_path: Path, planted: Path) -> None:
    schedule = Schedule(Home.find(tmp_path / "home"), 3600.0, Any, lambda: True)  # type: ignore[arg-type]
    await schedule._train(["--version"])
    assert "thumbwise" in schedule.log.read_text()
    assert not planted.exists()


def test_python_is_started_from_one_place_only() -> None:
    """Whoever starts it elsewhere would have to think of all that again."""
    asking = set()
    for path in (path for folder in packaged.FOLDERS for path in (packaged.ROOT / folder).rglob("*.py")):
        nodes = ast.walk(ast.parse(path.read_text()))
        if any(isinstance(node, ast.Attribute) and ast.unparse(node) == "sys.executable" for node in nodes):
            asking.add(path.name)
    assert asking == {"children.py", "doctor.py"}  # the latter prints it


def test_what_is_compiled_is_kept_where_nobody_else_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "VLLM_CACHE_ROOT"):
        monkeypatch.delenv(name, raising=False)
    environment = engine(tmp_path).environment()
    for name in ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "VLLM_CACHE_ROOT"):
        assert Path(environment[name]).is_relative_to(tmp_path / "run")
        monkeypatch.setenv(name, "/elsewhere")
        assert engine(tmp_path).environment()[name] == "/elsewhere"


def test_processes_of_vllm_meet_on_loopback_whatever_the_shell_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("GLOO_SOCKET_IFNAME", "VLLM_HOST_IP", "MASTER_ADDR"):
        monkeypatch.setenv(name, "eth0")
    environment = engine(tmp_path).environment()
    assert environment["GLOO_SOCKET_IFNAME"] == environment["NCCL_SOCKET_IFNAME"] == "lo"
    assert environment["VLLM_HOST_IP"] == environment["MASTER_ADDR"] == "127.0.0.1"


# --- their output ------------------------------------------------------------------------------------


async def test_output_that_grows_too_large_is_cut_while_the_child_writes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(child_logs, "LARGEST", 1000)
    path = tmp_path / "new" / "log"
    code = "import sys\nfor line in sys.stdin: print(line, end='', flush=True)"
    with child_logs.opened(path, fresh=True) as log:
        child = subprocess.Popen([sys.executable, "-P", "-c", code], stdin=subprocess.PIPE, stdout=log, text=True)
    assert child.stdin is not None
    child.stdin.write("early " * 300 + "\n")
    child.stdin.flush()
    while path.stat().st_size < 1800:
        await asyncio.sleep(0.01)
    child_logs.bound(path)
    child.communicate("late\n")
    assert path.read_text() == "late\n"
    assert child_logs.older(path).read_text().startswith("early ")
    child_logs.bound(path)  # small: it stays
    assert child_logs.last_lines(path, 5) == ["late"]


def test_only_the_end_of_a_large_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with path.open("wb") as file:
        file.truncate(2**40)  # a terabyte of nothing, which no memory holds
        file.seek(0, os.SEEK_END)
        file.write(b"\nlast but one\n\n  \nlast\n")
    assert child_logs.last_lines(path, 2) == ["last but one", "last"]
    assert child_logs.last_lines(tmp_path / "nothing", 2) == []

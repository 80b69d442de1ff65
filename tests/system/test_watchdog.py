"""A server that stands still is ended with a sentence and its stacks; one that was stopped, or goes round, is not."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from crash_tools import SERVE_WITHOUT_END
from deploy_files import ASSISTANT, unit

from thumbwise.settings import Settings
from thumbwise.system.watchdog import notify, stopped

SCRIPT = """
import asyncio, re, sys, threading, time
from thumbwise.system.watchdog import watched

async def main():
    async with watched(float(sys.argv[1])):
        await asyncio.sleep(0.1)
        if sys.argv[2] == "lock":
            lock = threading.Lock()
            with lock:
                lock.acquire()
        elif sys.argv[2] == "expression":
            re.fullmatch("(a+)+", "a" * 60 + "b")
        await asyncio.sleep(float(sys.argv[3]))

asyncio.run(main())
"""


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-c", SCRIPT, *arguments]
    env = os.environ | environment
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, env=env)


@pytest.mark.parametrize("why", ["lock", "expression"])
def test_a_loop_that_stands_still_ends_the_process_with_a_sentence_and_its_stacks(why: str) -> None:
    done = run("2", why, "0")
    assert done.returncode == -signal.SIGABRT
    assert "The server has stood still for 2 seconds (setting watchdog_seconds)" in done.stderr
    assert "in main" in done.stderr
    assert done.stderr.count("Traceback") == 0


def test_a_loop_that_goes_round_is_left_alone_and_one_may_do_without() -> None:
    assert run("2", "nothing", "5").returncode == 0
    assert run("0", "nothing", "0").returncode == 0


def test_who_was_stopped_does_not_stand_still() -> None:
    child = subprocess.Popen(["sleep", "600"])
    try:
        assert not stopped(child.pid)
        os.kill(child.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, child.pid, os.WSTOPPED | os.WNOWAIT)
        assert stopped(child.pid)
    finally:
        child.kill()
        child.wait()


@pytest.fixture
def service(tmp_path: Path) -> socket.socket:
    """What systemd listens on."""
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    bound.bind(str(tmp_path / "notify"))
    bound.settimeout(300)
    return bound


def test_systemd_is_told_that_it_is_ready_goes_round_and_ends(service: socket.socket) -> None:
    assert run("0", "nothing", "2.5", NOTIFY_SOCKET=service.getsockname()).returncode == 0
    said = [service.recv(100).decode()]
    while said[-1] != "STOPPING=1":
        said.append(service.recv(100).decode())
    assert (said[0], set(said[1:-1]), len(said) >= 4) == ("READY=1", {"WATCHDOG=1"}, True)


def test_names_of_linux_that_are_no_files_are_told_too_and_nobody_there_is_no_error() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as bound:
        bound.bind(f"\0thumbwise-{os.getpid()}")
        bound.settimeout(60)
        notify(f"@thumbwise-{os.getpid()}", "READY=1")
        assert bound.recv(100) == b"READY=1"
    notify(f"@thumbwise-{os.getpid()}", "READY=1")
    notify("", "READY=1")


@pytest.mark.slow
def test_serve_tells_systemd_and_its_children_do_not(tmp_path: Path, service: socket.socket) -> None:
    environment = {**os.environ, "THUMBWISE_HOME": str(tmp_path / "home"), "NOTIFY_SOCKET": service.getsockname()}
    serve = subprocess.Popen([sys.executable, "-P", "-c", SERVE_WITHOUT_END], env=environment, stdout=subprocess.PIPE)
    try:
        assert service.recv(100) == b"READY=1"
        assert service.recv(100) == b"WATCHDOG=1"
        children = [path for path in Path("/proc").glob("[0-9]*") if _parent(path) == serve.pid]
        assert children
        assert not any(b"NOTIFY_SOCKET" in (path / "environ").read_bytes() for path in children)
    finally:
        serve.send_signal(signal.SIGINT)
        serve.wait()


def test_a_server_that_stands_still_is_ended_and_started_again_by_both() -> None:
    service = unit("thumbwise.service")["Service"]
    assert (service["Type"], service["Restart"]) == (["notify"], ["always"])
    own = Settings.model_fields["watchdog_seconds"].default
    assert 0 < own < float(service["WatchdogSec"][0])  # ours says why
    assert ASSISTANT["restart"] == "unless-stopped"  # whatever its exit status


def _parent(process: Path) -> int:
    try:
        return int((process / "stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0

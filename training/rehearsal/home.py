"""Where a rehearsal works: a folder under the operator's `runs/` with a home of its own, and processes in it.

The operator's database, versions and runs are never opened. Settings and plugins are copied, base models are shared
through a link. The assistant and the job are real processes, started through `thumbwise.engine.child`, so they end when
the rehearsal ends, however it ends.

Left out: an operator's own changes to vLLM (`engine_url` stays in force: the rehearsal's versions are then loaded
beside theirs).
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx

from thumbwise.errors import ThumbwiseError
from thumbwise.home import Home, running_url
from thumbwise.system import child_logs, children
from thumbwise.training.run.folders import write_json

STOP_SECONDS = 60.0


def open_folder(home: Home, digest: str, plan: dict[str, Any]) -> tuple[Path, bool]:
    """The folder of a rehearsal with this plan: the newest unfinished one (True), or a new one (False)."""
    unfinished = [
        folder for folder in home.runs.glob(f"rehearsal-*-{digest[:8]}") if not (folder / "result.json").exists()
    ]
    if unfinished:
        return max(unfinished), True
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S")
    folder = home.runs / f"rehearsal-{stamp}-{digest[:8]}"
    folder.mkdir(mode=0o700)
    write_json(folder / "plan.json", plan)
    return folder, False


def make_home(operator: Home, folder: Path) -> Home:
    """The rehearsal's own home in `folder`, with the operator's settings and plugins as they are now."""
    root = folder / "home"
    if not root.exists():
        side = folder / ".home"
        shutil.rmtree(side, ignore_errors=True)
        side.mkdir(mode=0o700)
        for shared in (operator.models, operator.cache):  # what was prepared and compiled is not made again
            (side / shared.name).symlink_to(shared)
        if operator.config.exists():
            shutil.copy2(operator.config, side / "config.toml")
        shutil.copytree(operator.plugins, side / "plugins", ignore=shutil.ignore_patterns("__pycache__"))
        side.rename(root)
    return Home.find(root)


def environment(home: Home, max_tokens: int, chat_tokens: int, seed: int) -> dict[str, str]:
    """The settings of the rehearsal's processes: its own home, a free port, its lengths and its seed."""
    return children.safe() | {
        "THUMBWISE_HOME": str(home.root),
        "THUMBWISE_HOST": "127.0.0.1",
        "THUMBWISE_PORT": "0",
        "THUMBWISE_TRAIN_EVERY": "",
        "THUMBWISE_CANARY__SHARE": "0",
        "THUMBWISE_CANARY__ROLLBACK": "false",  # it asks for its own swaps, and measures them
        "THUMBWISE_NAMES_ARE_PEOPLE": "true",  # its raters are simulated, and one program speaks for all of them
        "THUMBWISE_MAX_TOKENS": str(max_tokens),
        "THUMBWISE_CHAT_MAX_TOKENS": str(chat_tokens),
        "THUMBWISE_TRAIN__SEED": str(seed),
    }


def start(arguments: list[str], env: dict[str, str], **pipes: Any) -> subprocess.Popen[str]:
    """Start a `thumbwise` command that ends when this process ends, for whatever reason."""
    command = children.launched(children.python("-m", "thumbwise", *arguments))
    return subprocess.Popen(command, env=env, text=True, start_new_session=True, **pipes)


def stop(process: subprocess.Popen[str]) -> None:
    """End a process in order. If that takes too long, kill it and all below it."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGHUP)  # the launcher ends the whole tree
            process.wait()


def wait_held(process: subprocess.Popen[str]) -> None:
    """Wait until the process that `start` started has stopped itself at a fault point (`=stop`), or has ended."""
    while process.poll() is None and not all(_state(pid) in "TX" for pid in _children(process)):
        time.sleep(0.05)


def let_go_on(process: subprocess.Popen[str]) -> None:
    """Let it continue. A job's lease outlasts a minute of standing still."""
    for pid in _children(process):
        with suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGCONT)


def _children(process: subprocess.Popen[str]) -> list[str]:
    with suppress(OSError):  # it has ended
        return Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return []


def _state(pid: str) -> str:
    """A process's state letter as /proc gives it; `X` if the process is gone."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return "X"


@contextmanager
def assistant(home: Home, env: dict[str, str], log: Path, patience: float, say: Callable[[str], None]) -> Iterator[str]:
    """A running assistant on `home`: yields its URL once it is ready, within `patience` seconds.

    Until then `say` is called with what it is doing, whenever that changes.
    """
    with log.open("a") as file:
        process = start(["serve"], env, stdin=subprocess.DEVNULL, stdout=file, stderr=file)
        try:
            yield _wait_ready(home, process, log, patience, say)
        finally:
            stop(process)


def _wait_ready(
    home: Home, process: subprocess.Popen[str], log: Path, patience: float, say: Callable[[str], None]
) -> str:
    deadline = time.monotonic() + patience
    detail = ""
    while process.poll() is None and time.monotonic() < deadline:
        url = running_url(home)
        if url is not None:
            try:
                answer = httpx.get(f"{url}/health/ready", timeout=30, trust_env=False)
                if answer.status_code == 200:
                    return url
                before, detail = detail.partition("\n")[0], str(answer.json().get("detail", ""))
                if (line := detail.partition("\n")[0]) and line != before:
                    say(line)
            except (httpx.HTTPError, ValueError):
                pass
        time.sleep(0.3)
    said = detail or "".join(child_logs.last_lines(log, 1)) or "it said nothing"
    raise ThumbwiseError(f"The rehearsal's assistant did not get ready: {said} (log: {log})")

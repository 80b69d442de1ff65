"""A watchdog: ends the process if the server's event loop stands still, so that its service manager restarts it.

Such a server answers nobody, not even `/health/live`. So the loop sends a tick each second: to systemd, if that started
us (`WatchdogSec`), and to a process of our own, which counts. This is a process and not a thread, because the code that
stands still may hold the GIL: a regular expression on a long text does. The process counts only seconds in which it was
awake itself and the server was not stopped. So nothing is ended because the machine slept, a container was paused, or
somebody pressed Ctrl-Z. Before the server ends, it writes the stacks of all threads to stderr. Left out: a watchdog for
vLLM, which the supervisor is.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import os
import resource
import select
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from thumbwise.system import children

TICK = 1.0
LAST_WORDS = 10.0
"""Seconds that a process gets to write its threads' stacks after it was told to end."""


@asynccontextmanager
async def watched(seconds: float) -> AsyncIterator[None]:
    """Inside the block, the process is ended if its loop stands still for `seconds` (0: never)."""
    faulthandler.enable()  # at a SIGABRT, systemd's or ours, the stacks are written
    _, most = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, most))  # but no core dump, which would contain what people said
    service = os.environ.pop("NOTIFY_SOCKET", "")  # our children must not use it
    watch = children.python("-m", "thumbwise.system.watchdog", str(os.getpid()), str(seconds))
    child = subprocess.Popen(watch, stdin=subprocess.PIPE, env=children.safe()) if seconds else None
    notify(service, "READY=1")
    ticking = asyncio.create_task(_tick(service, child))
    try:
        yield
    finally:
        ticking.cancel()
        notify(service, "STOPPING=1")
        if child is not None:
            child.kill()
            child.wait()


async def _tick(service: str, child: subprocess.Popen[bytes] | None) -> None:
    pipe = -1
    if child is not None and child.stdin is not None:
        pipe = child.stdin.fileno()
        os.set_blocking(pipe, False)
    while True:
        notify(service, "WATCHDOG=1")
        with contextlib.suppress(OSError):  # the watching process was ended, or is stopped and does not read
            os.write(pipe, b".")
        await asyncio.sleep(TICK)


def notify(service: str, said: str) -> None:
    """Tell systemd, whose socket is `service`: empty if it did not start us, `@…` for an abstract socket of Linux."""
    if service:
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.setblocking(False)
            sender.sendto(said.encode(), service.replace("@", "\0", 1) if service[0] == "@" else service)


def stopped(pid: int) -> bool:
    """Whether somebody stopped the process (Ctrl-Z, a debugger). It can be continued."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "tT"


def main(arguments: list[str]) -> int:
    """Read the ticks of process `arguments[0]` from stdin, and end it after `arguments[1]` seconds without a tick."""
    pid, seconds = int(arguments[0]), float(arguments[1])
    for ignored in (signal.SIGINT, signal.SIGHUP):  # from the terminal; they are for the server
        signal.signal(ignored, signal.SIG_IGN)
    still = 0.0
    while still < seconds:
        if _heard(TICK):
            if not os.read(0, 4096):
                return 0
            still = 0.0
        elif not stopped(pid):
            still += TICK
    print(
        f"The server has stood still for {seconds:g} seconds (setting watchdog_seconds) and is ended, so that what "
        "started it starts it again. Where it stood:",
        file=sys.stderr, flush=True,
    )  # fmt: skip
    os.kill(pid, signal.SIGABRT)
    while _heard(LAST_WORDS):
        if not os.read(0, 4096):
            return 1
    os.kill(pid, signal.SIGKILL)
    return 1


def _heard(seconds: float) -> bool:
    return bool(select.select([0], [], [], seconds)[0])


if __name__ == "__main__":
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has ended
        sys.exit(main(sys.argv[1:]))

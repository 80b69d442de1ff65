"""Launcher between the assistant and vLLM: when either of them dies, no process of vLLM remains.

`python -m thumbwise.engine.child PARENT_PID COMMAND...` starts COMMAND and waits for it. vLLM's server has
two more processes below it (EngineCore, Worker). If the server is killed with -9, they live on and keep
all of the model's memory. So this process adopts orphans below it (PR_SET_CHILD_SUBREAPER) and ends every
one of them when the server has ended, or when the assistant has (PR_SET_PDEATHSIG). SIGTERM goes on to the
server alone, which then finishes what it is doing; a second SIGTERM or SIGHUP ends the tree at once.

Linux only, as vLLM is. Left out: `preexec_fn` in the assistant, which is not safe beside threads; this
process has one thread, so fork, prctl and exec are safe.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
from pathlib import Path

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
_SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGCHLD)
_libc = ctypes.CDLL(None, use_errno=True)


def main(arguments: list[str]) -> int:
    """Run the command and return its exit status (128 + the signal where it was killed)."""
    parent, command = int(arguments[0]), arguments[1:]
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    _die_with(parent, signal.SIGHUP)
    _prctl(PR_SET_CHILD_SUBREAPER, 1)
    server = _start(command)
    asked_to_stop = False
    while True:
        got = signal.sigwait(_SIGNALS)
        if got == signal.SIGCHLD:
            if (status := _reap(server)) is not None:
                break
        elif got == signal.SIGTERM and not asked_to_stop:
            asked_to_stop = True
            os.kill(server, signal.SIGTERM)
        elif got in (signal.SIGHUP, signal.SIGTERM):
            status = -signal.SIGKILL
            break
    _end_children()
    return status if status >= 0 else 128 - status


def _prctl(option: int, value: int) -> None:
    if _libc.prctl(option, value, 0, 0, 0):
        raise OSError(ctypes.get_errno(), f"prctl {option} failed")


def _die_with(parent: int, with_signal: int) -> None:
    """Ask for `with_signal` when `parent` dies; exit at once if it is dead already.

    Linux sends it when the *thread* that forked us ends. asyncio forks in the thread of the event loop,
    which lives as long as whoever supervises us.
    """
    _prctl(PR_SET_PDEATHSIG, with_signal)
    if os.getppid() != parent:
        os._exit(1)


def _start(command: list[str]) -> int:
    launcher = os.getpid()
    if child := os.fork():
        return child
    try:
        _die_with(launcher, signal.SIGKILL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        os.execvp(command[0], command)
    except OSError as error:
        print(f"{command[0]} cannot be started: {error}", file=sys.stderr, flush=True)
    finally:
        os._exit(127)


def _reap(server: int) -> int | None:
    """Collect everyone who has ended; return the server's exit code if it was among them."""
    found = None
    with contextlib.suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            if ended[0] == server:
                found = os.waitstatus_to_exitcode(ended[1])
    return found


def _end_children() -> None:
    """Kill our children, and their children as they become ours, until there are none."""
    children = Path(f"/proc/self/task/{os.getpid()}/children")
    while True:
        for pid in children.read_text().split():
            os.kill(int(pid), signal.SIGKILL)
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Named places in the code where a test can kill the process or fill the disk, and where a rehearsal can stop it.

`THUMBWISE_FAULT=checkpoint#2` kills this process (-9) when it passes the place `checkpoint` for the second time. With
`=full` after it, "no space left on device" is raised there instead. With `=stop`, the process stops there until it is
continued (SIGCONT). Fixed places find more than random timing; each is named after what has just been done. With
`THUMBWISE_DEBUG_LOCKS=1`, an event loop that would wait for the database raises an error instead. Left out: faults
inside libraries, which tests provoke for real (a full file system, a killed vLLM).
"""

from __future__ import annotations

import errno
import os
import signal
from collections import Counter

VARIABLE = "THUMBWISE_FAULT"
DEBUG_LOCKS = "THUMBWISE_DEBUG_LOCKS"
_passed: Counter[str] = Counter()


def fault_point(name: str) -> None:
    """Do nothing, or cause the fault that the environment asks for at `name`."""
    wanted = os.environ.get(VARIABLE)
    if wanted is None:
        return
    where, _, deed = wanted.partition("=")
    place, _, times = where.partition("#")
    if place != name:
        return
    _passed[name] += 1
    if _passed[name] != int(times or 1):
        return
    if deed == "full":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    os.kill(os.getpid(), signal.SIGSTOP if deed == "stop" else signal.SIGKILL)


def debug_locks() -> bool:
    """Whether an event loop that would wait for the database raises an error; it does in the tests."""
    return bool(os.environ.get(DEBUG_LOCKS))


def disk_is_full(error: BaseException | None) -> bool:
    """Whether `error`, or what caused it, is a full disk or quota."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        error = error.__cause__ or error.__context__
    return False


def out_of_memory(error: BaseException | None) -> bool:
    """Whether `error`, or what caused it, is a lack of memory: Python's error, or PyTorch's for a tensor."""
    while error is not None:
        torchs = type(error).__name__ == "OutOfMemoryError" or "allocate memory" in str(error)
        if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and torchs):
            return True
        error = error.__cause__ or error.__context__
    return False

"""Our child processes: how they are started, with which environment, and how much they compute.

Each ends when this process ends (`thumbwise.engine.child`). None runs a file of the folder in which it is started: `-P`
keeps that folder out of `sys.path`. `PYTHONSAFEPATH` does the same for processes that a child starts. Parts of
`PYTHONPATH` that are empty or relative mean that folder too, and are removed.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Mapping
from pathlib import Path


def python(*arguments: str) -> list[str]:
    """The command that runs this Python with `arguments`."""
    return [sys.executable, "-P", *arguments]


def launched(command: list[str]) -> list[str]:
    """The command that runs `command`, and ends it when this process ends."""
    return python("-m", "thumbwise.engine.child", str(os.getpid()), *command)


def safe(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """`environment` without what makes Python load modules from the current folder."""
    kept = dict(environment) | {"PYTHONSAFEPATH": "1"}
    folders = [part for part in kept.pop("PYTHONPATH", "").split(os.pathsep) if os.path.isabs(part)]  # noqa: PTH117
    return kept | ({"PYTHONPATH": os.pathsep.join(folders)} if folders else {})


def cpu_seconds(group: int) -> float:
    """CPU time of all processes of a process group, in seconds of one core."""
    ticks = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError):
            fields = stat.read_text().rpartition(")")[2].split()
            if int(fields[2]) == group:
                ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")

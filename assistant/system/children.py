"""Child processes of ours: how they are started, with what environment, and what they compute.

Each ends with this process (`engine_child.py`), and none runs a file of the folder that it happens to be started in:
`-P` keeps that folder out of the modules' path, `PYTHONSAFEPATH` does so for what a child starts in its turn, and parts
of `PYTHONPATH` that are empty or relative, which mean that folder too, are left out.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Mapping
from pathlib import Path


def python(*arguments: str) -> list[str]:
    """The command that runs this Python."""
    return [sys.executable, "-P", *arguments]


def launched(command: list[str]) -> list[str]:
    """The command that runs `command` for as long as this process lives."""
    return python("-m", "thumbwise.engine.child", str(os.getpid()), *command)


def safe(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """`environment` without what would make Python load modules from wherever it is started."""
    kept = dict(environment) | {"PYTHONSAFEPATH": "1"}
    folders = [part for part in kept.pop("PYTHONPATH", "").split(os.pathsep) if os.path.isabs(part)]  # noqa: PTH117
    return kept | ({"PYTHONPATH": os.pathsep.join(folders)} if folders else {})


def cpu_seconds(group: int) -> float:
    """How long all processes of a process group have run, in seconds of one core."""
    ticks = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError):
            fields = stat.read_text().rpartition(")")[2].split()
            if int(fields[2]) == group:
                ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")

"""Files that our child processes write their output into: bounded while they run, and read from their end only.

A child holds its file open, so the file is cut, not renamed: what it had goes to `NAME.1`. That needs the file to be
open for appending, as `opened` does. Left out: keeping more than one older file.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

LARGEST = 16 * 2**20
"""Bytes of a file above which it is cut; with the older one it takes twice that, and what comes between two looks."""
TAIL = 2**16
"""Bytes that are read from the end."""


def older(path: Path) -> Path:
    """Where the output before the last cut is."""
    return path.with_name(path.name + ".1")


def opened(path: Path, *, fresh: bool) -> BinaryIO:
    """Open `path` for a child's output; `fresh` puts what was there into the older file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if fresh:
        with suppress(FileNotFoundError):
            path.replace(older(path))
    return open(path, "ab", opener=lambda name, flags: os.open(name, flags, 0o600))


def bound(path: Path) -> None:
    """Cut the file where it has grown too large; lines that come in this moment are lost."""
    with suppress(OSError):  # a full disk: nothing could be kept anyway
        if path.stat().st_size > LARGEST:
            with suppress(OSError):
                shutil.copyfile(path, older(path))
            os.truncate(path, 0)


def last_lines(path: Path, number: int, wanted: Callable[[str], object] = str.strip) -> list[str]:
    """The last `number` lines of a file that are `wanted`, found in its last TAIL bytes; none where it is not there."""
    with suppress(OSError), path.open("rb") as file:
        file.seek(0, os.SEEK_END)
        begin = max(0, file.tell() - TAIL)
        file.seek(begin)
        lines = file.read(TAIL).decode(errors="replace").splitlines()
        return [line for line in lines[1 if begin else 0 :] if wanted(line)][-number:]
    return []

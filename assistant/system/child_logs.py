"""The output files of our child processes: limited in size while the children run, and read from the end.

A child holds its file open, so the file is cut and not renamed: its content is copied to `NAME.1` first. This needs the
file to be open for appending, as `opened` does. Left out: keeping more than one older file.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

LARGEST = 16 * 2**20
"""Bytes above which a file is cut. With the older file it is twice that, plus what comes between two checks."""
TAIL = 2**16
"""Bytes that are read from the end."""


def older(path: Path) -> Path:
    """The file that holds the output from before the last cut."""
    return path.with_name(path.name + ".1")


def opened(path: Path, *, fresh: bool) -> BinaryIO:
    """Open `path` for a child's output; `fresh` moves what is there to the older file first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if fresh:
        with suppress(FileNotFoundError):
            path.replace(older(path))
    return open(path, "ab", opener=lambda name, flags: os.open(name, flags, 0o600))


def bound(path: Path) -> None:
    """Cut the file if it has grown too large. Lines that are written at this moment are lost."""
    with suppress(OSError):  # a full disk: a copy could not be kept anyway
        if path.stat().st_size > LARGEST:
            with suppress(OSError):
                shutil.copyfile(path, older(path))
            os.truncate(path, 0)


def last_lines(path: Path, number: int, wanted: Callable[[str], object] = str.strip) -> list[str]:
    """The last `number` lines that are `wanted`, from the last TAIL bytes; none if the file does not exist."""
    with suppress(OSError), path.open("rb") as file:
        file.seek(0, os.SEEK_END)
        begin = max(0, file.tell() - TAIL)
        file.seek(begin)
        lines = file.read(TAIL).decode(errors="replace").splitlines()
        return [line for line in lines[1 if begin else 0 :] if wanted(line)][-number:]
    return []

"""Snapshots without what was forgotten: a marked copy takes the place of the original.

The copy is `<id>.redacted.jsonl`; its first line says what it is. Its bytes are no longer those that the id names, so
it is never given to a run: `snapshot_path` refuses.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson

from thumbwise.faults import fault_point
from thumbwise.feedback.records import canonical
from thumbwise.feedback.snapshot import REDACTED, UNFINISHED
from thumbwise.home import fsync_folder

Covers = Callable[[dict[str, Any]], bool]


def holds(path: Path, covers: Covers) -> bool:
    """Whether a snapshot's file has a line with something that is to be forgotten."""
    with path.open("rb") as file:
        return any(covers(orjson.loads(line)) for line in file if line.strip())


def holding(folder: Path, covers: Covers) -> set[str]:
    """The ids of the snapshots in `folder` that hold something which is to be forgotten."""
    return {path.name.partition(".")[0] for path in folder.glob("*.jsonl") if holds(path, covers)}


def redact(folder: Path, snapshot_id: str, covers: Covers) -> None:
    """Put a copy without the covered lines in the place of a snapshot.

    The original is removed once the copy is durable. After a kill in between, call this again. A snapshot that the
    operator removed is no error.
    """
    original, copy = folder / f"{snapshot_id}.jsonl", folder / f"{snapshot_id}{REDACTED}"
    if not (original.exists() or copy.exists()):
        return
    side = folder / f"{UNFINISHED}{secrets.token_hex(4)}"
    try:
        with (
            open(side, "wb", opener=lambda name, flags: os.open(name, flags, 0o600)) as file,
            (original if original.exists() else copy).open("rb") as old,
        ):
            file.write(canonical({"type": "redacted", "snapshot": snapshot_id}).encode() + b"\n")
            for line in old:
                row = orjson.loads(line)
                if row["type"] != "redacted" and not covers(row):
                    file.write(line)
            file.flush()
            os.fsync(file.fileno())
        side.replace(copy)
    finally:
        side.unlink(missing_ok=True)
    fsync_folder(folder)
    fault_point("snapshot_redacted")
    original.unlink(missing_ok=True)
    fsync_folder(folder)

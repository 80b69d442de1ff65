"""The operator's own files, copied into the run's folder, so that a resumed run has the same ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from thumbwise.feedback.records import sha256
from thumbwise.home import write_durably


def keep(given: str, kept: Path, read: Callable[[Path], str]) -> str:
    """Copy the text that `read` finds in the file `given` to `kept`, unless that is done. Returns its SHA-256.

    The result is empty if no file was given. `read` raises if the file is not what it should be.
    """
    if not given:
        return ""
    if not kept.exists():
        write_durably(kept, read(Path(given)).encode())
    return sha256(kept.read_bytes())

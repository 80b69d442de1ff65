"""Where plugins come from, and whether that place can be trusted.

Plugin files and the list of enabled entry points decide what code runs. So both are read only if nobody but this user
(or root) can have written them.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import FrameType, ModuleType

from thumbwise.errors import NotFound, ThumbwiseError
from thumbwise.home import Home, write_durably
from thumbwise.system import trust

GROUP = "thumbwise"


def installed() -> list[EntryPoint]:
    """Return the entry points of the group `thumbwise`, without importing any."""
    return sorted(entry_points(group=GROUP), key=lambda point: point.name)


def enabled(home: Home) -> list[str]:
    """Return the names in `plugins/enabled.txt`; raises ThumbwiseError if others could write it, or it is not text."""
    path = home.plugins / "enabled.txt"
    if not path.exists():
        return []
    try:
        lines = read_trusted(path).decode().splitlines()
    except UnicodeDecodeError:
        raise ThumbwiseError(f"{path} is not text: remove it, and enable your plugins again.") from None
    return [line.strip() for line in lines if line.strip()]


def enable(home: Home, name: str) -> None:
    """Turn an installed entry-point plugin on, durably. Raises NotFound, with the installed names."""
    known = [point.name for point in installed()]
    if name not in known:
        raise NotFound(
            f"No installed package brings a plugin named {name!r} (installed: {', '.join(known) or 'none'}); "
            f"built-in plugins and files in {home.plugins} are always on."
        )
    _store(home, sorted({*enabled(home), name}))


def disable(home: Home, name: str) -> None:
    """Turn an entry-point plugin off, durably. Raises NotFound if it is not enabled."""
    names = enabled(home)
    if name not in names:
        raise NotFound(
            f"{name!r} is not enabled (enabled: {', '.join(names) or 'none'}); to turn a file off, move it "
            f"out of {home.plugins}."
        )
    _store(home, [other for other in names if other != name])


def read_trusted(path: Path) -> bytes:
    """Read a file that only its owner (this user or root) can have written; else raise ThumbwiseError.

    Every folder and link on its path is checked too. The open file is checked, not its name, so that nobody can
    exchange it between check and use.
    """
    trust.refuse_foreign(path)
    real = path.resolve()
    for folder in {path.parent, real.parent}:
        _refuse_writable(folder, folder.stat())
    with real.open("rb") as file:
        _refuse_writable(real, os.fstat(file.fileno()))
        return file.read()


def _refuse_writable(path: Path, status: os.stat_result) -> None:
    if trust.writable_by_others(status):
        raise ThumbwiseError(f"{path} can be written by others, who could change what runs: `chmod go-w` it")


def _store(home: Home, names: Sequence[str]) -> None:
    path = home.plugins / "enabled.txt"
    write_durably(path, "".join(f"{name}\n" for name in names).encode())
    path.chmod(0o600)  # a umask of 002 would make it writable by the group, and so refused


@contextlib.contextmanager
def output_to_stderr() -> Iterator[None]:
    """Send to stderr what plugins and their programs print: stdout is for the command's result."""
    with contextlib.ExitStack() as stack:
        if sys.__stdout__ is not None:
            sys.__stdout__.flush()
        with contextlib.suppress(OSError):  # where one of the two is closed
            kept = os.dup(1)
            stack.callback(os.close, kept)
            os.dup2(2, 1)
            stack.callback(os.dup2, kept, 1)
        if sys.__stdout__ is not None:
            stack.callback(sys.__stdout__.flush)
        stack.enter_context(contextlib.redirect_stdout(sys.stderr))
        yield


@contextlib.contextmanager
def interrupts() -> Iterator[Callable[[], bool]]:
    """Yield a function that says whether Ctrl-C was pressed: a plugin can raise KeyboardInterrupt without that."""
    came: list[int] = []
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield lambda: False
        return

    def note(number: int, frame: FrameType | None) -> None:
        came.append(number)
        before(number, frame)

    signal.signal(signal.SIGINT, note)
    try:
        yield lambda: bool(came)
    finally:
        if signal.getsignal(signal.SIGINT) is note:
            signal.signal(signal.SIGINT, before)


def run_file(path: Path, source: bytes) -> ModuleType:
    """Execute exactly the bytes that were checked, as a module with a name of its own; no cached bytecode."""
    module = ModuleType(f"thumbwise_file_{path.stem}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module  # dataclasses and typing look their module up
    try:
        exec(compile(source, str(path), "exec"), module.__dict__)
    except BaseException:
        del sys.modules[module.__name__]
        raise
    return module

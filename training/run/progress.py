"""How a run shows its progress: a bar on a terminal, plain lines if stderr is a file or a pipe."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from thumbwise.printed import visible

LINE_SECONDS = 20.0


class RunProgress:
    """`stage` begins a named stage, `update` advances a counted stage, `part` says how far a part of another one is.

    Nothing is written to stdout.
    """

    def __init__(self, quiet: bool = False) -> None:
        console = Console(stderr=True, quiet=quiet)
        self.console = console
        self.live = console.is_terminal and not quiet
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[numbers]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        self.bar = Progress(*columns, console=console, disable=not self.live)
        self.task = self.bar.add_task("starting", total=None, numbers="")
        self.start = self.last = time.monotonic()
        self.name = ""
        self.counted = False
        self.first = (0.0, 0, ("", 0))  # when a count was first seen, its value then, its total

    def __enter__(self) -> Self:
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()

    def stage(self, name: str, total: int | None = None, done: int = 0) -> None:
        """Begin a stage of `total` steps, if that is known; `done` of them were done before."""
        self.name, self.counted, self.first = name, total is not None, (0.0, 0, ("", 0))
        self.bar.reset(self.task, total=total, completed=done, description=name, numbers="")
        if not self.live:
            self.say(name)

    def update(self, done: int, total: int, metrics: Mapping[str, float]) -> None:
        """Show that `done` of `total` steps are done, with the numbers that matter."""
        shown = {"reward": "reward", "kl": "KL", "length": "length"}
        numbers = "  ".join(f"{label} {metrics[key]:.2f}" for key, label in shown.items() if key in metrics)
        self._show(self.name, done, total, numbers, always=done in (1, total))

    def part(self, what: str, done: int, total: int) -> None:
        """Show that `done` of `total` of `what` are done in this stage. Quick parts print no lines.

        A stage that counts its own steps shows those instead.
        """
        if not self.counted:
            self._show(f"{self.name}, {what}", done, total, "", always=False)

    def _show(self, name: str, done: int, total: int, numbers: str, *, always: bool) -> None:
        self.bar.update(self.task, completed=done, total=total, numbers=numbers, description=name)
        now = time.monotonic()
        began, before, of = self.first
        if of != (name, total) or done < before:
            began, before, _ = self.first = now, done, (name, total)
        if not self.live and (always or now - self.last >= LINE_SECONDS):
            left = (now - began) / (done - before) * (total - done) if done > before else None
            numbers += "" if left is None else f"  about {left / 60:.1f} minutes left"
            self.say(f"{name}: {done}/{total}  {numbers}")

    def say(self, line: str) -> None:
        """Write one line. If there is no bar, it starts with the seconds since the start."""
        self.last = time.monotonic()
        prefix = "" if self.live else f"[{time.monotonic() - self.start:5.0f} s] "
        self.console.print(prefix + visible(line), markup=False, highlight=False, soft_wrap=True)
        sys.stderr.flush()

"""How a run shows where it is: a bar on a terminal, plain lines where stderr is a file or a pipe."""

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
    """`stage` names what begins, `update` moves a counted stage on; nothing is written to stdout."""

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
        self.first = (0.0, 0, 0)  # when a count was first heard of, at what, of what

    def __enter__(self) -> Self:
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()

    def stage(self, name: str, total: int | None = None, done: int = 0) -> None:
        """Begin a stage, of `total` steps where that is known, `done` of which were done before."""
        self.name, self.first = name, (0.0, 0, 0)
        self.bar.reset(self.task, total=total, completed=done, description=name, numbers="")
        if not self.live:
            self.say(name)

    def update(self, done: int, total: int, metrics: Mapping[str, float]) -> None:
        """Show that `done` of `total` steps are behind, with the numbers that matter."""
        shown = {"reward": "reward", "kl": "KL", "length": "length"}
        numbers = "  ".join(f"{label} {metrics[key]:.2f}" for key, label in shown.items() if key in metrics)
        self.bar.update(self.task, completed=done, total=total, numbers=numbers)
        now = time.monotonic()
        began, before, of = self.first
        if of != total or done < before:
            began, before, _ = self.first = now, done, total
        if not self.live and (done in (1, total) or now - self.last >= LINE_SECONDS):
            self.last = now
            left = (now - began) / (done - before) * (total - done) if done > before else None
            numbers += "" if left is None else f"  about {left / 60:.1f} minutes left"
            self.say(f"{self.name}: {done}/{total}  {numbers}")

    def say(self, line: str) -> None:
        """Write one line, with the seconds since the start where there is no bar."""
        prefix = "" if self.live else f"[{time.monotonic() - self.start:5.0f} s] "
        self.console.print(prefix + visible(line), markup=False, highlight=False, soft_wrap=True)
        sys.stderr.flush()

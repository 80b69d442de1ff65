"""The built-in schedule, `serve --train-every 24h`: the training job as a child process, one after the other.

What a timer or cron does, for those who have neither at hand. The interval counts from when the last run was
registered, which the database knows, so a restart neither skips a run nor starts one early. A run that was
cut off is gone on with first; one that cannot be (its folder is gone, or a plugin) is given up. Left out: several
schedules, and times of the day (a timer has them).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import time
from collections.abc import Callable
from pathlib import Path

from thumbwise.home import Home
from thumbwise.system import child_logs, children
from thumbwise.versions.runs import Runs

log = logging.getLogger(__name__)
LOOK = 5.0
"""Seconds between two looks at whether a run is due."""
STOP_SECONDS = 20.0


class Schedule:
    """Starts `thumbwise train` on `home` every `interval` seconds, while `ready()` says that replies can be had."""

    pause = 600.0  # seconds before anything is tried again after a failure

    def __init__(self, home: Home, interval: float, runs: Runs, ready: Callable[[], bool]) -> None:
        self.home, self.interval, self.runs, self.ready = home, interval, runs, ready
        self.begun = time.time()
        self.log = home.runs / "schedule.log"

    def due(self, now: float) -> list[str] | None:
        """The arguments of the run that is due at `now` (UTC seconds), or None; blocking.

        The first is due after an interval, and a clock that was set back delays one by an interval at most.
        """
        if not self.ready():
            return None
        if self.runs.interrupted():
            return ["train", "--resume"]
        last = self.runs.last_begun()
        self.begun = min(self.begun, now)  # a clock that was set back: the interval counts from when it was noticed
        since = self.begun if last is None or last > now + 60 else last
        return ["train", "--new-votes"] if now - since >= self.interval else None

    async def run(self) -> None:
        """Look, start, wait, for as long as the assistant runs; a run under way ends with it, and is resumed."""
        while True:
            await asyncio.sleep(LOOK)
            try:
                if (arguments := await self.runs.store.run(self.due, time.time())) is not None:
                    await self._train(arguments)
            except Exception:  # nobody awaits this task, and one bad look must not be the last
                log.exception("the training schedule failed; it goes on")
                await asyncio.sleep(self.pause)

    async def _train(self, arguments: list[str]) -> None:
        log.info("scheduled: thumbwise %s (log: %s)", " ".join(arguments), self.log)
        command = ["nice", "-n", "10", *children.python("-m", "thumbwise", *arguments)]  # people's replies come first
        child_logs.bound(self.log)
        with child_logs.opened(self.log, fresh=False) as file:
            process = await asyncio.create_subprocess_exec(
                *children.launched(command), stdin=asyncio.subprocess.DEVNULL, stdout=file, stderr=file,
                env=self._environment(), start_new_session=True,
            )  # fmt: skip
        try:
            status = await process.wait()
        except asyncio.CancelledError:
            await _end(process)
            raise
        said = await asyncio.to_thread(_last_line, self.log)
        log.info("scheduled training ended with status %d: %s", status, said)
        if not status:
            return
        in_thread, runs = self.runs.store.run, self.runs
        # It failed before it took the lease, and always would (one that was killed at work still has it).
        hopeless = "--resume" in arguments and await in_thread(runs.interrupted)
        await asyncio.sleep(self.pause)  # whatever it was, it is not tried again at once
        if hopeless and await in_thread(runs.interrupted):  # else it is at work elsewhere: only its machine had slept
            await in_thread(runs.abandon, f"it could not be gone on with: {said[:300]}")

    def _environment(self) -> dict[str, str]:
        return children.safe() | {"THUMBWISE_HOME": str(self.home.root)}


async def _end(process: asyncio.subprocess.Process) -> None:
    """End the job: it keeps what it has, and can be gone on with."""
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), STOP_SECONDS)
        if process.returncode is None:
            process.send_signal(signal.SIGHUP)
            await process.wait()


def _last_line(path: Path) -> str:
    return "".join(child_logs.last_lines(path, 1)) or "it said nothing"

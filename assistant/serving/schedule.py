"""The built-in schedule, `serve --train-every 24h`: runs of the training job as child processes, one at a time.

It is for people without a timer or cron. The interval starts when the last run was registered. The database knows this
time, so a restart of the assistant neither skips a run nor starts one early. A run that was cut off is resumed first. A
run that cannot be resumed (its folder or a plugin is gone) is abandoned. Left out: several schedules, and times of the
day (a timer has them).
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
"""Seconds between two checks whether a run is due."""
STOP_SECONDS = 20.0
"""The job may take this long to end after SIGTERM. Then it gets SIGHUP."""


class Schedule:
    """Starts `thumbwise train` on `home` every `interval` seconds, while `ready()` is true: the engine answers."""

    pause = 600.0  # seconds between a failure and the next attempt

    def __init__(self, home: Home, interval: float, runs: Runs, ready: Callable[[], bool]) -> None:
        self.home, self.interval, self.runs, self.ready = home, interval, runs, ready
        self.begun = time.time()
        self.log = home.runs / "schedule.log"

    def due(self, now: float) -> list[str] | None:
        """Return the arguments of the run that is due at `now` (UTC seconds), or None. Reads the database.

        The first run is due after one interval. A clock that is set back delays a run by one interval at most.
        """
        if not self.ready():
            return None
        if self.runs.interrupted():
            return ["train", "--resume"]
        last = self.runs.last_begun()
        self.begun = min(self.begun, now)  # if the clock was set back, the interval starts now
        since = self.begun if last is None or last > now + 60 else last
        return ["train", "--new-votes"] if now - since >= self.interval else None

    async def run(self) -> None:
        """Start runs for as long as the assistant runs. A run in progress ends with it, and is resumed later."""
        while True:
            await asyncio.sleep(LOOK)
            try:
                if (arguments := await self.runs.store.run(self.due, time.time())) is not None:
                    await self._train(arguments)
            except Exception:  # nobody awaits this task, and one failure must not end it
                log.exception("the training schedule failed; it goes on")
                await asyncio.sleep(self.pause)

    async def _train(self, arguments: list[str]) -> None:
        log.info("scheduled: thumbwise %s (log: %s)", " ".join(arguments), self.log)
        command = ["nice", "-n", "10", *children.python("-m", "thumbwise", *arguments)]  # replies to people come first
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
        # Still interrupted: resuming failed before it took the lease, and will fail again. A killed run has its lease.
        hopeless = "--resume" in arguments and await in_thread(runs.interrupted)
        await asyncio.sleep(self.pause)  # nothing is tried again at once
        if hopeless and await in_thread(runs.interrupted):  # else it runs elsewhere: only its machine had slept
            await in_thread(runs.abandon, f"it could not be resumed: {said[:300]}")

    def _environment(self) -> dict[str, str]:
        return children.safe() | {"THUMBWISE_HOME": str(self.home.root)}


async def _end(process: asyncio.subprocess.Process) -> None:
    """End the job. It keeps its work, and can be resumed."""
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), STOP_SECONDS)
        if process.returncode is None:
            process.send_signal(signal.SIGHUP)
            await process.wait()


def _last_line(path: Path) -> str:
    return "".join(child_logs.last_lines(path, 1)) or "no output"

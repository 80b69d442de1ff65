"""The processes that chaos.py runs, restarts and kills, and a record of everything that was ever below them."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from sys import executable
from typing import Any, Self

from chaos_parts.clients import Clients

from thumbwise.home import Home
from thumbwise.names import RUN_RECORD
from thumbwise.system.children import launched
from thumbwise.training.run.folders import RESULT, read_json

LAUNCHER = launched([])[-2]  # the module, before the parent's process id
COMMAND = str(Path(executable).with_name("thumbwise"))
RESTART_SECONDS = 5.0  # RestartSec of deploy/thumbwise.service
ENDED = 10**9
"""Stands for the iteration of a run that came to its end."""


@dataclass
class Kill:
    """One kill; `seconds` is None until (or where never) the part worked again. `overlaps`: another one was away."""

    part: str
    victim: str
    at: float
    seconds: float | None = None
    overlaps: bool = False

    @classmethod
    def strike(cls, part: str, victim: str, pid: int) -> Self:
        """Kill `pid`, which this script started, with -9."""
        with suppress(ProcessLookupError):  # it has just ended: the schedule goes on as if it had been killed
            os.kill(pid, signal.SIGKILL)
        return cls(part, victim, time.monotonic())

    def as_json(self, start: float) -> dict[str, Any]:
        """The kill with its time since `start`."""
        return asdict(self) | {"at": round(self.at - start, 1)}


def below(pid: int) -> list[int]:
    """Every process below `pid`, nearest first."""
    found: list[int] = []
    for parent in (queue := [pid]):
        for children in Path(f"/proc/{parent}/task").glob("*/children"):
            with suppress(OSError):
                queue += (new := [int(word) for word in children.read_text().split()])
                found += new
    return found


def name_of(pid: int) -> str:
    """What a process of vLLM is, or nothing for one that does not matter."""
    try:
        return name_in(Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"))
    except OSError:
        return ""


def name_in(line: str) -> str:
    """What the process with this command line is. A launcher's line holds the server's, so it is looked for first."""
    names = {LAUNCHER: "launcher", "api_server": "server", "EngineCore": "core", "Worker": "worker"}
    if "resource_tracker" in line:
        return ""
    return next((name for part, name in names.items() if part in line), line[:40].strip())


def _stat(pid: int) -> tuple[str, int] | None:
    """(state, start time) of a process; None where there is none."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return fields[0], int(fields[19])


class Tracker:
    """Remembers processes by number and start time, since a number alone may be another's later."""

    def __init__(self) -> None:
        self.seen: dict[int, int] = {}

    def add(self, *pids: int) -> None:
        """Remember processes that are ours."""
        for pid in pids:
            if (stat := _stat(pid)) is not None:
                self.seen[pid] = stat[1]

    async def keep(self, root: Callable[[], int | None]) -> None:
        """Remember whatever comes to be below `root`."""
        while True:
            if (pid := root()) is not None:
                self.add(*below(pid))
            await asyncio.sleep(0.5)

    def alive(self) -> list[int]:
        """Those that still run."""
        stats = {pid: _stat(pid) for pid in self.seen}
        return [pid for pid, stat in stats.items() if stat and stat[1] == self.seen[pid] and stat[0] != "Z"]

    async def left(self, seconds: float = 15.0) -> int:
        """How many still run, after a moment in which they may end."""
        deadline = time.monotonic() + seconds
        while self.alive() and time.monotonic() < deadline:
            await asyncio.sleep(0.2)
        return len(self.alive())

    def end(self) -> None:
        """Kill those that still run."""
        for pid in self.alive():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


class Assistant:
    """Keeps `thumbwise serve` running, as systemd would."""

    def __init__(self, home: Home, port: int, environment: dict[str, str], tracker: Tracker) -> None:
        self.environment, self.tracker = environment, tracker
        self.command = [COMMAND, "serve", "--port", str(port)]
        self.log = home.root / "serve.log"
        self.process: asyncio.subprocess.Process | None = None
        self.over = False
        self.ended_by_itself = 0

    @property
    def pid(self) -> int | None:
        """Its process id, while it runs."""
        return self.process.pid if self.process is not None and self.process.returncode is None else None

    def vllm(self) -> list[tuple[str, int]]:
        """(name, pid) of vLLM's processes, its launcher first; empty while there is none."""
        if (pid := self.pid) is None:
            return []
        found = [(name, each) for each in below(pid) if (name := name_of(each))]
        return found if found and found[0][0] == "launcher" else []

    async def keep(self) -> None:
        """Start it, and again whenever it has ended."""
        while not self.over:
            with self.log.open("ab") as log:
                self.process = await asyncio.create_subprocess_exec(
                    *self.command, env=self.environment, stdout=log, stderr=log, start_new_session=True
                )
            self.tracker.add(self.process.pid)
            status = await self.process.wait()
            if not self.over:
                self.ended_by_itself += status != -signal.SIGKILL
                await asyncio.sleep(RESTART_SECONDS)

    async def stop(self, seconds: float = 60.0) -> None:
        """Let it end in order."""
        self.over = True
        if self.process is not None and self.process.returncode is None:
            self.process.terminate()
            with suppress(TimeoutError):
                await asyncio.wait_for(self.process.wait(), seconds)


class Job:
    """Trains again and again; a run that was killed or failed is resumed."""

    tries = 3  # of a run that fails, before a new one is begun

    def __init__(self, home: Home, environment: dict[str, str], clients: Clients, tracker: Tracker) -> None:
        self.home, self.environment, self.clients, self.tracker = home, environment, clients, tracker
        self.log = home.root / "job.log"
        self.process: asyncio.subprocess.Process | None = None
        self.stage = ""
        self.over = False
        self.resumed = 0
        self.outcomes: dict[str, str] = {}
        self.failures: Counter[str] = Counter()  # by run
        self.reasons: Counter[str] = Counter()

    @property
    def pid(self) -> int | None:
        """Its process id, while it runs."""
        return self.process.pid if self.process is not None and self.process.returncode is None else None

    def mark(self) -> tuple[int, int]:
        """(number of the newest run, iterations behind it); -1: none has begun."""
        newest, folder = 0, None
        for path in self.home.runs.glob(f"*/{RUN_RECORD}"):
            number = json.loads(path.read_text())["given"]["number"]
            if number > newest:
                newest, folder = number, path.parent
        if folder is None:
            return 0, -1
        result = read_json(folder / RESULT)
        if result is not None and result["outcome"] != "failed":
            return newest, ENDED
        return newest, max((int(p.name[-6:]) for p in folder.glob("checkpoints/checkpoint-*")), default=-1)

    def where(self) -> str:
        """Where it is, in words."""
        number, iteration = self.mark()
        behind = "ended" if iteration == ENDED else f"{iteration} iterations behind it"
        return f"run {number}: {behind}, job {self.stage if self.pid else 'not running'}"

    async def promoted(self) -> bool:
        """Whether any run has been promoted."""
        return "promoted" in self.outcomes.values()

    async def keep(self) -> None:
        """Runs, one after the other, until it is over and the last one has ended."""
        arguments: list[str] = []
        good_enough = self.clients.alive  # training does not need vLLM before its end
        while not self.over or arguments:
            if not await good_enough():
                await asyncio.sleep(0.5)
                continue
            self.resumed += bool(arguments)
            status, result = await self._once(arguments)
            good_enough = self.clients.alive
            if status == -signal.SIGKILL:
                arguments = ["--resume"]
            elif result is None:  # refused: nothing to resume, or a run that must be resumed
                if await self.clients.alive():
                    arguments = [] if arguments else ["--resume"]
                await asyncio.sleep(2)
            elif result["outcome"] == "failed":
                self.failures[result["run_id"]] += 1
                self.reasons[re.sub(r"policy-\d+-\w+", "policy-…", result["reason"])] += 1
                arguments = ["--resume"] if self.failures[result["run_id"]] < self.tries else []
                good_enough = self.clients.ready
            else:
                self.outcomes[result["run_id"]] = result["outcome"]
                arguments = []
                await asyncio.sleep(5 if result["outcome"] == "too_little_data" else 1)

    async def _once(self, arguments: list[str]) -> tuple[int, dict[str, Any] | None]:
        """Run the command; returns its status and its result, None where it was refused or killed."""
        self.process = await asyncio.create_subprocess_exec(
            COMMAND, "train", "--json", *arguments, env=self.environment, stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
        self.tracker.add(self.process.pid)
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        self.stage = "starting"
        with self.log.open("ab") as log:
            async for line in self.process.stderr:
                log.write(line)
                self.stage = line.decode(errors="replace").strip()[:80] or self.stage
            log.flush()
        said = (await self.process.stdout.read()).splitlines()
        status = await self.process.wait()
        return status, json.loads(said[-1]) if said else None

    def figures(self) -> dict[str, Any]:
        """How the runs ended, how often one was resumed, and why any failed on the way."""
        runs = Counter(self.outcomes.values())
        return {"runs": dict(runs), "resumed": self.resumed, "failed_on_the_way": dict(self.reasons)}

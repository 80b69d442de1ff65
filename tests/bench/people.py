"""A team at work: 50 accounts log in at once, then chat and vote for ten minutes in sessions of their own.

    python tests/bench/people.py [--seed 0] [--quick]

The engine is scripted; login, cookies, pages and streams are real, in a real process. Every question has a marker of
its author, which the reply repeats. So a marker in another's list, chat, stream or `/me` is a leak. After a graceful
stop, the database must have each vote that was acknowledged, as the right account's.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.metadata
import random
import signal
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

sys.path.insert(0, str(Path(__file__).parent))

import httpx
import kept
from argon2 import PasswordHasher
from build_at import environment
from page_parts.people_server import MARKER
from page_parts.sessions import WAIT, Routes

import thumbwise
from thumbwise import feedback, pages
from thumbwise.accounts.principal import COMMAND_LINE
from thumbwise.home import Home
from thumbwise.serving.assistant import Assistant
from thumbwise.settings import Settings

SERVER = Path(__file__).parent / "page_parts" / "people_server.py"
PASSWORD = "correct horse battery staple"
PAUSE = 8.0  # seconds between a vote and the next question, on average


@dataclass
class Counts:
    """What everybody saw, together."""

    votes: list[tuple[str, str, str]] = field(default_factory=list)  # account, reply, thumb: acknowledged, in order
    vote_seconds: list[float] = field(default_factory=list)
    looks: int = 0
    leaks: int = 0
    probes: int = 0
    open_probes: int = 0
    memory: list[tuple[float, int]] = field(default_factory=list)  # seconds since all were in, bytes


class Person(Routes):
    """One person with a cookie of their own."""

    def __init__(self, url: str, account: str, name: str, rng: random.Random, counts: Counts) -> None:
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        super().__init__(url, httpx.AsyncClient(timeout=WAIT, limits=limits, trust_env=False))
        self.account, self.name, self.rng, self.counts = account, name, rng, counts
        self.marker = f"marker{rng.getrandbits(48):012x}"

    async def login(self) -> None:
        """Send the form."""
        answer = await self.http.post(f"{self.url}/login", data={"name": self.name, "password": PASSWORD})
        if answer.status_code != 303:
            raise RuntimeError(f"{self.name} could not log in: {answer.status_code}")

    def look(self, text: str) -> None:
        """Count a text that has another's marker."""
        self.counts.looks += 1
        self.counts.leaks += bool(set(MARKER.findall(text)) - {self.marker})

    async def _read(self, address: str) -> None:
        async with self.http.stream("GET", address, timeout=None) as stream:
            async for line in stream.aiter_lines():
                if MARKER.search(line):
                    self.look(line)
                if line == "event: end":
                    self._over.set()

    async def work(self, everybody: list[Person], until: float) -> None:
        """Ask, vote, look around, and wait."""
        await asyncio.sleep(self.rng.random() * PAUSE)
        while time.monotonic() < until:
            if self.rng.random() < 0.2:
                await self.load()  # a new conversation
            async with asyncio.timeout(120):
                await self.say(f"What about {self.marker}?")
            (reply,) = parse_qs(urlsplit(self.shown["events"]).query)["reply"]
            await self.vote(reply, self.rng.choice(["up", "down"]))
            await self.look_around(everybody)
            await asyncio.sleep(self.rng.random() * 2 * PAUSE)

    async def vote(self, reply: str, thumb: str) -> None:
        """Click a thumb, and remember it where the server says that it is stored."""
        begun = time.monotonic()
        answer = await self.http.post(f"{self.url}/pages/chat/thumbs", json={"message": reply, "thumb": thumb})
        self.counts.vote_seconds.append(time.monotonic() - begun)
        if answer.raise_for_status().json()["thumb"] != thumb:
            raise RuntimeError(f"{self.name}'s thumb was answered {answer.text[:200]}")
        self.counts.votes.append((self.account, reply, thumb))

    async def look_around(self, everybody: list[Person]) -> None:
        """Read the own list, chat and `/me`, and try to read another's conversation."""
        for path in (f"/pages/chat?c={self.shown['conversation']}", "/me"):
            answer = await self.http.get(self.url + path, headers={"Accept": "text/html"})
            text = answer.raise_for_status().text
            if self.marker not in text:
                raise RuntimeError(f"{self.name} does not see the own question in {path}")
            self.look(text)
        other = self.rng.choice(everybody)
        if other is not self and other.shown.get("conversation"):
            answer = await self.http.get(f"{self.url}/pages/chat?c={other.shown['conversation']}")
            self.counts.probes += 1
            self.counts.open_probes += answer.status_code != 404
            self.look(answer.text)


async def accounts(folder: Path, count: int) -> dict[str, str]:
    """Make accounts that have consented; return names by id. The password is hashed once: only checking is measured."""
    home = Home.find(folder)
    assistant = Assistant(home, Settings.load(home, auth="accounts"))
    password, made = PasswordHasher().hash(PASSWORD), {}
    for number in range(count):
        role = "operator" if number == 0 else "user"
        account = assistant.users.create(f"person{number}", role, COMMAND_LINE, password=password)
        allowed = {"keep_chats": True, "use_votes": True, "use_text": True}
        assistant.consents.give(account.id, **allowed, actor=COMMAND_LINE)
        made[account.id] = account.name
    await assistant.stop()
    return made


@asynccontextmanager
async def serving(folder: Path) -> AsyncIterator[tuple[str, int]]:
    """The address and process id of a server, which is stopped as an operator stops it."""
    command = [sys.executable, str(SERVER), str(folder)]
    process = subprocess.Popen(command, env=environment(None), stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        async with httpx.AsyncClient(timeout=WAIT, trust_env=False) as http:
            while (await http.get(f"{url}/health/ready")).status_code != 200:
                await asyncio.sleep(0.1)
        yield url, process.pid
        process.send_signal(signal.SIGTERM)
        if await asyncio.to_thread(process.wait, 60) not in (0, -signal.SIGTERM):
            raise RuntimeError(f"The server ended with status {process.returncode}.")
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


async def watch_memory(pid: int, counts: Counts) -> None:
    """Note the process's resident memory, until cancelled."""
    begun = time.monotonic()
    while True:
        pages_ = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        counts.memory.append((time.monotonic() - begun, pages_ * 4096))
        await asyncio.sleep(2)


async def team_at_work(folder: Path, args: argparse.Namespace, counts: Counts) -> float:
    """Everybody logs in, works and leaves; return the seconds of the logins."""
    count, seconds = (20, 40.0) if args.quick else (50, 600.0)
    made = await accounts(folder, count)
    rng = random.Random(args.seed)
    async with serving(folder) as (url, pid):
        people = [Person(url, id_, name, random.Random(rng.random()), counts) for id_, name in made.items()]
        begun = time.monotonic()
        await asyncio.gather(*(person.login() for person in people))
        logins = time.monotonic() - begun
        print(f"{count} logins took {logins:.1f} s", file=sys.stderr)
        await asyncio.gather(*(person.load() for person in people))
        watching = asyncio.create_task(watch_memory(pid, counts))
        until = time.monotonic() + seconds
        async with asyncio.TaskGroup() as group:
            for person in people:
                group.create_task(person.work(people, until))
        watching.cancel()
        with suppress(asyncio.CancelledError):
            await watching
        for person in people:
            await person.close()
            await person.http.aclose()
    return logins


def lost(folder: Path, votes: list[tuple[str, str, str]]) -> int:
    """How many acknowledged votes the database does not have as this account's."""
    query = "SELECT user_id, message_id, json_extract(value, '$.thumb') FROM feedback WHERE kind = 'thumb'"
    db = sqlite3.connect(Home.find(folder).database)
    stored = set(db.execute(query))
    db.close()
    return sum(vote not in stored for vote in votes)


def memory(counts: Counts, minute: int) -> float:
    """The mean of a minute, in MiB; the first minute is 1."""
    inside = [size for at, size in counts.memory if minute - 1 <= at / 60 < minute]
    return statistics.mean(inside) / 2**20


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Let the team work, and look at what it saw and what is stored."""
    counts = Counts()
    with tempfile.TemporaryDirectory() as home:
        logins = asyncio.run(team_at_work(Path(home), args, counts))
        missing = lost(Path(home), counts.votes)
    p95 = statistics.quantiles(counts.vote_seconds, n=20)[-1]
    sizes = {minute: memory(counts, minute) for minute in ((1,) if args.quick else (1, 3, 10))}
    figures = {
        "votes": len(counts.votes), "votes lost": missing, "texts looked at": counts.looks, "leaks": counts.leaks,
        "probes": counts.probes, "open probes": counts.open_probes, "logins, s": logins, "vote p95, s": p95,
        "vote median, s": statistics.median(counts.vote_seconds), "memory by minute, MiB": sizes,
        "memory at the end, MiB": counts.memory[-1][1] / 2**20,
    }  # fmt: skip
    print(figures, file=sys.stderr)
    versions = {name: importlib.metadata.version(name) for name in ("gradio", "uvicorn", "fastapi", "argon2-cffi")}
    about = {"model": "No model (a scripted engine, 20 words a second)", "seed": args.seed, "versions": versions}
    return about | {"figures": figures, "bars": bars(figures, args.quick)}


def bars(figures: dict[str, Any], quick: bool) -> list[dict[str, Any]]:
    """What must hold; memory needs the ten minutes."""
    found = [
        kept.bar("acknowledged votes", figures["votes"], ">=", 20),
        kept.bar("probes of others' conversations", figures["probes"], ">=", 10),
        kept.bar("votes lost", figures["votes lost"], "<=", 0),
        kept.bar("texts with another's marker", figures["leaks"], "<=", 0),
        kept.bar("probes not answered with 404", figures["open probes"], "<=", 0),
        kept.bar("p95 of a vote, seconds", figures["vote p95, s"], "<=", 0.3),
        kept.bar("seconds until all are logged in", figures["logins, s"], "<=", 60.0),
    ]
    if not quick:
        sizes = figures["memory by minute, MiB"]
        found.append(kept.bar("memory in minute 10 to that in minute 3", sizes[10] / sizes[3], "<=", 1.05))
    return found


def main() -> None:
    """Measure, print one JSON object, and exit 0 where every bar holds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0, help="of what people do (default 0)")
    parser.add_argument("--quick", action="store_true", help="20 people for 40 seconds; memory has no bar")
    args = parser.parse_args()
    kept.report("people", args, lambda: measure(args), [thumbwise, pages, feedback])


if __name__ == "__main__":
    main()

"""What a page costs the server: this build compared with one from before the pages had routes of their own.

    python tests/bench/page_cost.py [--before 7d0affc] [--quick]

An engine that writes 60 words at 20 a second. CPU is that of the server's process, from Enter to the last word of a
reply; loading the page is left out. Pages are sessions that send what a page's own script sends; one reply of each
build is asked for in Chromium too, to see that they cost the same. Then 50 pages that leave 10 s between replies, with
the time that `/health/live` takes meanwhile, and 50 pages that nobody uses against none. About eight minutes.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.metadata
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
sys.path.extend(map(str, (Path(__file__).parents[1] / "support").iterdir()))

import httpx
import kept
from build_at import build_at, environment
from chromium import ARGUMENTS, CHROMIUM
from page_parts.sessions import Queue, Routes, opened
from playwright.sync_api import expect, sync_playwright

import thumbwise
from thumbwise import feedback, pages

SERVER = Path(__file__).parent / "page_parts" / "server.py"
TICK = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Side:
    """A running build."""

    name: str
    url: str
    pid: int
    kind: type[Routes | Queue]

    def cpu(self) -> float:
        """Seconds of CPU that its process has taken."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICK


@contextmanager
def running(name: str, build: Path | None, kind: type[Routes | Queue]) -> Iterator[Side]:
    """Serve a build, with a home of its own, for as long as the block lasts."""
    with tempfile.TemporaryDirectory() as home:
        command = [sys.executable, str(SERVER), home]
        process = subprocess.Popen(command, env=environment(build), stdout=subprocess.PIPE, text=True)
        try:
            assert process.stdout is not None
            url = process.stdout.readline().strip()
            while httpx.get(f"{url}/health/ready", timeout=60, trust_env=False).status_code != 200:
                time.sleep(0.1)
            yield Side(name, url, process.pid, kind)
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


async def replies(side: Side, count: int) -> float:
    """Seconds of CPU of a reply, the mean of `count`; the first warms up."""
    async with opened(side.kind, side.url, 1) as (page,):
        await page.say("Warm up, please.")
        spent = []
        for number in range(count):
            before = side.cpu()
            await page.say(f"Question {number}?")
            spent.append(side.cpu() - before)
    return statistics.mean(spent)


def reply_in_chromium(side: Side, count: int) -> float:
    """The same, asked for in a real browser."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        page = browser.new_page()
        page.goto(f"{side.url}/?c=new")
        spent = []
        for number in range(count + 1):
            expect(page.locator("#tw-send")).to_be_enabled(timeout=60_000)
            page.fill("#tw-box textarea", f"Question {number}?")
            before = side.cpu()
            page.press("#tw-box textarea", "Enter")
            expect(page.get_by_test_id("bot")).to_have_count(number + 1, timeout=60_000)
            expect(page.locator("body")).to_have_attribute("data-state", "done", timeout=60_000)
            spent.append(side.cpu() - before)
        browser.close()
    return statistics.mean(spent[1:])


async def crowd(side: Side, count: int, seconds: float) -> dict[str, float]:
    """`count` pages with 10 s between replies: how long `/health/live` takes meanwhile, and the share of a core."""

    async def reader(page: Any, wait: float) -> None:
        await asyncio.sleep(wait)
        while True:
            await page.say("And then?")
            await asyncio.sleep(10)

    async with opened(side.kind, side.url, count) as pages:
        readers = [asyncio.create_task(reader(page, 13 * number / count)) for number, page in enumerate(pages)]
        await asyncio.sleep(min(13.0, seconds))  # until all have begun
        taken, before, begun = [], side.cpu(), time.monotonic()
        async with httpx.AsyncClient(timeout=120, trust_env=False) as http:
            while time.monotonic() - begun < seconds:
                asked = time.monotonic()
                await http.get(f"{side.url}/health/live")
                taken.append(time.monotonic() - asked)
                await asyncio.sleep(0.2)
        core = (side.cpu() - before) / (time.monotonic() - begun)
        failed = [task.exception() for task in readers if task.done()]
        for task in readers:
            task.cancel()
        await asyncio.wait(readers)
    if failed:
        raise RuntimeError(f"{len(failed)} of {count} pages of {side.name} gave up: {failed[0]!r}")
    return {"median": statistics.median(taken), "worst": max(taken), "cores": core}


async def idle(side: Side, count: int, seconds: float) -> float:
    """Seconds of CPU while `count` pages are looked at and not used."""
    async with opened(side.kind, side.url, count) as pages:
        looked = [asyncio.create_task(page.idle()) for page in pages]
        await asyncio.sleep(1)
        before = side.cpu()
        await asyncio.sleep(seconds)
        spent = side.cpu() - before
        for task in looked:
            task.cancel()
        if looked:
            await asyncio.wait(looked)
    return spent


async def all_idle(sides: list[Side], count: int, seconds: float) -> dict[str, float]:
    """What idle pages cost each side, without what a server costs that has none; CPU does not mind the company."""
    none = await asyncio.gather(*(idle(side, 0, seconds) for side in sides))
    some = await asyncio.gather(*(idle(side, count, seconds) for side in sides))
    return {side.name: more - less for side, less, more in zip(sides, none, some, strict=True)}


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Both sides of everything."""
    count, readers, seconds, resting = (2, 4, 4.0, 10.0) if args.quick else (10, 50, 60.0, 120.0)
    with running("now", None, Routes) as now, running("before", build_at(args.before), Queue) as before:
        sides = [now, before]
        reply = {side.name: asyncio.run(replies(side, count)) for side in sides}
        print("CPU of a reply", reply, file=sys.stderr)
        real = {side.name: reply_in_chromium(side, count // 2) for side in sides}
        print("in Chromium", real, file=sys.stderr)
        idling = asyncio.run(all_idle(sides, readers, resting))
        print("idle", idling, file=sys.stderr)
        crowded = {side.name: asyncio.run(crowd(side, readers, seconds)) for side in sides}
        print("crowd", crowded, file=sys.stderr)
    figures = {"CPU of a reply, s": reply, "in Chromium, s": real, "CPU of idle pages, s": idling, "readers": crowded}
    versions = {name: importlib.metadata.version(name) for name in ("gradio", "uvicorn", "fastapi")}
    about = {"model": "No model (a scripted engine, 20 words a second)", "versions": versions}
    return about | {"figures": figures, "bars": [] if args.quick else bars(figures, readers)}


def bars(figures: dict[str, Any], readers: int) -> list[dict[str, Any]]:
    """What must hold; few pages and seconds are too little to divide by."""
    reply, real, idling, crowded = figures.values()
    return [
        kept.bar("CPU of a reply, this build to the one before", reply["now"] / reply["before"], "<=", 0.1),
        kept.bar("CPU of idle pages, this build to the one before", idling["now"] / idling["before"], "<=", 0.1),
        kept.bar(f"/health/live with {readers} readers, median seconds", crowded["now"]["median"], "<=", 0.1),
        kept.bar("CPU of a reply in Chromium to that of a session", real["now"] / reply["now"], "<=", 2.0),
    ]


def main() -> None:
    """Measure, print one JSON object, and exit 0 where every bar holds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--before", default="7d0affc", help="the older commit")
    parser.add_argument("--quick", action="store_true", help="few pages and seconds, mechanics only")
    args = parser.parse_args()
    kept.report("page_cost", args, lambda: measure(args), [thumbwise, pages, feedback])


if __name__ == "__main__":
    main()

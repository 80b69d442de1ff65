"""A real Chromium against a whole assistant, mostly with a scripted engine; no test waits a fixed time.

Pages say what state they are in (`<body data-state>`), and the engine writes only as far as a test lets it.
Every page of every test fails it if it asks another host for anything, opens a dialog or raises a script error.
With SHOTS=folder in the environment, `picture` keeps PNGs of what the tests see there.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from fakes import FakeEngine, FakeEngineClient
from fastapi import FastAPI
from playwright.sync_api import Browser, Page, expect

from thumbwise.contracts import Message
from thumbwise.engine.client import Chunk, Sampling
from thumbwise.serving.assistant import Assistant

CHROMIUM = "/usr/bin/chromium"
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
DESKTOP = {"width": 1280, "height": 800}
PHONE = {"width": 390, "height": 844}


class Writer(FakeEngineClient):
    """Writes `words`; where `hold` is set, every reply waits after that many until it is None again."""

    hold: int | None = None

    async def chat(self, model: str, messages: Sequence[Message], sampling: Sampling) -> AsyncGenerator[Chunk, None]:
        written = 0
        async for chunk in super().chat(model, messages, sampling):
            while self.hold is not None and written >= self.hold:
                await asyncio.sleep(0.01)
            written += 1
            yield chunk


@dataclass
class Pages:
    """Pages that look at the assistant at `url`, wherever it runs."""

    url: str
    browser: Browser
    faults: list[str] = field(default_factory=list)
    pages: list[Page] = field(default_factory=list)
    provider: str = ""
    """Address of a login provider that pages may go to; what its own pages load is not our fault."""

    def open(self, path: str = "/", state: str | None = "idle", **context: Any) -> Page:
        """Open a page of its own context and wait until it says `state`."""
        options = {"viewport": DESKTOP, "locale": "en-US", **context}
        page = self.browser.new_context(**options).new_page()
        page.set_default_timeout(8_000)
        page.on("dialog", lambda dialog: (self.faults.append(f"dialog {dialog.message}"), dialog.dismiss()))
        page.on("pageerror", lambda error: self.faults.append(f"script error {error}"))
        page.on("request", lambda request: self._check_host(request.url, request.headers.get("referer", "")))
        page.goto(self.url + path)
        self.pages.append(page)
        if state is not None:
            self.wait(page, state)
        return page

    def _check_host(self, url: str, referrer: str) -> None:
        theirs = self.provider and f"{self.provider}/" in (url[: len(self.provider) + 1], referrer)
        if not theirs and not url.startswith((self.url + "/", "data:", "blob:")):
            self.faults.append(f"request to {url}")

    def wait(self, page: Page, state: str) -> None:
        """Wait until the page is in `state`."""
        expect(page.locator("body")).to_have_attribute("data-state", state, timeout=8_000)

    def say(self, page: Page, text: str, state: str = "done") -> None:
        """Type a message, press Enter, and wait until the page is in `state`."""
        before = page.locator("#tw-chat .tw-reply").count()
        page.fill("#tw-box textarea", text)
        page.press("#tw-box textarea", "Enter")
        expect(page.locator("#tw-chat .tw-reply")).to_have_count(before + 1)
        self.wait(page, state)

    def close(self) -> None:
        """Close every page; raises where one of them did what no page may do."""
        for page in self.pages:
            page.context.close()
        assert self.faults == []


@dataclass(kw_only=True)
class Site(Pages):
    """A running assistant, its scripted engine, and pages that look at it."""

    assistant: Assistant
    engine: FakeEngine
    writer: Writer
    app: FastAPI

    def rows(self, sql: str) -> list[dict[str, Any]]:
        """Rows of the assistant's database."""
        return self.assistant.store.rows(sql)

    def votes(self) -> list[tuple[str, str]]:
        """(kind, value as JSON) of every feedback row, oldest first."""
        return [(row["kind"], row["value"]) for row in self.rows("SELECT * FROM feedback ORDER BY seq")]


def picture(page: Page, name: str) -> None:
    """Write what the page shows to `name`.png in the folder that SHOTS names, if it names one."""
    if folder := os.environ.get("SHOTS"):
        Path(folder).mkdir(parents=True, exist_ok=True)
        page.screenshot(path=Path(folder) / f"{name}.png", animations="disabled")


def forge(page: Page, path: str, body: Any) -> httpx.Response:
    """Post to a route of the pages as their own script would, with contents of our choice."""
    return httpx.post(page.evaluate("location.origin") + "/pages" + path, json=body)


async def nothing() -> None:
    """Stands in for the start of a real engine."""

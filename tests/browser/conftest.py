"""Chromium once a file, a fresh assistant for every test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from chromium import ARGUMENTS, CHROMIUM, Site, Writer, nothing
from fakes import FakeEngine
from live_server import serving
from playwright.sync_api import Browser, sync_playwright

from thumbwise.home import Home
from thumbwise.serving.assistant import Assistant


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def site(browser: Browser, tmp_path: Path) -> Iterator[Site]:
    writer = Writer(["Hello", " there", ", *friend*", "."])
    engine = FakeEngine(writer)

    def prepare(assistant: Assistant) -> None:
        assistant.engine = engine  # type: ignore[assignment]
        assistant.start = nothing  # type: ignore[method-assign]

    with serving(Home.find(tmp_path), prepare=prepare) as live:
        site = Site(live.url, browser, assistant=live.assistant, engine=engine, writer=writer, app=live.app)
        yield site
        site.close()

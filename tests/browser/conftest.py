"""Chromium once a file, a fresh assistant for every test."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

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
    with opened(browser, tmp_path) as site:
        yield site


@pytest.fixture
def team_site(browser: Browser, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Site]:
    """The same with accounts; `@pytest.mark.parametrize("team_site", [settings], indirect=True)` adds settings."""
    with opened(browser, tmp_path, auth="accounts", **getattr(request, "param", {})) as site:
        yield site


@contextmanager
def opened(browser: Browser, folder: Path, **settings: Any) -> Iterator[Site]:
    writer = Writer(["Hello", " there", ", *friend*", "."])
    engine = FakeEngine(writer)

    def prepare(assistant: Assistant) -> None:
        assistant.engine = engine  # type: ignore[assignment]
        assistant.start = nothing  # type: ignore[method-assign]

    with serving(Home.find(folder), prepare=prepare, **settings) as live:
        site = Site(live.url, browser, assistant=live.assistant, engine=engine, writer=writer, app=live.app)
        yield site
        site.close()

"""The documentation site in Chromium: it asks nobody else, fits a phone, and is light or dark."""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import docs_site
import pytest
from chromium import DESKTOP, PHONE, Pages, picture
from playwright.sync_api import Browser

pytestmark = pytest.mark.browser

PAGES = ("index.html", "docs/api.html", "docs/glossary.html", "training/index.html")


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def pages(browser: Browser) -> Iterator[Pages]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(docs_site.built())))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    pages = Pages(f"http://127.0.0.1:{server.server_port}", browser)
    yield pages
    pages.close()  # raises where a page asked another host for anything
    server.shutdown()


@pytest.mark.parametrize("name", PAGES)
def test_a_page_fits_its_screen_and_is_light_or_dark(pages: Pages, name: str) -> None:
    for screen, viewport in (("desktop", DESKTOP), ("phone", PHONE)):
        backgrounds = []
        for scheme in ("light", "dark"):
            page = pages.open(f"/{name}", state=None, viewport=viewport, color_scheme=scheme)
            page.wait_for_load_state("networkidle")
            assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]
            backgrounds.append(page.evaluate("getComputedStyle(document.body).backgroundColor"))
            picture(page, f"site-{name.replace('/', '-')}-{screen}-{scheme}")
        assert backgrounds[0] != backgrounds[1]

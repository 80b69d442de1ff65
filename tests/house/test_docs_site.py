"""The documentation site: every page is there, says what a Markdown viewer says, and loads nothing from elsewhere."""

from __future__ import annotations

import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import docs_site
import pytest
from markdown_it import MarkdownIt

OTHER_HOST = re.compile(r"^\s*(?:[a-z]+:)?//", re.IGNORECASE)
IN_CSS = re.compile(r"(?:url\(|@import)\s*['\"]?([^'\")\s;]+)")
LOADS = {"stylesheet", "icon", "preload", "modulepreload", "preconnect", "dns-prefetch", "prefetch", "manifest"}


class Tags(HTMLParser):
    """What a page loads, what it links to, and how many blocks of each kind its text has."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.links: list[str] = []
        self.blocks: Counter[str] = Counter()
        self.depth = 0  # in the page's text
        self.feed(page.read_text())

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attributes}
        if "src" in given:
            self.loaded.append(given["src"])
        if tag == "link" and LOADS & set(given.get("rel", "").split()):
            self.loaded.append(given["href"])
        if tag == "a":
            self.links.append(given.get("href", ""))
        if tag == "article":
            self.depth += 1
        if self.depth and tag in {"h1", "h2", "h3", "h4", "pre", "table", "li", "img"}:
            self.blocks[tag] += 1

    def handle_endtag(self, tag: str) -> None:
        if tag == "article":
            self.depth -= 1


def test_no_page_loads_anything_from_another_host() -> None:
    pages = list(docs_site.built().rglob("*.html"))
    loaded = {url for page in pages for url in Tags(page).loaded}
    styles = {url for style in docs_site.built().rglob("*.css") for url in IN_CSS.findall(style.read_text())}
    assert any(url.endswith(".js") for url in loaded)
    assert any(url.endswith(".css") for url in loaded)
    assert [url for url in loaded | styles if OTHER_HOST.match(url) and not url.startswith("data:")] == []


def test_every_page_is_in_the_navigation() -> None:
    start = docs_site.built() / "index.html"
    linked = {(start.parent / url.split("#")[0]).resolve() for url in Tags(start).links if not OTHER_HOST.match(url)}
    assert [str(name) for name, page in docs_site.pages().items() if page.resolve() not in linked] == []


def test_a_page_has_the_blocks_that_a_markdown_viewer_shows() -> None:
    """The site's Markdown wants an empty line before a list, and four spaces before what belongs to an item."""
    viewer = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    for name, page in docs_site.pages().items():
        if name == Path("docs/api.md"):  # all of it is made from docstrings
            continue
        tokens = viewer.parse((docs_site.ROOT / name).read_text())
        named = Counter(token.tag for token in tokens if token.nesting == 1)
        named["pre"] = sum(token.type in {"fence", "code_block"} for token in tokens)
        shown = Tags(page).blocks
        for block in ("h1", "h2", "h3", "pre", "table", "li"):
            assert shown[block] == named[block], f"{name}: {block} (lists: see above)"


def test_the_reference_has_every_hook_and_contract() -> None:
    shown = (docs_site.built() / "docs" / "api.html").read_text()
    for module in ("hookspecs", "contracts", "backbone"):
        source = (docs_site.ROOT / "assistant" / f"{module}.py").read_text()
        names = re.findall(r"^(?:class|def) (\w+)", source, re.MULTILINE)
        assert len(names) > 5
        for name in names:
            assert f'id="thumbwise.{module}.{name}"' in shown


@pytest.mark.parametrize(
    "links", [("docs/nowhere.md", "docs/settings.md#nowhere"), ("assistant/nowhere.py", "assistant/")], ids=str
)
def test_a_broken_link_ends_the_build(links: tuple[str, ...], tmp_path: Path) -> None:
    source = docs_site.copy(tmp_path)
    readme = source / "README.md"
    readme.write_text("\n\n".join([readme.read_text(), *(f"[broken]({link})" for link in links)]))
    status, said = docs_site.build(source)
    assert status != 0
    assert [link for link in links if link not in said] == []

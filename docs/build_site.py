"""Build the documentation site into site/ (`make docs-site`): zensical.toml has the settings, .nav.yml the navigation.

The API reference is read from source text and imports nothing. Its reader finds a package by the name of its folder,
but `thumbwise` lies in `assistant/`: the few modules that it shows are copied to build/reference/thumbwise first.
Zensical checks links to pages and anchors. It does not check links to other files, so this does.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

ROOT = Path(__file__).resolve().parents[1]
SHOWN = ("__init__.py", "backbone.py", "contracts.py", "hookspecs.py")


class Links(HTMLParser):
    """The addresses that a page names."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(page.read_text())

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        """Keep what one tag links to or loads."""
        self.found += [value for name, value in attributes if name in {"href", "src"} and value]


def build(root: Path) -> list[str]:
    """Build the site of the repository at `root`; return what is wrong with it."""
    reference = root / "build" / "reference" / "thumbwise"
    reference.mkdir(parents=True, exist_ok=True)
    for name in SHOWN:
        shutil.copy(root / "assistant" / name, reference / name)
    shutil.rmtree(root / "site", ignore_errors=True)  # a page that was moved would stay at its old place
    config = str(root / "zensical.toml")
    command = [sys.executable, "-m", "zensical", "build", "--clean", "--config-file", config]
    if subprocess.run(command, check=False).returncode:
        return ["not built"]
    return list(missing(root / "site"))


def missing(site: Path) -> Iterator[str]:
    """Yield every link of a page to a file that is not there."""
    for page in sorted(site.rglob("*.html")):
        for link in Links(page).found if page.name != "404.html" else ():  # that page is shown at any address
            parts = urlsplit(link)
            if parts.scheme or parts.netloc or not parts.path:
                continue
            if not (page.parent / unquote(parts.path)).is_file():
                yield f"{page.relative_to(site)}: {link} does not exist"


if __name__ == "__main__":
    if wrong := build(ROOT):
        sys.exit("\n".join(wrong))
    print(f"Open {ROOT / 'site' / 'index.html'}, or with search: {sys.executable} -m http.server --directory site")

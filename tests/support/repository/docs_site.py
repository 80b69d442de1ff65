"""The documentation site, built once a test run from a copy of the repository."""

from __future__ import annotations

import functools
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[3]
PAGES_OF = ("assistant", "deploy", "docs", "feedback", "findings", "plugins", "tests", "training")
COLOUR = re.compile(r"\x1b\[[0-9;]*m")


def copy(into: Path) -> Path:
    """Copy what the site is made of, so that a build leaves nothing in the repository."""
    ignore = shutil.ignore_patterns("__pycache__", "node_modules")
    for folder in PAGES_OF:
        shutil.copytree(ROOT / folder, into / folder, ignore=ignore)
    for path in (*ROOT.glob("*.md"), ROOT / "zensical.toml", ROOT / ".nav.yml"):
        shutil.copy(path, into)
    return into


def build(source: Path) -> tuple[int, str]:
    """Build the site of a copy; return the exit status and what was said."""
    done = subprocess.run(
        [sys.executable, source / "docs" / "build_site.py"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return done.returncode, COLOUR.sub("", done.stdout)


@functools.cache
def built() -> Path:
    """Return the folder of the built site."""
    source = copy(Path(tempfile.mkdtemp(prefix="thumbwise-site-")))
    status, said = build(source)
    assert status == 0, said
    return source / "site"


def pages() -> dict[Path, Path]:
    """Return every Markdown page of the repository, by path from its root, with its page of the site."""
    sources = [path for folder in PAGES_OF for path in (ROOT / folder).rglob("*.md")]
    found = {}
    for path in sorted([*ROOT.glob("*.md"), *sources]):
        name = path.relative_to(ROOT)
        page = name.with_name("index.html") if name.name == "README.md" else name.with_suffix(".html")
        found[name] = built() / page
    return found

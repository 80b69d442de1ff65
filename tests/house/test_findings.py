"""The scripts of findings/ have their form, and what its README names exists.

The scripts are not run here: they download packages.
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "findings"
SCRIPTS = sorted(FOLDER.glob("*.sh"))
README = (FOLDER / "README.md").read_text()
PATH = re.compile(r"`([\w./-]+/[\w./-]*)`")


def rows(part: str) -> list[str]:
    """The rows of the table under the heading `part`."""
    lines = README.split(f"\n## {part}\n")[1].partition("\n## ")[0].splitlines()
    return [line for line in lines if line.startswith("| ")][1:]  # the first has the columns' names


def test_the_first_table_has_each_script_once() -> None:
    named = [re.match(r"\| `([\w.]+)` \|", row) for row in rows("Scripts")]
    assert all(named)
    assert sorted(found[1] for found in named if found) == [script.name for script in SCRIPTS]
    assert len(SCRIPTS) >= 8


@pytest.mark.parametrize("part", ["Scripts", "In words"])
def test_each_row_names_code_or_a_setting_and_a_test(part: str) -> None:
    for row in rows(part):
        named = PATH.findall(row)
        assert any(path.startswith("tests/") for path in named), row
        assert [path for path in named if not (ROOT / path).exists()] == [], row
    assert len(rows(part)) >= 8


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_a_script_says_what_it_shows_and_leaves_nothing_behind(script: Path) -> None:
    text = script.read_text()
    lines = text.splitlines()
    head = "\n".join(line for line in lines[: lines.index("set -euo pipefail")])
    assert os.access(script, os.X_OK)
    assert subprocess.run(["bash", "-n", script], check=False).returncode == 0
    for says in ("\n# Wanted: ", "\n# Seen", "\n# Exits 0 while "):
        assert says in head
    for version in re.findall(r"\d+\.\d+\.\d+", lines[1]):
        assert f"=={version}" in text, f"{version} is in the first line and not installed"
    assert re.search(r"[\w-]+==\d+\.\d+", text)
    assert "folder=$(mktemp -d)\ntrap 'rm -rf \"$folder\"' EXIT\n" in text
    assert "thumbwise" not in text.lower()
    assert max(len(line) for line in lines) <= 120


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_the_python_in_a_script_can_be_parsed(script: Path) -> None:
    parts = re.findall(r"<<'PY'\n(.*?)\nPY\n", script.read_text() + "\n", re.DOTALL)
    parts += re.findall(r"\ncode='(.*?)'\n", script.read_text(), re.DOTALL)
    assert parts
    for part in parts:
        ast.parse(part)

"""CONTRIBUTING.md: every file and function that it names exists, and its rooms are those of the import contract."""

from __future__ import annotations

import ast
import re
import tomllib

import packaged
import pytest

ROOT = packaged.ROOT
PAGE = (ROOT / "CONTRIBUTING.md").read_text()
NAMED = re.findall(r"`((?:assistant|feedback|plugins|training|tests)/[\w/]+\.py)`(?: \| |, )`([A-Za-z_.]+)`", PAGE)


def names(path: str) -> set[str]:
    """Functions, classes and methods (`Class.method`) that the file defines, and its constants."""
    found: set[str] = set()
    for node in ast.parse((ROOT / path).read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            found |= {
                f"{node.name}.{m.name}" for m in node.body if isinstance(m, ast.FunctionDef | ast.AsyncFunctionDef)
            }
    return found


@pytest.mark.parametrize(("path", "name"), sorted(set(NAMED)))
def test_what_it_names_is_there(path: str, name: str) -> None:
    assert name in names(path)


def test_both_walks_name_a_function_at_every_step() -> None:
    for title, least in (("## Walk 1", 10), ("## Walk 2", 10)):
        walk = PAGE.partition(title)[2].partition("\n## ")[0]
        rows = [row for row in walk.splitlines() if row.startswith("| ") and "---" not in row][1:]
        assert len(rows) >= least
        assert all(re.search(r"\| `[\w/]+\.py` \| `[\w.]+` \|$", row) for row in rows)


def test_every_path_that_it_names_is_there() -> None:
    paths = set(re.findall(r"`((?:assistant|feedback|plugins|training|tests)/[\w/.]*)`", PAGE))
    assert len(paths) > 30
    assert [path for path in sorted(paths) if not (ROOT / path).exists()] == []


def test_its_rooms_stand_in_the_order_of_the_import_contract() -> None:
    contract = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"][0]
    floors = [re.findall(r"thumbwise\.([\w.]+)", floor) for floor in contract["layers"]]
    told = [re.findall(r"`([a-z_.]+)`", row.split(" | ")[0]) for row in PAGE.splitlines() if row.startswith("| `")]
    rooms = [row for row in told if row and not row[0].endswith(".py")]
    ground = {"settings", "system", "backbone"}
    ours = [path for folder in packaged.FOLDERS for path in (ROOT / folder).rglob("__init__.py")]
    in_folders = {path.parent.name for path in ours} - ground
    assert rooms == [floor for floor in floors if floor[0].split(".")[-1] in in_folders or floor == ["web"]]

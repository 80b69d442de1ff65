"""The rooms of the code: none is crowded, each has its floor in the import contract and says what it is for."""

from __future__ import annotations

import re
import tomllib
from collections import Counter

import packaged

ROOT = packaged.ROOT
MODULES = 14
FOLDERS = ("assistant", "feedback", "plugins", "tests", "training")


def test_no_folder_has_too_many_modules_of_its_own() -> None:
    files = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py") if path.name != "__init__.py"]
    counts = Counter(str(path.parent.relative_to(ROOT)) for path in files)
    assert len(counts) > 30
    assert {folder: count for folder, count in counts.items() if count > MODULES} == {}


def test_every_package_and_module_of_the_ground_floor_is_named_once_in_the_import_contract() -> None:
    """`thumbwise` and `thumbwise.training` are named by what is in them."""
    contract = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"][0]
    named = re.findall(r"thumbwise\.[\w.]+", " ".join(contract["layers"]))
    rooms = set()
    for module in packaged.modules():
        depth = 3 if module.startswith("thumbwise.training") else 2
        rooms.add(".".join(module.split(".")[:depth]))
    assert sorted(named) == sorted(rooms - {"thumbwise", "thumbwise.training"})


def test_every_package_says_what_it_is_for() -> None:
    packages = [path.parent for folder in FOLDERS for path in (ROOT / folder).rglob("__init__.py")]
    packages = [folder for folder in packages if "tests" not in folder.relative_to(ROOT).parts]
    assert len(packages) > 20
    assert [str(folder.relative_to(ROOT)) for folder in packages if not (folder / "README.md").is_file()] == []

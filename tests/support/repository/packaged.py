"""The wheel as users get it, built once a test run from a copy of the source tree."""

from __future__ import annotations

import functools
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[3]
FOLDERS = {"assistant": "thumbwise", "plugins": "plugins", "feedback": "feedback", "training": "training"}


@functools.cache
def wheel() -> Path:
    """Build the wheel (offline, with this environment's setuptools) and return its path."""
    work = Path(tempfile.mkdtemp(prefix="thumbwise-wheel-"))
    source = work / "source"  # a copy, because setuptools leaves a build/ whose stale files enter the next wheel
    source.mkdir()
    for path in (*FOLDERS, "pyproject.toml", "README.md", "LICENSE"):
        whole = ROOT / path
        if whole.is_dir():
            shutil.copytree(whole, source / path, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(whole, source / path)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*command, "--wheel-dir", work, source], check=True)
    (built,) = work.glob("*.whl")
    return built


def files() -> list[str]:
    """Return the names in the wheel."""
    with zipfile.ZipFile(wheel()) as archive:
        return archive.namelist()


def modules() -> list[str]:
    """Return the dotted names of all modules in the wheel."""
    names = [name.removesuffix(".py").replace("/", ".") for name in files() if name.endswith(".py")]
    return sorted(name.removesuffix(".__init__") for name in names)


def unpacked() -> Path:
    """Return a folder with the wheel's content."""
    folder = wheel().parent / "unpacked"
    if not folder.exists():
        with zipfile.ZipFile(wheel()) as archive:
            archive.extractall(folder)
    return folder

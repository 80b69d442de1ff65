"""What `make lint` checks, as tests. Docstrings are ruff's D1, bare folder imports its TID251."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import packaged

ROOT = Path(__file__).parents[2]


def run(*command: str, **environment: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=ROOT,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout


def test_ruff_finds_nothing() -> None:
    status, said = run("ruff", "check", "--output-format", "concise", ".")
    assert status == 0, said


def test_the_format_is_ruffs() -> None:
    status, said = run("ruff", "format", "--check", ".")
    assert status == 0, said


def test_mypy_finds_nothing_in_the_wheel() -> None:
    status, said = run("mypy", "-p", "thumbwise", MYPYPATH=str(packaged.unpacked()))
    assert status == 0, said
    assert f"no issues found in {len(packaged.modules())} source files" in said


def test_no_room_imports_from_a_room_above_it_and_nothing_goes_in_a_circle() -> None:
    """In the wheel, because there the four folders are one package."""
    command = [Path(sys.executable).with_name("lint-imports"), "--no-cache"]
    environment = {**os.environ, "PYTHONPATH": str(packaged.unpacked())}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Contracts: 2 kept, 0 broken" in done.stdout

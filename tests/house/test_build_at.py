"""An older commit beside the present one: its own package, found before the installed one."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "bench"))

from build_at import ROOT, environment

BENCH = ROOT / "tests" / "bench"
LOOK = "import thumbwise, thumbwise.feedback; print(thumbwise.__file__); print(thumbwise.feedback.__file__)"


def git(folder: Path, *arguments: str | Path) -> str:
    done = subprocess.run(["git", "-C", folder, *arguments], stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("this is no git checkout")
    git(tmp_path, "clone", "--quiet", "--no-tags", "--depth", "1", ROOT.as_uri(), tmp_path / "clone")
    shutil.copy(BENCH / "build_at.py", tmp_path / "clone/tests/bench/build_at.py")  # as it is now, committed or not
    return tmp_path / "clone"


def run(clone: Path, ref: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, clone / "tests/bench/build_at.py", ref]
    cache = environment(None) | {"XDG_CACHE_HOME": str(clone.parent / "cache")}
    return subprocess.run(command, env=cache, capture_output=True, text=True, check=False)


def test_a_commit_of_a_clone_is_installed_once_and_runs_in_its_own_process(clone: Path) -> None:
    first = run(clone, "HEAD")
    folder = Path(first.stdout.strip())
    assert folder.name.startswith(git(clone, "rev-parse", "HEAD")[:12]), first.stderr
    command = [sys.executable, "-c", LOOK]
    said = subprocess.run(command, env=environment(folder), stdout=subprocess.PIPE, text=True, check=True).stdout
    assert all(Path(line).is_relative_to(folder) for line in said.splitlines())
    made = folder.stat().st_ctime_ns
    assert run(clone, "HEAD").stdout == first.stdout
    assert folder.stat().st_ctime_ns == made


def test_a_commit_that_is_not_there_is_a_sentence(clone: Path) -> None:
    done = run(clone, "0" * 40)
    assert (done.returncode, done.stdout) == (1, "")
    assert "git fetch --unshallow" in done.stderr
    assert "Traceback" not in done.stderr

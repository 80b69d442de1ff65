"""An older commit beside the present one: its own package, found before the installed one."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import httpx
import pytest

import thumbwise

sys.path.insert(0, str(Path(__file__).parents[1] / "bench"))

from any_build import either
from build_at import ROOT, build_at, environment, file_at

OLD = "6ee6c8d"
"""The last commit before the modules were moved."""
WORLD = ("tests/support/models/training_world.py", "tests/training_world.py")
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


# --- scripts that run under both builds ------------------------------------------------------------------


@pytest.fixture(scope="module", params=["now", OLD])
def build(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path | None:
    if request.param == "now":
        return None
    known = ["git", "-C", ROOT, "cat-file", "-e", f"{OLD}^{{commit}}"]
    if shutil.which("git") is None or subprocess.run(known, check=False, capture_output=True).returncode:
        pytest.skip(f"the commit {OLD} is not in this checkout (shallow, or no git)")
    return build_at(OLD, tmp_path_factory.mktemp("builds"))


@pytest.fixture
def sides(build: Path | None, tmp_path: Path) -> dict[str, str]:
    """The environment of a script of that build, with its `training_world`."""
    found = environment(build)
    support = os.pathsep.join(str(ROOT / "tests" / "support" / name) for name in ("models", "servers"))
    if build is not None:
        (tmp_path / "training_world.py").write_bytes(file_at(OLD, *WORLD))
        support = str(tmp_path)
    return found | {"PYTHONPATH": os.pathsep.join(filter(None, [found.get("PYTHONPATH"), support]))}


@pytest.mark.slow
def test_scripts_find_their_modules_in_both_builds(build: Path | None, sides: dict[str, str]) -> None:
    code = "import runpy, sys, thumbwise\nfor path in sys.argv[1:]:\n    runpy.run_path(path)\n"
    code += "print(thumbwise.__file__)"
    scripts = [*BENCH.rglob("side.py"), BENCH / "training" / "sybil_parts" / "fit.py"]
    assert len(scripts) == 3
    command = [sys.executable, "-c", code, *scripts]
    done = subprocess.run(command, env=sides, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).is_relative_to(build or ROOT)


@pytest.mark.slow
def test_a_large_home_is_made_in_both_builds(sides: dict[str, str], tmp_path: Path) -> None:
    command = [sys.executable, BENCH / "large_home.py", tmp_path / "home", "--replies", "60", "--votes", "60"]
    subprocess.run(command, env=sides, check=True, stdout=subprocess.DEVNULL)
    with closing(sqlite3.connect(tmp_path / "home" / "feedback.db")) as db:
        assert db.execute("SELECT count(*) >= 60 FROM replies").fetchone() == (1,)


@pytest.mark.slow
@pytest.mark.parametrize(
    "script", [("page_parts/server.py",), ("gateway_parts/servers.py", "assistant")], ids=lambda script: script[0]
)
def test_an_assistant_is_served_in_both_builds(script: tuple[str, ...], sides: dict[str, str], tmp_path: Path) -> None:
    command = [sys.executable, BENCH / script[0], *script[1:], tmp_path / "home", tmp_path / "engine.sock"]
    with subprocess.Popen(command, env=sides, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().strip()
            assert httpx.get(f"{url}/health/ready", timeout=120, trust_env=False).status_code == 200
        finally:
            process.kill()


def test_the_name_that_a_build_has_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a build in one folder: there, what is imported may come from this checkout."""
    assert either("home", "old_home").__name__ == "thumbwise.home"
    (tmp_path / "training").mkdir()
    (tmp_path / "errors.py").touch()
    monkeypatch.setattr(thumbwise, "__file__", str(tmp_path / "__init__.py"))
    assert either("home", "errors").__name__ == "thumbwise.errors"
    with pytest.raises(ModuleNotFoundError, match=r"none of home, engine\.client"):
        either("home", "engine.client")

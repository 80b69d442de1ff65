"""Install a commit beside the present one, for measurements that have this build and an older one side by side.

    python tests/bench/build_at.py 7d0affc

Prints the folder. Each side runs in a process of its own, the older one with that folder as its PYTHONPATH
(`environment`): it is found before the installed package. Its dependencies are those of this environment. A commit is
installed once and found again; the folder may be deleted. Works in any clone that has the commit.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tarfile
import tempfile
from contextlib import suppress
from io import BytesIO
from pathlib import Path

import platformdirs

ROOT = Path(__file__).parents[2]
BUILDS = Path(platformdirs.user_cache_dir("thumbwise", False)) / "builds"


def build_at(ref: str, builds: Path = BUILDS) -> Path:
    """The folder with the package as it was at `ref` (a commit, tag or branch); ends the program where there is none.

    Only what is committed counts.
    """
    commit = _git("rev-parse", "--verify", "--quiet", f"{ref}^{{commit}}").decode().strip()
    if not commit:
        sys.exit(f"There is no commit {ref} in {ROOT}: in a shallow clone, `git fetch --unshallow` brings it.")
    folder = builds / f"{commit[:12]}-{sys.implementation.cache_tag}"
    if folder.exists():
        return folder
    builds.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=builds, prefix=".making-") as work:
        source, made = Path(work) / "source", Path(work) / "made"
        with tarfile.open(fileobj=BytesIO(_git("archive", "--format=tar", commit))) as archive:
            archive.extractall(source, filter="data")
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
        # setuptools of this environment: an isolated one would have to be downloaded.
        command = [*pip, "--no-build-isolation", "--no-index", "--target", made, source]
        subprocess.run(command, check=True, stdout=sys.stderr)
        with suppress(OSError):  # somebody else made it meanwhile
            made.rename(folder)
    return folder


def file_at(ref: str, *paths: str) -> bytes:
    """The first of the files `paths` that is there at `ref`: files were moved since."""
    for path in paths:
        if found := _git("show", f"{ref}:{path}"):
            return found
    sys.exit(f"There is none of {', '.join(paths)} at {ref}.")


def environment(folder: Path | None) -> dict[str, str]:
    """The environment of a process that runs the build in `folder`, or the installed one; no THUMBWISE_ settings."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("THUMBWISE_") and key != "PYTHONPATH"}
    return kept if folder is None else kept | {"PYTHONPATH": str(folder)}


def _git(*arguments: str) -> bytes:
    """What git says in this checkout; nothing where it fails."""
    return subprocess.run(["git", "-C", ROOT, *arguments], stdout=subprocess.PIPE, check=False).stdout


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ref", help="a commit, tag or branch")
    print(build_at(parser.parse_args().ref))

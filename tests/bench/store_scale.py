"""A store with years of conversations: statistics, a snapshot and the pages' queries, while people vote.

    python tests/bench/store_scale.py [--replies 200000] [--votes 200000] [--quick]

This build and the one before long reads had connections of their own (`OLD`), side by side on the same home, which the
old build's own migrations make (`large_home.py`) and this one brings up to date. Each measurement has a process of its
own, and what takes longer than a minute is stopped. Bars: the 99th percentile of a vote beside each of them is under
50 ms, or three times that of a vote alone; the memory that a snapshot takes is at most a tenth of the old one's.
About six minutes.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import kept
from build_at import build_at, environment

from thumbwise import feedback

OLD = "7d0affc"
HERE = Path(__file__).parent
ITEMS = ("people", "snapshot", "pages")
LIMIT = 60.0
"""Seconds after which something is stopped."""
VOTE_MS, TIMES_IDLE, MEMORY = 50.0, 3.0, 0.1


def run(build: Path | None, script: str, *arguments: object) -> str:
    """What a script of ours prints under a build, in a process of its own."""
    command = [sys.executable, str(HERE / script), *map(str, arguments)]
    return subprocess.run(command, env=environment(build), stdout=subprocess.PIPE, text=True, check=True).stdout


def measure(args: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Every item under both builds."""
    old = build_at(OLD)
    homes = {"old": work / "old", "now": work / "now"}
    made = run(
        old, "large_home.py", homes["old"], "--replies", args.replies, "--votes", args.votes, "--seed", args.seed
    )
    print(made.strip(), file=sys.stderr)
    homes["now"].mkdir(mode=0o700)
    shutil.copy(homes["old"] / "feedback.db", homes["now"])
    least = 1.0 if args.quick else 10.0
    figures: dict[str, Any] = {}
    for item in ITEMS:
        for name, build in {"old": old, "now": None}.items():
            flags = "--least", least, "--limit", LIMIT
            said = run(build, "store_scale_parts/side.py", homes[name] / "feedback.db", item, *flags)
            figures[f"{item} {name}"] = json.loads(said)
            print(item, name, said.strip(), file=sys.stderr)
    versions = {"SQLite": sqlite3.sqlite_version, "Python": platform.python_version()}
    return {"model": "No model", "versions": versions, "figures": figures, "bars": bars(figures, args.quick)}


def bars(figures: dict[str, Any], quick: bool) -> list[dict[str, Any]]:
    """What must hold; in seconds there come too few votes for a 99th percentile."""
    found = []
    for item in ITEMS:
        now = figures[f"{item} now"]
        limit = max(VOTE_MS, TIMES_IDLE * now["idle"]["p99"])
        if not quick:
            found.append(kept.bar(f"ms of a vote beside {item} (p99)", now["vote"]["p99"], "<=", limit))
        found.append(kept.bar(f"{item} ends", float(now["ended"]), ">=", 1.0))
    grown = {name: figures[f"snapshot {name}"]["memory"] for name in ("old", "now")}
    share = (grown["now"]["peak"] - grown["now"]["before"]) / max(1, grown["old"]["peak"] - grown["old"]["before"])
    return [*found, kept.bar("memory of a snapshot, of the old one's", share, "<=", MEMORY)]


def main() -> None:
    """Print the result as JSON; the exit status says whether every bar holds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replies", type=int, default=200_000)
    parser.add_argument("--votes", type=int, default=200_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="A small home, and seconds instead of minutes.")
    args = parser.parse_args()
    if args.quick:
        args.replies = args.votes = 4_000
    with tempfile.TemporaryDirectory(prefix="thumbwise-scale-") as work:
        kept.report("store_scale", args, lambda: measure(args, Path(work)), (feedback,))


if __name__ == "__main__":
    main()

"""One build's side of `store_scale.py`: something that reads much, and votes meanwhile, in a process of its own.

    PYTHONPATH=build python tests/bench/store_scale_parts/side.py DATABASE people|snapshot|pages --least 10 --limit 60

Votes come one after the other from a thread of their own, a hundredth of a second apart, first alone and then beside
what is measured, which is repeated until it has taken `least` seconds and stopped at `limit`. Prints JSON. Only what
both builds have is used.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from thumbwise.feedback import records
from thumbwise.feedback.reception import reception
from thumbwise.feedback.records import FeedbackRequest
from thumbwise.feedback.snapshot import take_snapshot
from thumbwise.feedback.store import Store

MIB = 1024
PAUSE = 0.01


def memory(what: str) -> float:
    """VmRSS or VmHWM (the peak) of this process, in MiB."""
    found = re.search(rf"{what}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) / MIB


class Votes:
    """Votes on replies of one user, one after the other, and how long each took."""

    def __init__(self, store: Store) -> None:
        self.store = store
        done = "state = 'done' AND comparison_id IS NULL AND user_id = 'local'"
        found = store.rows(f"SELECT id FROM replies WHERE {done} ORDER BY created_at DESC LIMIT 500")
        self.replies = [row["id"] for row in found]
        # Who votes is a name in the older build.
        self.who: Any = records.Asker("local", "browser:bench") if hasattr(records, "Asker") else "local"
        self.taken: list[float] = []
        self.began: float | None = None
        self.over = threading.Event()

    def run(self) -> None:
        draw = random.Random(0)
        while not self.over.is_set():
            vote = FeedbackRequest(
                kind="thumb", message_id=draw.choice(self.replies), value=draw.choice(["up", "down"])
            )
            self.began = began = time.monotonic()
            self.store.add_feedback(self.who, str(uuid.uuid4()), vote)
            self.began = None
            self.taken.append(time.monotonic() - began)
            self.over.wait(PAUSE)

    def figures(self) -> dict[str, float]:
        """Milliseconds at the median, the 99th percentile and the most; one that still waits has taken so long."""
        waits, began = list(self.taken), self.began
        if began is not None:
            waits.append(time.monotonic() - began)
        waits.sort()
        places = {"p50": 0.5, "p99": 0.99, "max": 1.0}
        at = {name: waits[min(len(waits) - 1, int(len(waits) * share))] * 1e3 for name, share in places.items()}
        return {name: round(value, 2) for name, value in at.items()} | {"votes": len(waits)}


def pages(store: Store) -> Callable[[], dict[str, float]]:
    """Something that asks what the pages ask for, once each, and returns the milliseconds of each query."""
    (talk,) = store.rows("SELECT max(id) AS id FROM conversations WHERE user_id = 'local'")
    (pair,) = store.rows("SELECT max(id) AS id FROM comparisons WHERE user_id = 'local'")
    asked: dict[str, Callable[[], Any]] = {
        "conversations": lambda: store.conversations("local", 31),
        "conversation": lambda: store.conversation(talk["id"], "local"),
        "comparison": lambda: store.comparison(pair["id"], "local"),
        "counts": store.counts,
    }

    def ask() -> dict[str, float]:
        taken = {}
        for name, query in asked.items():
            began = time.monotonic()
            query()
            taken[name] = (time.monotonic() - began) * 1e3
        return taken

    return ask


def beside(work: Callable[[], Any], votes: Votes, least: float, limit: float) -> dict[str, Any]:
    """Do `work` over and over for `least` seconds, and stop what takes longer than `limit`; votes come meanwhile."""
    seconds: list[float] = []
    given: list[Any] = []
    done = threading.Event()
    began, used = time.monotonic(), time.process_time()

    def repeat() -> None:
        while not seconds or time.monotonic() - began < least:
            once = time.monotonic()
            given.append(work())
            seconds.append(time.monotonic() - once)
        done.set()

    for run in (repeat, votes.run):
        threading.Thread(target=run, daemon=True).start()
    ended = done.wait(limit)
    figures = votes.figures()
    votes.over.set()
    found = {"ended": ended or bool(seconds), "times": len(seconds), "vote": figures}
    whole = time.monotonic() - began
    found["seconds"] = round(sum(seconds) / len(seconds), 4) if seconds else round(whole, 1)
    found["cpu"] = round((time.process_time() - used) / max(1, len(seconds)), 4)
    if given and isinstance(given[0], dict):
        found["queries"] = {name: round(sorted(one[name] for one in given)[len(given) // 2], 3) for name in given[0]}
    return found


def main() -> None:
    """Measure one thing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("database", type=Path)
    parser.add_argument("item", choices=["people", "snapshot", "pages"])
    parser.add_argument("--least", type=float, default=10.0)
    parser.add_argument("--limit", type=float, default=60.0)
    args = parser.parse_args()
    store = Store(args.database)
    items: dict[str, Callable[[], Any]] = {
        "people": lambda: len(reception(store)),
        "snapshot": lambda: take_snapshot(store, args.database.parent),
        "pages": pages(store),
    }
    idle = beside(lambda: time.sleep(args.least), Votes(store), args.least, args.limit)["vote"]
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
    before = memory("VmRSS")
    found = beside(items[args.item], Votes(store), args.least, args.limit)
    found["memory"] = {"before": round(before), "peak": round(memory("VmHWM"))}
    print(json.dumps(found | {"idle": idle}), flush=True)
    os._exit(0)  # what was stopped may hold the database's lock


if __name__ == "__main__":
    main()

"""A snapshot says whose accounts are young; one from before says nothing of it."""

from __future__ import annotations

import json

from training_world import make_snapshot

from thumbwise.settings.training import TrainSettings
from thumbwise.training.data.snapshot import parse
from thumbwise.versions.record import Pointer


def test_the_young_are_read_and_stay_with_the_votes_that_are_heard() -> None:
    rows = [json.loads(line) for line in make_snapshot(20).splitlines()]
    marked = b"".join(
        json.dumps(row | ({"young": True} if row["user"] == "u3" else {})).encode() + b"\n" for row in rows
    )
    assert parse(marked).labels.young == {"u3"}
    assert parse(marked).heard(TrainSettings()).labels.young == {"u3"}
    assert parse(make_snapshot(20)).labels.young == frozenset()


def test_names_below_an_account_meet_the_version_of_the_account() -> None:
    pointer = Pointer("stable", "canary", 0.5, "rollout", 0)
    names = [f"usr_{n}" for n in range(40)]
    met = {name: pointer.version_for(name, "conv_1") for name in names}
    assert set(met.values()) == {"stable", "canary"}
    assert all(pointer.version_for(f"{name}/{below}") == met[name] for name in names for below in ("a", "b", "c"))

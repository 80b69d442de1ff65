"""What a run learned from: sent in batches, whole before anything is published, and readable from both ends."""

from __future__ import annotations

from pathlib import Path

import pytest
from policy_world import candidate, make_world

from thumbwise.errors import Conflict, ThumbwiseError
from thumbwise.versions.lineage import Item, Learned

ITEMS: list[Item] = [("fb_1", "vote", 0.5), ("fb_2", "demonstration", 1.0), ("msg_1", "prompt", 1.0)]


def test_a_run_publishes_only_after_it_has_said_what_it_learned_from(tmp_path: Path) -> None:
    world = make_world(tmp_path)
    lineage, run = world.versions.lineage, world.versions.runs.begin("s", 60)
    version, files = candidate(run.number)
    with pytest.raises(Conflict, match="has not said what it learned from"):
        world.policies.receive(version, files, run.lease)
    lineage.record(run.id, ITEMS[:2], None)
    with pytest.raises(Conflict, match="has not said"):
        world.policies.receive(version, files, run.lease)
    with pytest.raises(Conflict, match="2 of 4 items have arrived"):
        lineage.record(run.id, [], 4)
    lineage.record(run.id, ITEMS[1:], 3)
    lineage.record(run.id, ITEMS, 3)  # an attempt that was cut off sends all of it again
    world.policies.receive(version, files, run.lease)
    assert [(row.feedback_id, row.kind, row.weight) for row in lineage.of_run(run.id)] == ITEMS
    assert {row.version for row in lineage.of_run(run.id)} == {version}


def test_an_item_names_every_run_that_learned_from_it_published_or_not(tmp_path: Path) -> None:
    world = make_world(tmp_path)
    lineage = world.versions.lineage
    first = world.versions.runs.begin("s", 60)
    lineage.record(first.id, ITEMS, 3)
    world.versions.runs.end(first.id, first.lease, "failed", "")
    second = world.versions.runs.begin("s", 60)
    lineage.record(second.id, [("fb_1", "vote", 0.0)], 1)
    found = lineage.of_items(["fb_1", "fb_none"])
    assert found == [
        Learned(first.id, "fb_1", "vote", 0.5, None),
        Learned(second.id, "fb_1", "vote", 0.0, None),
    ]
    assert lineage.of_items([]) == []


def test_a_later_batch_changes_a_weight_and_an_unknown_kind_is_refused(tmp_path: Path) -> None:
    world = make_world(tmp_path)
    lineage, run = world.versions.lineage, world.versions.runs.begin("s", 60)
    lineage.record(run.id, [("fb_1", "vote", 1)], 1)
    lineage.record(run.id, [("fb_1", "vote", 0.25)], 1)
    assert [row.weight for row in lineage.of_run(run.id)] == [0.25]
    with pytest.raises(ThumbwiseError, match="send one of these kinds"):
        lineage.record(run.id, [("fb_1", "rumour", 1.0)], None)  # type: ignore[list-item]

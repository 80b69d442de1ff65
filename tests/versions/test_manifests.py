"""A candidate's manifest, value by value: what is of another kind is refused before anything is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from policy_world import Change, World, candidate, make_world, spoil

from thumbwise.errors import ThumbwiseError


@pytest.fixture
def world(tmp_path: Path) -> World:
    return make_world(tmp_path)


def _probe(part: str, values: list[Any]) -> Change:
    def change(config: Any, manifest: dict[str, Any], tensors: Any) -> None:
        manifest["probes"][0][part] = values

    return change


@pytest.mark.parametrize(
    "change",
    [
        *(spoil("manifest", "n_labels", value) for value in ("x", None, -1, 1.5, 10**30, True)),
        *(spoil("manifest", "algorithm", value) for value in (None, 5, "\ud800", "x" * 10_000)),
        *(spoil("manifest", "metrics", value) for value in (None, [], "x")),
        *(spoil("manifest", "created_at", value) for value in (None, "yesterday", 5)),
        *(spoil("manifest", "snapshot_id", value) for value in (None, {})),
        *(spoil("manifest", "number", value) for value in ("1", None, 1.0)),
        spoil("manifest", "parent", 5),
        *(_probe("top_logprobs", values) for values in ([1e308, -1.0], [-1.0, float("nan")], [-2000.0, -3000.0])),
        _probe("base_top_logprobs", [float("-inf"), -1.0]),
        _probe("top_ids", [1, 2**70]),
    ],
)
def test_a_manifest_with_a_value_of_another_kind_is_refused_and_the_right_one_taken_then(
    world: World, change: Change
) -> None:
    run = world.versions.runs.begin("s", 60)
    world.versions.lineage.record(run.id, [], 0)
    version, spoiled = candidate(run.number, change=change)
    with pytest.raises(ThumbwiseError, match=r"The adapter is refused: .*manifest\.json") as refused:
        world.policies.receive(version, spoiled, run.lease)
    assert refused.value.status == 422
    assert list(world.home.policies.iterdir()) == []
    world.policies.receive(*candidate(run.number), run.lease)
    assert world.versions.get(version).state == "staged"

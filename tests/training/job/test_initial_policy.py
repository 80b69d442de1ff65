"""What a round begins from: the base, or the stable version; on a two-layer model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_model import make_tiny_adapter, make_tiny_model
from training_world import FakeAssistant, make_snapshot, train

from thumbwise import names
from thumbwise.names import BASE
from thumbwise.settings.training import TrainSettings
from thumbwise.training.backbone.backbone import FROZEN, POLICY, Backbone

pytestmark = pytest.mark.usefixtures("one_thread")
FAR = {"learning_rate": 1e-2, "warmup": 0, "kl_coefficient": 0.0, "kl_budget": 1e3, "pace": 1.0}
"""A round that leads some way off, so that where the next one begins shows."""
OPEN = {"max_kl": 1e3, "max_base_kl": 1e3, "max_length": 100.0, "min_length": 0.0}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def first(model: Path, tmp_path_factory: pytest.TempPathFactory) -> FakeAssistant:
    """An assistant whose stable version is the result of a round."""
    assistant = FakeAssistant(make_snapshot(40))
    result = train(tmp_path_factory.mktemp("first"), model, assistant, OPEN, **FAR)
    assert result.outcome == "promoted", result.reason
    assistant.stable, assistant.number = str(result.version), 2
    return assistant


def again(first: FakeAssistant, snapshot: bytes | None = None) -> FakeAssistant:
    """The same assistant before its second round."""
    return FakeAssistant(snapshot or make_snapshot(60), number=2, stable=first.stable, policies=dict(first.policies))


def rows(tmp_path: Path) -> list[dict[str, Any]]:
    lines = (tmp_path / "home" / "runs" / "run-2" / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def manifest(assistant: FakeAssistant, version: str | None) -> dict[str, Any]:
    return dict(json.loads(assistant.policies[str(version)]["manifest.json"]))


@pytest.mark.parametrize("algorithm", ["ppo", pytest.param("dpo", marks=pytest.mark.slow)])
def test_a_second_round_may_begin_as_a_copy_of_stable_and_is_held_near_to_it(
    tmp_path: Path, model: Path, first: FakeAssistant, algorithm: str
) -> None:
    assistant = again(first)
    result = train(tmp_path, model, assistant, OPEN, algorithm=algorithm, begin="stable", **FAR)
    assert result.outcome == "promoted", result.reason
    assert rows(tmp_path)[0]["kl"] == 0.0
    kl, base_kl = result.metrics["kl"], result.metrics["base_kl"]
    assert 1 < kl < base_kl * 0.98
    made = manifest(assistant, result.version)
    assert (made["parent"], made["stable"]) == (first.stable, first.stable)


def test_from_the_base_the_parent_is_the_base_and_stable_has_its_own_name(
    tmp_path: Path, model: Path, first: FakeAssistant
) -> None:
    assistant = again(first)
    result = train(tmp_path, model, assistant, OPEN, begin="base", iterations=1)
    made = manifest(assistant, result.version)
    assert (made["parent"], made["stable"]) == (BASE, first.stable)
    assert "base_kl" not in result.metrics


@pytest.mark.slow
def test_how_far_it_may_be_from_the_base_is_capped_and_ends_are_counted_from_there(
    tmp_path: Path, model: Path, first: FakeAssistant
) -> None:
    """Counted from stable, the share of replies that should end would rise with every round."""
    ends = []
    for begin in ("base", "stable"):
        result = train(tmp_path / begin, model, again(first), OPEN | {"max_base_kl": 1e-3}, begin=begin, iterations=1)
        fit = json.loads((tmp_path / begin / "home" / "runs" / "run-2" / "fit.json").read_text())
        ends.append(fit["finish_rate"])
    assert result.outcome == "rejected"
    assert "from the base; at most 0.001" in result.reason
    assert ends[0] == ends[1]


def test_where_stable_is_the_base_nothing_changes(tmp_path: Path, model: Path) -> None:
    versions = [
        train(tmp_path / begin, model, FakeAssistant(make_snapshot(40)), begin=begin).version
        for begin in ("base", "stable")
    ]
    assert versions[0] == versions[1]


@pytest.mark.slow
def test_sft_goes_on_from_stable_too(tmp_path: Path, model: Path, first: FakeAssistant) -> None:
    losses = []
    for begin in ("base", "stable"):
        assistant = again(first, make_snapshot(40, corrections=12))
        changes = {"sft_demonstrations": 10, "sft_learning_rate": 1e-2, "iterations": 1, "begin": begin}
        train(tmp_path / begin, model, assistant, OPEN, **changes)
        folder = tmp_path / begin / "home" / "runs" / "run-2"
        losses.append(json.loads((folder / "sft.json").read_text())["losses"])
        assert rows(tmp_path / begin)[0]["kl"] == 0.0
    assert abs(losses[0][0] - losses[1][0]) > 0.05


def test_an_adapter_of_a_larger_rank_than_the_settings_is_refused_in_one_sentence(
    tmp_path: Path, model: Path, first: FakeAssistant
) -> None:
    assistant = again(first)
    config = json.loads(assistant.policies[first.stable][names.CONFIG])
    files = assistant.policies[first.stable] | {names.CONFIG: json.dumps(config | {"r": 16}).encode()}
    assistant.policies[first.stable] = files
    result = train(tmp_path, model, assistant, begin="stable")
    assert result.outcome == "failed"
    assert "has an adapter of rank 16, and train.lora_rank is 8: set it to 16, or train.begin to base" in result.reason
    assert not (tmp_path / "home" / "runs" / "run-2" / "fit.json").exists()


@pytest.mark.parametrize("rank", [8, 16])
def test_another_scale_or_a_larger_rank_of_the_settings_changes_nothing_at_first(
    model: Path, tmp_path: Path, rank: int
) -> None:
    backbone = Backbone(model, TrainSettings(dtype="float32", lora_rank=rank, lora_alpha=40))
    backbone.load_adapter("stable", make_tiny_adapter(model, tmp_path / "a", seed=3))
    backbone.begin_as("stable")
    ids = list(range(5, 25))
    policy, stable, base = (backbone.next_logprobs(ids, name) for name in (POLICY, "stable", None))
    assert torch.allclose(policy, stable, atol=1e-4)
    assert not torch.allclose(base, stable, atol=1e-1)
    backbone.freeze_reference()
    with torch.no_grad():
        for weight in backbone.parameters(POLICY).values():
            weight += 0.1
    backbone.freeze_reference()  # as after SFT: the reference moves on
    assert torch.equal(backbone.next_logprobs(ids, FROZEN), backbone.next_logprobs(ids, POLICY))


def test_where_stable_learned_from_something_forgotten_the_round_begins_at_the_base_and_says_why(
    tmp_path: Path, model: Path, first: FakeAssistant
) -> None:
    assistant = again(first)
    assistant.begin_at_base = True
    result = train(tmp_path, model, assistant, OPEN, begin="stable", iterations=1)
    assert result.outcome == "promoted", result.reason
    made = manifest(assistant, result.version)
    assert (made["parent"], made["stable"]) == (BASE, first.stable)
    assert "base_kl" not in result.metrics
    assert "began at the base" in result.reason
    assert "was forgotten since" in result.reason

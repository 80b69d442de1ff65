"""SFT on corrected replies, on a two-layer random model: what is learned and kept, and the KL from there on."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_model import make_tiny_model
from training_world import FakeAssistant, make_snapshot, train

from thumbwise.contracts import Evidence, FitReport, Message, Prompt, RunContext, Sample, Scores
from thumbwise.plugins.ppo import in_process
from thumbwise.settings.gates import GateSettings
from thumbwise.settings.training import TrainSettings
from thumbwise.training.backbone.backbone import FROZEN, Backbone
from thumbwise.training.backbone.batches import chunks
from thumbwise.training.data.snapshot import Demonstration, parse
from thumbwise.training.evaluation.evaluate import gather_evidence, interview
from thumbwise.training.policy.sft import SFTReport, encode, learn, rate
from thumbwise.training.policy.stepping import measure

SMALL = TrainSettings(
    dtype="float32", micro_batch=8, lora_rank=8, max_prompt_tokens=64, sft_learning_rate=1e-2, sft_epochs=3
)
PROMPTS = (Prompt((Message(role="user", content="Be brief"),), "g"),)

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def make(model: Path, tmp_path: Path) -> Callable[..., RunContext]:
    def made(**changes: Any) -> RunContext:
        settings = SMALL.model_copy(update=changes)
        context = RunContext(Backbone(model, settings), settings, 0.7, 8, (), PROMPTS, tmp_path)
        return context.with_rollouts(in_process)

    return made


def corrections(n: int, text: str = "The capital of France is Paris.") -> list[Demonstration]:
    return [
        Demonstration(f"d{i}", "u", f"g{i}", (Message(role="user", content=f"Question {i}?"),), text) for i in range(n)
    ]


def test_a_correction_is_encoded_after_the_template_and_ended(make: Callable[..., RunContext]) -> None:
    backbone = make().backbone
    ((group, sample),) = encode(corrections(1), backbone, 64)
    assert group == "g0"
    assert backbone.tokenizer.decode(sample.prompt_ids).endswith("<|im_start|>assistant\n")
    assert backbone.tokenizer.decode(sample.response_ids[:-1]) == "The capital of France is Paris."
    assert sample.response_ids[-1] == backbone.tokenizer.eos_token_id
    assert encode(corrections(1, "word " * 200), backbone, 64) == []


def test_the_held_out_loss_falls_and_the_same_seed_gives_the_same_weights(make: Callable[..., RunContext]) -> None:
    one, two = make(), make()
    report, again = (learn(context, corrections(20)) for context in (one, two))
    assert report == again
    assert report.demonstrations == 16
    assert report.epoch == 3
    assert report.losses[3] < report.losses[0] - 0.5
    kept = one.backbone.state("policy")
    assert all(torch.equal(kept[name], weight) for name, weight in two.backbone.state("policy").items())
    assert f"{report.losses[3]:.3f} after epoch 3" in report.line()


def test_what_people_correct_most_is_learned_from_and_not_held_out(
    make: Callable[..., RunContext], monkeypatch: pytest.MonkeyPatch
) -> None:
    held_out: list[list[str]] = []

    def noted(backbone: Backbone, samples: Any) -> float:
        held_out.append([sample.prompt[0]["content"] for sample in samples])
        return 1.0

    monkeypatch.setattr("thumbwise.training.policy.sft.held_out_loss", noted)
    said = [replace(demo, group="hi" if n < 20 else demo.group) for n, demo in enumerate(corrections(60))]
    assert learn(make(sft_epochs=1), said).demonstrations == 50
    assert not {f"Question {n}?" for n in range(20)} & set(held_out[0])


def test_micro_batches_change_memory_and_not_the_result(make: Callable[..., RunContext]) -> None:
    losses = [learn(make(micro_batch=size), corrections(20)).losses for size in (2, 16)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_what_makes_held_out_prompts_worse_is_not_kept(
    make: Callable[..., RunContext], monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = iter([3.0, 3.1, math.nan, 3.0])
    monkeypatch.setattr("thumbwise.training.policy.sft.held_out_loss", lambda backbone, samples: next(losses))
    context = make()
    before = context.backbone.state("policy")
    report = learn(context, corrections(20))
    assert report.epoch == 0
    assert all(torch.equal(before[name], weight) for name, weight in context.backbone.state("policy").items())
    assert "nothing is kept" in report.line()


def test_the_weights_that_stay_have_the_least_loss(
    make: Callable[..., RunContext], monkeypatch: pytest.MonkeyPatch
) -> None:
    context = make()
    states: list[dict[str, torch.Tensor]] = []
    losses = iter([3.0, 2.0, 1.0, 1.5])

    def scripted(backbone: Backbone, samples: Any) -> float:
        states.append(backbone.state("policy"))
        return next(losses)

    monkeypatch.setattr("thumbwise.training.policy.sft.held_out_loss", scripted)
    report = learn(context, corrections(20))
    assert report.epoch == 2
    kept = context.backbone.state("policy")
    assert all(torch.equal(kept[name], states[2][name]) for name in kept)
    assert not all(torch.equal(kept[name], states[3][name]) for name in kept)


def test_general_chat_is_mixed_in_as_a_share_of_the_corrections(
    make: Callable[..., RunContext], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    def imitate(backbone: Any, samples: Any, parts: Any, temperature: float) -> float:
        seen.extend(sample.policy_version for sample in samples)
        return 0.0

    monkeypatch.setattr("thumbwise.training.policy.sft.imitate", imitate)
    learn(make(sft_epochs=1, sft_general=0.25), corrections(20))
    assert seen.count("person") == 16
    assert len(seen) == 20


def test_the_rate_falls_to_a_tenth() -> None:
    assert [rate(0), rate(0.5), rate(1)] == pytest.approx([1, 0.55, 0.1])


def test_too_few_prompts_teach_nothing_and_break_nothing(make: Callable[..., RunContext]) -> None:
    report = learn(make(), corrections(1))
    assert report.epoch == 0
    assert report.losses == []
    assert SFTReport(**json.loads(json.dumps(asdict(report)))) == report  # a run goes on from it
    assert "max_prompt_tokens" in report.line()


def test_the_frozen_reference_is_the_policy_as_it_was_and_stays(make: Callable[..., RunContext]) -> None:
    context = make()
    backbone = context.backbone
    learn(context, corrections(20))
    backbone.freeze_reference()
    samples = context.rollouts.sample(PROMPTS * 4, "policy", 1)  # type: ignore[union-attr]
    parts = list(chunks(4, 8))
    found = measure(backbone, samples, parts, 0.7)
    assert torch.equal(found.logp, found.reference)
    with backbone.using(None), torch.no_grad():
        base = backbone.logprobs(backbone.batch(samples), None, 0.7)
    assert (base - found.reference).abs().max() > 0.1
    frozen = backbone.state(FROZEN)
    with torch.no_grad():
        for weight in backbone.parameters("policy").values():
            weight += 0.1
    assert (measure(backbone, samples, parts, 0.7).logp - found.logp).abs().max() > 0.1
    assert all(torch.equal(frozen[name], weight) for name, weight in backbone.state(FROZEN).items())


def test_what_sft_changed_is_seen_by_the_gates(make: Callable[..., RunContext]) -> None:
    """The KL to the reference is 0 however far the corrections led, for they led the reference."""
    context = make()
    learn(context, corrections(20))
    limits = GateSettings(samples=2, chat_prompts=0)
    questions = interview(context, in_process, PROMPTS * 4, limits, 8)

    def evidence() -> Evidence:
        def score(samples: Sequence[Sample]) -> Scores:
            return Scores(np.zeros(len(samples), np.float32))

        return gather_evidence(context, questions, score, FitReport(0.7, 100), questions.ask(None), limits)

    before = evidence()
    context.backbone.freeze_reference()
    after = evidence()
    assert before.base_kl is None
    assert before.kl > 1
    assert after.kl == pytest.approx(0.0, abs=1e-4)
    assert after.base_kl == pytest.approx(before.kl, rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["ppo", "best_of_n", "dpo", "kto", "rloo"])
def test_a_round_with_corrections_begins_at_their_reference_and_ends_with_an_adapter_of_both(
    tmp_path: Path, model: Path, algorithm: str
) -> None:
    snapshot = make_snapshot(40, corrections=12)
    assert len(parse(snapshot).demonstrations) == 12
    changes = {"sft_demonstrations": 10, "sft_learning_rate": 1e-2, "algorithm": algorithm}
    result = train(tmp_path, model, FakeAssistant(snapshot), {"max_kl": 100.0, "max_base_kl": 1e3}, **changes)
    assert result.outcome == "promoted"
    assert result.metrics["base_kl"] > result.metrics["kl"]
    folder = tmp_path / "home" / "runs" / "run-1"
    report = json.loads((folder / "sft.json").read_text())
    assert report["losses"][report["epoch"]] < report["losses"][0]
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert rows[0]["kl"] == 0.0
    assert abs(rows[1]["kl"]) > 0


def test_with_few_corrections_there_is_no_such_stage(tmp_path: Path, model: Path) -> None:
    train(tmp_path, model, FakeAssistant(make_snapshot(40, corrections=9)), sft_demonstrations=10, iterations=1)
    assert not (tmp_path / "home" / "runs" / "run-1" / "sft.json").exists()

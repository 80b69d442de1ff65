"""TRL's trainers behind our contract, on a two-layer random model: their numbers, and that they learn."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from toy_policy import PROMPTS, TEMPERATURE, disturb, low_ids, silent

from thumbwise.contracts import Sample
from thumbwise.home import Home
from thumbwise.plugin_host.manager import PluginManager
from thumbwise.plugins.dpo import DPO, pair_up
from thumbwise.plugins.kto import KTO, balanced
from thumbwise.plugins.rloo import RLOO
from thumbwise.settings.training import TrainSettings
from thumbwise.training.backbone.batches import chunks
from thumbwise.training.evaluation.metrics import GLOSSARY
from thumbwise.training.policy.stepping import measure

SMALL = TrainSettings(
    dtype="float32", episodes=16, replies=4, minibatches=2, micro_batch=16, iterations=10, lora_rank=8,
    learning_rate=5e-3, pace=1.0, warmup=0, kl_coefficient=0.2,
)  # fmt: skip
Either = DPO | KTO | RLOO

pytestmark = pytest.mark.usefixtures("one_thread")


def replies(algorithm: Either, n: int = 8) -> list[Sample]:
    """`n` replies, 4 to a prompt, of 2 to 9 tokens."""
    assert algorithm.context.rollouts is not None
    found = algorithm.context.rollouts.sample([PROMPTS[row // 4] for row in range(n)], None, 3)
    return [replace(s, response_ids=tuple(range(20, 22 + row)), rollout_logprobs=None) for row, s in enumerate(found)]


def sums(algorithm: Either, samples: Sequence[Sample]) -> tuple[list[float], list[float]]:
    """Log-probabilities of whole replies by policy and reference, as our own code has them."""
    found = measure(algorithm.backbone, samples, list(chunks(len(samples), 16)), TEMPERATURE)
    return (found.logp * found.mask).sum(1).tolist(), (found.reference * found.mask).sum(1).tolist()


# --- all -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", [DPO, KTO, RLOO])
def test_a_toy_reward_rises_and_the_base_is_left_alone(make: Callable[..., Any], algorithm: type[Either]) -> None:
    made = make(algorithm, low_ids, iterations=16)
    before = made.backbone.base_sha256()
    rows = [made.step(i) for i in range(16)]
    assert set(rows[0]) < set(GLOSSARY)
    assert all(math.isfinite(value) for row in rows for value in row.values())
    assert rows[0]["kl"] == 0.0
    start, end = np.mean([r["reward"] for r in rows[:2]]), np.mean([r["reward"] for r in rows[-2:]])
    assert end > start + 1.5  # 2.2 to 5.4 with five seeds
    assert made.backbone.base_sha256() == before
    assert set(made.backbone.peft.peft_config) == {"policy"}


@pytest.mark.parametrize("algorithm", [DPO, KTO, RLOO])
def test_the_same_seed_gives_the_same_weights_also_from_a_checkpoint(
    make: Callable[..., Any], algorithm: type[Either]
) -> None:
    whole = make(algorithm, low_ids)
    for i in range(3):
        whole.step(i)
    first = make(algorithm, low_ids)
    first.step(0)
    state = first.state_dict()
    second = make(algorithm, low_ids)
    second.load_state_dict(state)
    for i in (1, 2):
        second.step(i)
    for name, weight in whole.policy.items():
        assert torch.equal(weight, second.policy[name])


@pytest.mark.parametrize("algorithm", [DPO, KTO, RLOO])
def test_the_update_does_not_depend_on_the_micro_batches(make: Callable[..., Any], algorithm: type[Either]) -> None:
    gradients = []
    for size in (16, 2, 1):
        made = make(algorithm, low_ids, micro_batch=size, minibatches=1, max_grad_norm=1e9)
        disturb(made.backbone)
        made.optimizer.step = lambda: None
        made.step(0)
        gradients.append(torch.cat([p.grad.flatten() for p in made.policy.values() if p.grad is not None]))
    assert gradients[0].abs().max() > 1e-4
    torch.testing.assert_close(gradients[1], gradients[0], atol=1e-6, rtol=1e-3)
    torch.testing.assert_close(gradients[2], gradients[0], atol=1e-6, rtol=1e-3)


@pytest.mark.parametrize("algorithm", [DPO, KTO, RLOO])
def test_without_a_score_nothing_is_learnt(make: Callable[..., Any], algorithm: type[Either]) -> None:
    made = make(algorithm, silent, kl_coefficient=0.0)
    before = made.backbone.state("policy")
    metrics = made.step(0)
    assert metrics["abstained"] == 16
    assert all(math.isfinite(value) for value in metrics.values())
    assert all(torch.equal(before[name], weight) for name, weight in made.policy.items())


def test_all_are_built_in(tmp_path: Path) -> None:
    plugins = PluginManager(Home.find(tmp_path / "home")).load()
    assert plugins.get("policy_algorithms", "dpo") is DPO
    assert plugins.get("policy_algorithms", "kto") is KTO
    assert plugins.get("policy_algorithms", "rloo") is RLOO


# --- dpo ------------------------------------------------------------------------------------------------


def test_best_and_worst_are_a_pair_and_so_inwards(make: Callable[..., Any]) -> None:
    samples = replies(make(DPO, low_ids))
    found = pair_up(samples, [3, 1, 4, 2, 5, 5, 5, 9], [True] * 8, 4)
    assert [(samples.index(a), samples.index(b)) for a, b in found] == [(2, 1), (0, 3), (7, 6)]


def test_replies_without_score_or_tokens_are_in_no_pair(make: Callable[..., Any]) -> None:
    samples = replies(make(DPO, low_ids))
    samples[0] = replace(samples[0], response_ids=())
    found = pair_up(samples, [9, 1, 4, 0, 1, 2, 3, 4], [True, True, True, False] + [False] * 3 + [True], 4)
    assert [(samples.index(a), samples.index(b)) for a, b in found] == [(2, 1)]


@pytest.mark.parametrize("layout", ["", "phi", "granite, scaled", "gemma 2, window, soft caps"])
def test_the_dpo_loss_is_the_papers_at_the_runs_temperature(make: Callable[..., Any], layout: str) -> None:
    made = make(DPO, low_ids, layout, dpo_beta=0.3)
    disturb(made.backbone)
    samples = replies(made)
    pairs = [(samples[0], samples[3]), (samples[5], samples[4])]
    policy, reference = sums(made, [reply for pair in pairs for reply in pair])
    ratio = np.array(policy) - np.array(reference)
    margins = 0.3 * (ratio[0::2] - ratio[1::2])
    assert np.abs(margins).min() > 1e-3
    found = made._update(pairs, [slice(0, 2)])
    assert found["dpo_loss"] == pytest.approx(np.mean(np.log1p(np.exp(-margins))), abs=1e-5)


# --- kto ------------------------------------------------------------------------------------------------


def labelled(made: KTO, labels: Sequence[bool]) -> list[dict[str, Any]]:
    """Replies as rows for TRL; what the reference gives them is our own code's figure."""
    samples = replies(made, len(labels))
    _, reference = sums(made, samples)
    return [
        {
            "prompt_ids": list(sample.prompt_ids), "completion_ids": list(sample.response_ids), "label": label,
            "ref_logps": ref, "ref_KL_logps": 0.0,
        }
        for sample, label, ref in zip(samples, labels, reference, strict=True)
    ]  # fmt: skip


def test_the_kto_loss_is_the_papers_at_the_runs_temperature(make: Callable[..., Any]) -> None:
    made = make(KTO, low_ids, kto_beta=0.3)
    disturb(made.backbone)
    labels = [True, False, False, True]
    rows = labelled(made, labels)
    policy, reference = sums(made, replies(made, 4))
    ratio, made.kl = np.array(policy) - np.array(reference), 0.4
    made.trainer.desirable_weight, made.trainer.undesirable_weight = 1.5, 0.5
    sign = np.where(labels, 1, -1)
    losses = np.where(labels, 1.5, 0.5) * (1 - 1 / (1 + np.exp(-0.3 * sign * (ratio - 0.4))))
    assert np.abs(ratio).min() > 1e-3
    found = made._update(rows, [slice(0, 1), slice(1, 4)])  # whatever the micro-batches
    assert found["kto_loss"] == pytest.approx(np.mean(losses), abs=1e-5)


def test_one_step_makes_the_desirable_likelier_than_the_others(make: Callable[..., Any]) -> None:
    made = make(KTO, low_ids, minibatches=1)
    rows = labelled(made, [True, False, True, False])
    before = np.array(sums(made, replies(made, 4))[0])
    made._update(rows, [slice(0, 4)])
    moved = np.array(sums(made, replies(made, 4))[0]) - before
    assert moved[0] + moved[2] > moved[1] + moved[3] + 0.01


def test_desirable_replies_and_others_count_half_each_however_few_one_kind_is() -> None:
    assert balanced([True, False, False, False]) == (2.0, 2 / 3)
    assert balanced([True, True]) == balanced([False]) == balanced([]) == (1.0, 1.0)


# --- rloo -----------------------------------------------------------------------------------------------


def test_the_baseline_is_the_mean_of_the_other_replies_and_the_kl_is_taken_off(make: Callable[..., Any]) -> None:
    made = make(RLOO, low_ids, kl_coefficient=0.1)
    assert made.trainer.beta == 0.1
    disturb(made.backbone)
    made.samples, made.scores = replies(made), [1.0, 0.0, 2.0, -1.0, 0.5, math.nan, 0.0, 0.25]
    with made.backbone.using("policy"), torch.no_grad():
        batch = made.trainer._generate_and_score_completions([{"prompt": "a"}] * 8)
    policy, reference = sums(made, made.samples)
    torch.testing.assert_close(batch["old_logps"], torch.tensor(policy), atol=1e-4, rtol=1e-5)
    net = np.array(made.scores) - 0.1 * (np.array(policy) - np.array(reference))
    expected = []
    for start in (0, 4):
        group = net[start : start + 4]
        expected += [net[i] - np.nanmean(np.delete(group, i - start)) for i in range(start, start + 4)]
    np.testing.assert_allclose(batch["advantages"], np.nan_to_num(expected), atol=1e-4)


def test_before_the_first_update_no_reply_is_clipped(make: Callable[..., Any]) -> None:
    made = make(RLOO, low_ids, minibatches=1)
    disturb(made.backbone)
    assert made.step(0)["clip_fraction"] == 0

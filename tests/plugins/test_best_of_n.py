"""Best of n on a two-layer random model: which reply is kept, what is learnt from it, and that it repeats."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from toy_policy import PROMPTS, TEMPERATURE, low_ids, silent

from thumbwise.contracts import Prompt, Reward, RunContext, Sample, Scores
from thumbwise.errors import ThumbwiseError
from thumbwise.home import Home
from thumbwise.plugin_host.manager import PluginManager
from thumbwise.plugins.best_of_n import BestOfN, best_replies
from thumbwise.plugins.ppo import in_process
from thumbwise.settings.training import TrainSettings
from thumbwise.training.backbone.backbone import Backbone
from thumbwise.training.backbone.batches import make_batch
from thumbwise.training.evaluation.metrics import GLOSSARY
from thumbwise.training.policy.stepping import draw_prompts, minibatches

SMALL = TrainSettings(
    dtype="float32", episodes=16, best_of=4, minibatches=2, micro_batch=16, iterations=10, lora_rank=8,
    learning_rate=5e-3, pace=1.0, warmup=0, missing_eos_penalty=0.0,
)  # fmt: skip

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def make(model: Path, tmp_path: Path) -> Callable[..., BestOfN]:
    """An algorithm on a backbone of its own; keywords change its settings."""

    def made(reward: Reward, **changes: Any) -> BestOfN:
        train = SMALL.model_copy(update=changes)
        context = RunContext(Backbone(model, train), train, TEMPERATURE, 10, PROMPTS, (), tmp_path)
        return BestOfN(context.with_rollouts(in_process), reward)

    return made


def weights(algorithm: BestOfN) -> dict[str, torch.Tensor]:
    return algorithm.backbone.state("policy")


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


def replies(algorithm: BestOfN) -> list[Sample]:
    """Eight replies of 2 to 9 tokens."""
    assert algorithm.context.rollouts is not None
    found = algorithm.context.rollouts.sample([PROMPTS[n % 5] for n in range(8)], None, 3)
    ids = (tuple(range(20, 22 + n)) for n in range(8))
    return [replace(s, response_ids=i, rollout_logprobs=None) for s, i in zip(found, ids, strict=True)]


class Kept:
    """Stands in for an algorithm's updates: remembers what they were given, and changes nothing."""

    def __init__(self, algorithm: BestOfN) -> None:
        self.samples: Sequence[Sample] = ()
        self.updates: list[list[slice]] = []
        algorithm._update = self  # type: ignore[assignment, method-assign]

    def __call__(self, kept: Sequence[Sample], minibatch: Sequence[slice]) -> dict[str, float]:
        self.samples = kept
        self.updates.append(list(minibatch))
        return {}


class Altered:
    """A rollout backend whose replies are another one's, changed: `change(number, sample)`."""

    def __init__(self, algorithm: BestOfN, change: Callable[[int, Sample], Sample]) -> None:
        self.context, self.change = algorithm.context, change
        algorithm.context = replace(algorithm.context, rollouts=self)

    def sample(self, prompts: Sequence[Prompt], adapter: str | None, seed: int) -> list[Sample]:
        assert self.context.rollouts is not None
        return [self.change(n, s) for n, s in enumerate(self.context.rollouts.sample(prompts, adapter, seed))]


# --- which reply is kept --------------------------------------------------------------------------------


def test_the_best_of_every_n_is_kept_and_the_first_of_equals() -> None:
    assert best_replies([1, 3, 2, -1, -5, -2], [True] * 6, 3) == [1, 3]
    assert best_replies([2, 2, 1, 0, 0, 0], [True] * 6, 3) == [0, 3]


def test_no_opinion_never_wins_and_a_prompt_without_any_is_dropped() -> None:
    # 0 is what a missing score is counted as: it must not beat a bad one.
    assert best_replies([0.0, -3.0, -2.0], [False, True, True], 3) == [2]
    assert best_replies([math.nan, -3.0, -2.0], [False, True, True], 3) == [2]
    assert best_replies([0, 0, 0, 1, 2, 3], [False] * 3 + [True] * 3, 3) == [5]


def test_a_step_keeps_the_reply_with_the_highest_score_of_each_prompt(make: Callable[..., BestOfN]) -> None:
    seen: list[tuple[Sample, float]] = []

    def by_position(samples: Sequence[Sample]) -> Scores:
        score = np.random.default_rng(0).permutation(len(samples)).astype(np.float32) / 10
        seen.extend(zip(samples, score.tolist(), strict=True))
        return Scores(score)

    algorithm = make(by_position)
    kept = Kept(algorithm)
    metrics = algorithm.step(0)
    groups = [seen[n : n + 4] for n in range(0, 16, 4)]
    assert len(seen) == 16
    assert [len({s.prompt_ids for s, _ in group}) for group in groups] == [1, 1, 1, 1]
    assert len({group[0][0].prompt_ids for group in groups}) == 4
    best = [max(group, key=lambda pair: pair[1]) for group in groups]
    assert [id(s) for s in kept.samples] == [id(s) for s, _ in best]
    assert metrics["best_reward"] == pytest.approx(np.mean([score for _, score in best]))
    assert metrics["reward"] == pytest.approx(np.mean([score for _, score in seen]))


def test_in_a_step_nan_does_not_win_and_a_prompt_of_nan_gives_nothing(make: Callable[..., BestOfN]) -> None:
    given: list[Sample] = []

    def shy(samples: Sequence[Sample]) -> Scores:
        given.extend(samples)
        return Scores(np.array([np.nan, -2, -1, -3] + [np.nan] * 4 + [np.inf, -1, -2, -3] + [0, 1, 2, np.nan], "f4"))

    algorithm = make(shy)
    kept = Kept(algorithm)
    metrics = algorithm.step(0)
    assert [id(s) for s in kept.samples] == [id(given[n]) for n in (2, 9, 14)]
    assert metrics["abstained"] == 7
    assert metrics["best_reward"] == pytest.approx(0.0)  # -1, -1 and 2


def test_a_reply_cut_off_pays_its_penalty_before_the_choice(make: Callable[..., BestOfN]) -> None:
    def falling(samples: Sequence[Sample]) -> Scores:
        return Scores(np.array([2, 1, 0, 0], np.float32))

    for penalty, best in ((0.0, 2.0), (1.5, 1.0)):
        algorithm = make(falling, episodes=4, missing_eos_penalty=penalty)
        Altered(algorithm, lambda n, sample: replace(sample, finish_reason="stop" if n else "length"))
        Kept(algorithm)
        assert algorithm.step(0)["best_reward"] == best


@pytest.mark.parametrize(("episodes", "prompts"), [(16, 4), (7, 1), (2, 1)])
def test_a_batch_has_episodes_over_best_of_prompts_and_at_least_one(
    make: Callable[..., BestOfN], episodes: int, prompts: int
) -> None:
    algorithm = make(low_ids, episodes=episodes)
    kept = Kept(algorithm)
    algorithm.step(0)
    assert len(kept.samples) == prompts


def test_there_are_never_more_updates_than_replies(make: Callable[..., BestOfN]) -> None:
    algorithm = make(low_ids, minibatches=7, epochs=2)
    kept = Kept(algorithm)
    algorithm.step(0)
    rows = [[part.start for part in update] for update in kept.updates]
    assert sorted(rows[:4]) == sorted(rows[4:]) == [[0], [1], [2], [3]]
    assert minibatches(0, SMALL) == []
    assert minibatches(5, SMALL.model_copy(update={"micro_batch": 2})) == [[slice(0, 2), slice(2, 3)], [slice(3, 5)]]


def test_without_a_single_prompt_the_run_says_so(make: Callable[..., BestOfN]) -> None:
    context = replace(make(low_ids).context, prompts=())
    with pytest.raises(ThumbwiseError, match="no prompt"):
        draw_prompts(context, 3, random.Random(0))


# --- what is learnt from it -----------------------------------------------------------------------------


def test_the_loss_is_the_mean_over_tokens_at_the_runs_temperature(make: Callable[..., BestOfN]) -> None:
    algorithm = make(low_ids)
    total, count = 0.0, 0
    for sample in replies(algorithm):
        ids = torch.tensor([[*sample.prompt_ids, *sample.response_ids]])
        with torch.no_grad():
            with algorithm.backbone.sampling("policy") as model:
                logits = model(input_ids=ids).logits[0].double()
        logp = torch.log_softmax(logits / TEMPERATURE, -1)
        for n, token in enumerate(sample.response_ids):
            total -= float(logp[len(sample.prompt_ids) + n - 1, token])
            count += 1
    found = algorithm._update(replies(algorithm), [slice(0, 8)])
    assert found["sft_loss"] == pytest.approx(total / count, rel=1e-4)


def test_neither_micro_batches_nor_padding_change_the_gradient(
    make: Callable[..., BestOfN], monkeypatch: pytest.MonkeyPatch
) -> None:
    gradients, losses = [], []
    for parts, extra in (([slice(0, 8)], 0), ([slice(0, 3), slice(3, 8)], 0), ([slice(0, 8)], 9)):
        algorithm = make(low_ids, max_grad_norm=1e9)
        monkeypatch.setattr(algorithm.optimizer, "step", lambda: None)
        pad = algorithm.backbone.pad_id
        monkeypatch.setattr(
            algorithm.backbone, "batch", lambda samples, pad=pad, extra=extra: make_batch(samples, pad, extra=extra)
        )
        losses.append(algorithm._update(replies(algorithm), parts)["sft_loss"])
        gradients.append(torch.cat([p.grad.flatten() for p in algorithm.policy.values() if p.grad is not None]))
    assert gradients[0].abs().max() > 1e-2
    for gradient, loss in zip(gradients[1:], losses[1:], strict=True):
        torch.testing.assert_close(gradient, gradients[0], atol=1e-5, rtol=1e-5)
        assert loss == pytest.approx(losses[0], abs=1e-5)


def test_gradients_are_scaled_down_and_the_norm_before_that_is_logged(make: Callable[..., BestOfN]) -> None:
    algorithm = make(low_ids, max_grad_norm=0.01)
    found = algorithm._update(replies(algorithm), [slice(0, 8)])
    grads = [p.grad for p in algorithm.policy.values() if p.grad is not None]
    assert found["policy_grad_norm"] > 0.1
    assert float(torch.cat([g.flatten() for g in grads]).norm()) == pytest.approx(0.01, rel=1e-3)


def test_without_an_opinion_or_a_token_nothing_moves(make: Callable[..., BestOfN]) -> None:
    algorithm = make(low_ids)
    algorithm.step(0)  # now the optimizer has momentum, which would move the policy even without a gradient
    before = weights(algorithm)
    algorithm.reward = silent
    rows = [algorithm.step(1)]
    algorithm.reward, context = low_ids, algorithm.context
    Altered(algorithm, lambda n, sample: replace(sample, response_ids=(), rollout_logprobs=()))
    rows.append(algorithm.step(2))
    assert equal(before, weights(algorithm))
    assert [row["abstained"] for row in rows] == [16, 0]
    assert rows[0].keys() == rows[1].keys() == make(low_ids).step(0).keys()
    assert all(math.isfinite(value) for row in rows for value in row.values())
    algorithm.context = context
    algorithm.step(3)
    assert not equal(before, weights(algorithm))


def test_only_the_policys_adapter_moves(make: Callable[..., BestOfN]) -> None:
    algorithm = make(low_ids)
    algorithm.backbone.freeze_reference()
    base, other, policy = algorithm.backbone.base_sha256(), algorithm.backbone.state("ref"), weights(algorithm)
    algorithm.step(0)
    algorithm.step(1)
    assert other
    assert equal(other, algorithm.backbone.state("ref"))
    assert algorithm.backbone.base_sha256() == base
    assert not equal(policy, weights(algorithm))


# --- the loop -------------------------------------------------------------------------------------------


def test_a_toy_reward_rises(make: Callable[..., BestOfN]) -> None:
    algorithm = make(low_ids, episodes=32, learning_rate=1e-2, iterations=12)
    rows = [algorithm.step(n) for n in range(12)]
    assert all(math.isfinite(value) for row in rows for value in row.values())
    assert all(row["best_reward"] >= row["reward"] for row in rows)
    start, end = (np.mean([row["reward"] for row in part]) for part in (rows[:2], rows[-2:]))
    assert end > start + 1.0


def test_a_reward_of_noise_does_not_make_the_policy_sharper(make: Callable[..., BestOfN]) -> None:
    draws = np.random.default_rng(0)

    def noise(samples: Sequence[Sample]) -> Scores:
        return Scores(draws.normal(size=len(samples)).astype(np.float32))

    algorithm = make(noise, episodes=32, iterations=14)
    entropy = [algorithm.step(n)["entropy"] for n in range(14)]
    assert entropy[-1] > entropy[0] - 1  # at temperature 1 in the loss it falls by 4.7


def test_metrics_are_of_the_policy_that_the_step_began_with(make: Callable[..., BestOfN]) -> None:
    algorithm = make(low_ids, warmup=5)
    first, second = algorithm.step(0), algorithm.step(1)
    wanted = (
        "kl kl_token reward reward_std best_reward sft_loss entropy length finish_rate end_penalty repetition "
        "policy_grad_norm learning_rate rollout_kl abstained seconds"
    )
    assert set(first) == set(wanted.split())
    assert set(first) < set(GLOSSARY)
    assert first["kl"] == 0
    assert abs(second["kl"]) > 1e-4
    assert first["rollout_kl"] < 1e-4
    assert second["rollout_kl"] < 1e-4
    assert first["learning_rate"] == pytest.approx(0.1 * 5e-3)
    assert (
        second["learning_rate"] == algorithm.optimizer.param_groups[0]["lr"] == pytest.approx(0.28 * 0.9 * 5e-3)
    )  # second of ten


def test_the_same_seed_gives_the_same_adapter_bit_for_bit(make: Callable[..., BestOfN]) -> None:
    found = []
    for seed in (0, 0, 1):
        algorithm = make(low_ids, seed=seed)
        for n in range(3):
            algorithm.step(n)
        found.append(weights(algorithm))
    assert equal(found[0], found[1])
    assert not equal(found[0], found[2])


def test_a_run_goes_on_from_its_state_as_if_it_had_not_stopped(make: Callable[..., BestOfN]) -> None:
    whole = make(low_ids)
    for n in range(4):
        whole.step(n)
    first = make(low_ids)
    for n in range(2):
        first.step(n)
    state = first.state_dict()
    for n in range(2, 4):
        first.step(n)  # must not reach into the state that was taken
    for _ in range(2):  # nor may going on from it use it up
        second = make(low_ids)
        second.load_state_dict(state)
        assert not equal(weights(second), weights(whole))
        for n in range(2, 4):
            second.step(n)
        assert equal(weights(second), weights(whole))


def test_a_checkpoint_keeps_what_a_missing_end_costs_by_now(make: Callable[..., BestOfN]) -> None:
    algorithm, resumed = (make(low_ids, missing_eos_penalty=0.75) for _ in range(2))
    algorithm.ends.usual = 1.0
    rate = algorithm.step(0)["finish_rate"]
    assert algorithm.ends.value == pytest.approx(0.75 + 3.0 * (1 - rate))
    assert rate < 1
    resumed.load_state_dict(algorithm.state_dict())
    assert resumed.ends.value == algorithm.ends.value


def test_it_is_registered_among_the_built_in_algorithms(tmp_path: Path) -> None:
    plugins = PluginManager(Home.find(tmp_path))
    plugins.load_builtins()
    assert plugins.get("policy_algorithms", "best_of_n") is BestOfN

"""The value function: what it starts from, what it may see, and that it keeps up with the policy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from toy_policy import TEMPERATURE, make_context, sampled

from thumbwise.contracts import RunContext, Sample, Scores, ValueInit
from thumbwise.plugins.bradley_terry import BradleyTerry
from thumbwise.plugins.ppo import PPO
from thumbwise.training.backbone.backbone import Backbone
from thumbwise.training.policy.losses import masked_mean
from thumbwise.training.policy.value import ValueFunction

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def context(tiny_model: Path, tmp_path: Path) -> RunContext:
    return make_context(tiny_model, tmp_path)


def make_init(backbone: Backbone, seed: int = 0) -> ValueInit:
    draws = np.random.default_rng(seed)
    size = (2, backbone.hidden_size)
    weight, mean = (draws.normal(size=size).astype(np.float32) * 0.1 for _ in range(2))
    return ValueInit((0, 1), weight, mean, np.ones(size, np.float32), 0.3, 16.0)


def predict(value: ValueFunction, samples: Sequence[Sample]) -> torch.Tensor:
    mask = value.backbone.batch(samples).mask
    return value.values(value.features(samples, mask.shape[1]), torch.tensor(value.init.bias), mask)


def test_the_value_starts_as_the_reward_models_score_of_the_tokens_so_far(context: RunContext) -> None:
    samples = [s for s in sampled(context, 8) if s.response_ids]
    model = BradleyTerry(context)
    init = make_init(context.backbone)
    model.weights[0], model.mean, model.offsets[0] = init.weight, init.mean, init.bias
    value = ValueFunction(context.backbone, model.value_init(), 1e-3)
    longer = [replace(s, response_ids=(*s.response_ids, 7)) for s in samples]
    values = predict(value, longer)
    after = [values[row, len(s.response_ids)].item() for row, s in enumerate(samples)]
    np.testing.assert_allclose(after, model.score(samples).value, atol=1e-5)
    np.testing.assert_allclose(values.detach()[:, 0], init.bias, atol=1e-6)


def test_the_value_before_a_token_does_not_depend_on_that_token(context: RunContext) -> None:
    value = ValueFunction(context.backbone, make_init(context.backbone), 1e-3)
    (sample,) = [replace(s, response_ids=(9, 8, 7, 6)) for s in sampled(context, 1)]
    other = replace(sample, response_ids=(9, 8, 55, 6))
    one, two = predict(value, [sample, other])
    torch.testing.assert_close(one[:3], two[:3])
    assert (one[3] - two[3]).abs() > 1e-3


def test_a_critic_that_knows_the_reward_leaves_a_tokens_own_merit_in_its_advantage(context: RunContext) -> None:
    """One-token replies, whose value before the token is the mean: the advantages are the rewards less that mean."""
    samples = [replace(s, response_ids=s.response_ids[:1], rollout_logprobs=None) for s in sampled(context, 12)]
    model = BradleyTerry(context)
    init = make_init(context.backbone)
    model.weights[0], model.mean, model.offsets[0] = init.weight, init.mean, init.bias
    algorithm = PPO(replace(context, value=model.value_init()), model.score)
    rollout, _ = algorithm._evaluate(samples)
    scores = model.score(samples).value
    assert scores.std() > 0.01
    expected = (scores - scores.mean()) / scores.std()
    np.testing.assert_allclose(rollout.advantages[:, 0], expected, atol=1e-3)


def of_lengths(context: RunContext, lengths: Sequence[int]) -> list[Sample]:
    """Replies of these many tokens, each of which ends by itself."""
    end = min(context.backbone.stop_ids)
    samples = sampled(context, len(lengths))
    ids = [(*range(20, 19 + length), end) for length in lengths]
    return [
        replace(s, response_ids=i, finish_reason="stop", rollout_logprobs=None)
        for s, i in zip(samples, ids, strict=True)
    ]


def test_a_replys_level_makes_the_value_right_on_average_about_the_others_early_and_late(context: RunContext) -> None:
    value = ValueFunction(context.backbone, make_init(context.backbone), 1e-3)
    samples = of_lengths(context, [3, 10, 6, 10])
    mask = context.backbone.batch(samples).mask
    features, share = value.features(samples, 10), torch.arange(10) / 10
    to_come = 5 - 2 * share + torch.randn(4, 10, generator=torch.Generator().manual_seed(0))
    lines = value.level(features, mask, to_come)
    for row, line in enumerate(lines):
        others = mask.clone()
        others[row] = 0
        missed = to_come - value.values(features, line, mask).detach()
        assert float(masked_mean(missed.abs(), others)) > 0.1  # two numbers do not fit it
        for weight in (torch.ones(10), share):
            np.testing.assert_allclose(masked_mean(missed * weight, others), 0, atol=1e-5)
    better = to_come.clone()
    better[1] += 3  # its own merit does not move its level
    torch.testing.assert_close(value.level(features, mask, better)[1], lines[1])
    assert not torch.allclose(value.level(features, mask, better)[0], lines[0])


def test_the_level_is_the_reward_models_without_others_and_flat_where_these_say_nothing_of_a_slope(
    context: RunContext,
) -> None:
    value = ValueFunction(context.backbone, make_init(context.backbone), 1e-3)
    for lengths, expected in (([4], value.init.bias), ([1, 1, 1], 2.0)):
        samples = of_lengths(context, lengths)
        mask = context.backbone.batch(samples).mask
        features = value.features(samples, mask.shape[1])
        line = value.level(features, mask, value.values(features, torch.tensor(2.0), mask).detach())
        np.testing.assert_allclose(line[:, 0], expected, atol=1e-5)


def test_ending_is_not_taught_by_a_policy_that_gets_better(context: RunContext) -> None:
    """All replies are worth the same, long and short, and all of them more than before."""
    worth = 0.0
    context = replace(context, value=make_init(context.backbone))
    algorithm = PPO(context, lambda samples: Scores(np.full(len(samples), worth, np.float32)))
    algorithm.value.weight.data.zero_()
    samples = of_lengths(context, [2, 5, 10, 3, 8])
    algorithm._evaluate(samples)
    worth = 1.0
    _, metrics = algorithm._evaluate(samples)
    assert metrics["advantage_std"] < 1e-3


def test_a_constant_added_to_every_score_changes_no_weight_of_the_policy(context: RunContext) -> None:
    model = BradleyTerry(context)
    init = make_init(context.backbone)
    model.weights[0], model.mean, model.offsets[0] = init.weight, init.mean, init.bias
    context = replace(context, value=model.value_init())
    ends = []
    for constant in (0.0, 1.0):
        algorithm = PPO(context, lambda samples, c=constant: Scores(model.score(samples).value + c))
        before = algorithm.state_dict()
        algorithm.step(0)
        ends.append(context.backbone.state("policy"))
        algorithm.load_state_dict(before)
    for name, weight in ends[0].items():
        torch.testing.assert_close(weight, ends[1][name], atol=5e-5, rtol=0)


def test_a_value_loss_reaches_no_policy_weight_and_a_policy_loss_no_value_weight(context: RunContext) -> None:
    value = ValueFunction(context.backbone, make_init(context.backbone), 1e-3)
    samples = sampled(context)
    batch = context.backbone.batch(samples)
    predict(value, samples).sum().backward()
    assert all(p.grad is None for p in context.backbone.parameters("policy").values())
    assert all(p.grad is not None for p in value.parameters().values())
    for weight in value.parameters().values():
        weight.grad = None
    context.backbone.logprobs(batch, "policy", TEMPERATURE).sum().backward()
    assert all(p.grad is not None for p in context.backbone.parameters("policy").values())
    assert all(p.grad is None for p in value.parameters().values())
    assert all(p.grad is None for name, p in context.backbone.base.named_parameters() if ".lora_" not in name)

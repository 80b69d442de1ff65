"""The formulas against numbers worked out by hand (each case names what it guards against)."""

from __future__ import annotations

import math

import pytest
import torch

from thumbwise.training.policy import losses
from thumbwise.training.policy.value import adamw

ONES = torch.ones(1, 3)


def assert_close(given: object, expected: object, tolerance: float = 1e-6) -> None:
    torch.testing.assert_close(
        torch.as_tensor(given, dtype=torch.float64),
        torch.as_tensor(expected, dtype=torch.float64),
        atol=tolerance,
        rtol=0,
    )


# --- KL -------------------------------------------------------------------------


def test_kl_estimators() -> None:
    logp, reference = torch.tensor(-1.0), torch.tensor(-1.5)
    assert_close(losses.kl_k1(logp, reference), 0.5)
    assert_close(losses.kl_k2(logp, reference), 0.125)
    assert_close(losses.kl_k3(logp, reference), 0.106531)


def test_k1_and_k3_average_to_the_exact_kl_of_a_categorical() -> None:
    policy = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    reference = torch.tensor([0.6, 0.1, 0.3], dtype=torch.float64)
    exact = (policy * (policy / reference).log()).sum()
    assert_close((policy * losses.kl_k1(policy.log(), reference.log())).sum(), exact)
    assert_close((policy * losses.kl_k3(policy.log(), reference.log())).sum(), exact)


def test_as_a_loss_k2_has_the_gradient_of_kl_and_k1_has_none() -> None:
    reference = torch.log_softmax(torch.tensor([0.3, -0.2, 0.9], dtype=torch.float64), -1)

    def gradient(per_token) -> torch.Tensor:  # type: ignore[no-untyped-def]
        logits = torch.tensor([0.1, 0.7, -0.4], dtype=torch.float64, requires_grad=True)
        logp = torch.log_softmax(logits, -1)
        per_token(logp).backward()
        assert logits.grad is not None
        return logits.grad

    exact = gradient(lambda logp: (logp.exp() * (logp - reference)).sum())
    assert_close(gradient(lambda logp: (logp.exp().detach() * losses.kl_k2(logp, reference)).sum()), exact)
    assert_close(gradient(lambda logp: (logp.exp().detach() * losses.kl_k1(logp, reference)).sum()), torch.zeros(3))


# --- rewards and advantages ---------------------------------------------------------------------------


def test_the_score_lands_on_the_last_response_token_only() -> None:
    kl = torch.tensor([[0.1, 0.2, 0.3, 7.0], [0.5, 9.0, 9.0, 9.0]])
    mask = torch.tensor([[1.0, 1, 1, 0], [1, 0, 0, 0]])
    rewards = losses.token_rewards(torch.tensor([2.0, -1.0]), kl, mask, 0.5)
    assert_close(rewards, [[-0.05, -0.1, -0.15 + 2, 0], [-0.25 - 1, 0, 0, 0]])
    assert_close(rewards.sum(1), [2 - 0.5 * 0.6, -1 - 0.5 * 0.5])


def test_an_empty_response_contributes_nothing_and_stays_finite() -> None:
    mask = torch.tensor([[0.0, 0, 0], [1, 1, 0]])
    rewards = losses.token_rewards(torch.tensor([5.0, 1.0]), torch.zeros(2, 3), mask, 0.1)
    advantages, returns = losses.gae(rewards, torch.ones(2, 3), mask, 1.0, 0.95)
    white = losses.whiten(advantages, mask)
    loss = losses.policy_loss(torch.zeros(2, 3), torch.zeros(2, 3), white, 0.2) * mask
    assert torch.isfinite(loss).all()
    assert_close(rewards[0], [0, 0, 0])
    assert_close(loss[0], [0, 0, 0])
    assert_close(returns[0], [0, 0, 0])
    nothing = torch.zeros(1, 3)
    assert torch.isfinite(losses.whiten(nothing, nothing)).all()


def test_gae_on_response_tokens_only() -> None:
    rewards, values = torch.tensor([[-0.1, 0.2, 1.0]]), torch.tensor([[0.5, 0.4, 0.3]])
    advantages, returns = losses.gae(rewards, values, ONES, 1.0, 0.95)
    assert_close(advantages, [[0.52675, 0.765, 0.7]])
    assert_close(returns, [[1.02675, 1.165, 1.0]])
    padded = [torch.nn.functional.pad(x, (0, 2), value=v) for x, v in ((rewards, 9.0), (values, 7.0), (ONES, 0.0))]
    wide, _ = losses.gae(*padded, 1.0, 0.95)
    assert_close(wide[:, :3], advantages)
    assert_close(wide[:, 3:], [[0.0, 0.0]])


def test_gae_with_lambda_one_is_return_to_go_less_the_value() -> None:
    rewards, values = torch.tensor([[-0.1, 0.2, 1.0]]), torch.tensor([[0.5, 0.4, 0.3]])
    assert_close(losses.gae(rewards, values, ONES, 1.0, 1.0)[0], [[0.6, 0.8, 0.7]])


def test_whitening_is_over_the_mask_with_biased_variance() -> None:
    values, mask = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.ones(2, 2)
    expected = [[-1.341641, -0.447214], [0.447214, 1.341641]]
    assert_close(losses.whiten(values, mask), expected, 1e-5)
    wide = torch.nn.functional.pad(values, (0, 3), value=50.0)
    assert_close(losses.whiten(wide, torch.nn.functional.pad(mask, (0, 3)))[:, :2], expected, 1e-5)
    kept = losses.whiten(torch.tensor([[1.0, 2, 3, 4]]), torch.ones(1, 4), keep_mean=True)
    assert_close(kept, [[1.158359, 2.052786, 2.947214, 3.841640]], 1e-5)


# --- PPO ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss"), [(1.5, 1, -1.2), (0.5, 1, -0.5), (1.5, -1, 1.5), (0.5, -1, 0.8)]
)
def test_policy_clip(ratio: float, advantage: float, loss: float) -> None:
    logp = torch.tensor([math.log(ratio)])
    assert_close(losses.policy_loss(logp, torch.zeros(1), torch.tensor([float(advantage)]), 0.2), [loss])


def test_a_huge_log_ratio_stays_finite() -> None:
    logp = torch.tensor([1000.0, -1000.0], requires_grad=True)
    loss = losses.policy_loss(logp, torch.zeros(2), torch.tensor([-1.0, 1.0]), 0.2)
    assert torch.isfinite(loss).all()
    assert torch.isfinite(losses.kl_k3(logp, torch.zeros(2))).all()


def test_value_clip() -> None:
    one, old, two = torch.tensor([1.0]), torch.tensor([0.5]), torch.tensor([2.0])
    assert_close(losses.value_loss(one, old, two, 0.2), [0.845])
    assert_close(losses.value_loss(one, one, two, 0.2), [0.5])


def test_explained_variance_is_one_for_the_returns_and_zero_for_a_constant() -> None:
    returns = torch.tensor([[1.0, 2.0, 4.0]])
    assert_close(losses.explained_variance(returns, returns, ONES), 1.0)
    assert_close(losses.explained_variance(torch.full((1, 3), 9.0), returns, ONES), 0.0)


def test_adamw_takes_small_first_steps_on_small_gradients() -> None:
    weight = torch.zeros(1, requires_grad=True)
    optimizer = adamw([weight], lr=1.0)
    weight.grad = torch.tensor([1e-6])
    optimizer.step()
    assert_close(weight.detach(), [-0.0909], 1e-4)
    assert optimizer.param_groups[0]["weight_decay"] == 0
    assert optimizer.param_groups[0]["betas"] == (0.9, 0.95)


def test_the_rate_is_annealed_to_a_tenth() -> None:
    assert [losses.annealing(0, 11), losses.annealing(5, 11), losses.annealing(10, 11)] == pytest.approx([1, 0.55, 0.1])
    assert losses.annealing(0, 1) == 1


def test_warm_up_from_a_tenth() -> None:
    assert_close(
        [losses.warmup(0, 10), losses.warmup(10, 10), losses.warmup(99, 10), losses.warmup(0, 0)], [0.1, 1, 1, 1]
    )


@pytest.mark.parametrize(("speed", "power"), [(0.5, 1), (1, 1), (2, 1), (4, 1), (0.5, 0.5), (1, 0.5), (2, 0.5)])
def test_the_pace_brings_kl_to_its_target_whatever_moves_the_policy_how_fast(speed: float, power: float) -> None:
    pace, way = losses.Pace(6.0, 1.2), 0.0
    rates = [losses.warmup(n, 2) * losses.annealing(n, 20) for n in range(20)]
    for n in range(20):
        pace.update(way**2, rates[n:], steer=n >= 2)
        way += speed * math.sqrt(6.0) / 10 * (rates[n] * pace.value) ** power
    assert 4.5 < way**2 < 8.0


def test_the_pace_is_what_goes_the_way_that_is_left_in_the_rates_that_are_left() -> None:
    pace = losses.Pace(9.0, 3.0)
    pace.update(0.0, [1.0, 1.0, 1.0, 1.0], steer=False)
    pace.update(1.0, [1.0, 1.0, 1.0], steer=False)
    assert (pace.value, pace.marks) == (1.0, ((0.0, 0.0), (1.0, 1.0)))
    pace.update(2.25, [1.0, 1.0])  # 1.5 by 2.0, so the 1.5 left take 2.0, and there are 2.0
    assert pace.value == pytest.approx(1.0)
    pace.update(6.25, [1.0])  # 2.5 by 3.0, so the 0.5 left take 0.6 of the 1.0 that is there
    assert pace.value == pytest.approx(0.6)


def test_the_pace_is_raised_by_its_gain_at_most_and_at_most_halved() -> None:
    pace = losses.Pace(9.0, 1.2)
    for kl, value in ((0.0, 1.0), (0.0, 1.2), (0.01, 1.44), (9.0, 0.72), (12.0, 0.36), (9.5, 0.18)):
        pace.update(kl, [1.0, 1.0])
        assert pace.value == pytest.approx(value)
    for _ in range(9):
        pace.update(99.0, [1.0])
    assert pace.value == 0.02
    for _ in range(40):
        pace.update(0.0, [1.0])
    assert pace.value == 4.0
    fixed = losses.Pace(6.0, 1.0)
    for kl in (1.0, 100.0):
        fixed.update(kl, [1.0])
    assert fixed.value == 1.0


def test_the_penalty_of_a_missing_end_answers_at_once_and_sums_up_what_was_lacking() -> None:
    ends = losses.MissingEnd(0.75, 0.2)
    assert [ends.of(rate) for rate in (0.2, 0.1, 0.3, 1.0)] == pytest.approx([0.75, 1.35, 0.15, 0.0])
    ends.update(0.1)
    assert ends.of(0.2) == pytest.approx(1.05)
    for rate, value in {1.0: 0.0, -99.0: 4.0}.items():
        ends.update(rate)
        assert ends.value == value
    steady = losses.MissingEnd(0.75, None)
    steady.update(0.0)
    assert steady.of(0.0) == steady.of(1.0) == 0.75


def test_ends_settle_at_their_usual_rate_whatever_replies_that_are_cut_off_are_worth() -> None:
    """A policy whose log-odds of an end move with what it gains by one: in proportion alone 0.075, 0.025 and 0."""
    for worth in (1.5, 1.8, 3.0):
        ends, odds = losses.MissingEnd(0.75, 0.2), math.log(0.2 / 0.8)
        rates = []
        for _ in range(200):
            rates.append(1 / (1 + math.exp(-odds)))
            odds += 0.3 * (ends.of(rates[-1]) - worth)
            ends.update(rates[-1])
        assert rates[-1] == pytest.approx(0.2, abs=0.005)
        assert min(rates) > 0.03
        assert max(rates) < 0.4


def test_a_penalty_that_was_set_above_what_is_summed_up_stays_where_it_was_set() -> None:
    ends = losses.MissingEnd(6.0, 0.2)
    ends.update(0.0)
    assert ends.value == 6.0
    ends.update(1.0)
    assert ends.value < 4.0


def test_drafts_should_end_at_odds_half_as_high_again_as_the_references() -> None:
    assert [round(losses.ends_wanted(usual), 6) for usual in (0.0, 0.1, 0.4, 1.0)] == [0.0, 0.142857, 0.5, 1.0]

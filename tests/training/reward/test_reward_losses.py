"""The losses of a reward model against numbers worked out by hand."""

from __future__ import annotations

import math

import torch

from thumbwise.training.reward import losses


def assert_close(given: object, expected: object, tolerance: float = 1e-6) -> None:
    torch.testing.assert_close(
        torch.as_tensor(given, dtype=torch.float64),
        torch.as_tensor(expected, dtype=torch.float64),
        atol=tolerance,
        rtol=0,
    )


def test_ranking_loss_is_the_mean_over_all_pairs() -> None:
    assert_close(losses.ranking_loss(torch.tensor([2.0, 1.0, 0.0])), 0.251150)


def test_ranking_two_is_the_pair_loss() -> None:
    scores = torch.tensor([0.3, -1.1])
    assert_close(losses.ranking_loss(scores), losses.pair_loss(scores[0] - scores[1]))


def test_pair_loss_sees_differences_only_and_is_log_two_without_an_opinion() -> None:
    chosen, rejected = torch.tensor([1.0, -2.0]), torch.tensor([0.5, 0.25])
    assert_close(losses.pair_loss((chosen + 5) - (rejected + 5)), losses.pair_loss(chosen - rejected))
    assert_close(losses.pair_loss(torch.zeros(1)), [0.693147])


def test_label_smoothing_has_its_optimum_at_log_odds_of_the_noise() -> None:
    assert_close(losses.pair_loss(torch.tensor(1.0), 0.1), 0.413262)
    difference = torch.tensor(math.log(9), dtype=torch.float64, requires_grad=True)
    losses.pair_loss(difference, 0.1).backward()
    assert abs(float(difference.grad)) < 1e-6
    assert_close(math.log(9), 2.197225)


def test_davidsons_ties() -> None:
    zero = torch.tensor(0.0)
    tie, decided = losses.tie_loss(zero, zero, torch.tensor(1.0)), losses.tie_loss(zero, zero, torch.tensor(0.0))
    left = decided + losses.pair_loss(zero)
    assert_close(torch.exp(-torch.stack([left, left, tie])), [1 / 3] * 3)  # nu = 1, equal scores
    far = losses.tie_loss(torch.tensor([3.0, -3.0]), zero, torch.ones(2))
    assert_close(far[0], far[1])
    assert_close(torch.exp(-far[0]), 1 / (1 + 2 * math.cosh(1.5)))


def test_thumbs_fix_the_level_only_up_to_their_threshold() -> None:
    score, up = torch.tensor([0.4, -1.0]), torch.tensor([1.0, 0.0])
    threshold = torch.tensor(0.2)
    assert_close(losses.thumb_loss(score + 3, up, threshold + 3), losses.thumb_loss(score, up, threshold))
    assert_close(losses.thumb_loss(score, up, threshold)[0], math.log(1 + math.exp(-0.2)))

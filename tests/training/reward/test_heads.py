"""One linear head: what each kind of vote says to it, by known numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest
from toy_votes import votes_on

from thumbwise.contracts import FitReport
from thumbwise.training.data.votes import TIE
from thumbwise.training.evaluation.intervals import clustered_mean
from thumbwise.training.reward.agreement import agreement, as_pairs, foretold
from thumbwise.training.reward.heads import fit_head, observed

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_tie_draws_two_scores_together() -> None:
    features = np.array([[1.0], [0.0]])
    won = votes_on([0] * 8, [1] * 8, [1] * 6 + [0] * 2, ("g",) * 8)
    tied = votes_on([0] * 40, [1] * 40, [1] * 6 + [0] * 2 + [TIE] * 32, ("g",) * 40)
    alone, both = (fit_head(features, votes, 1e-4, 0.0) for votes in (won, tied))
    assert 0 < both.direction[0] < 0.8 * alone.direction[0]
    chance = 1 / (1 + 2 * math.cosh(both.direction[0] / 2 + both.position / 2) / math.exp(both.log_nu))
    assert chance == pytest.approx(32 / 40, abs=0.05)


def test_agreement_with_thumbs_goes_by_the_area_under_the_roc_curve() -> None:
    up = np.array([1.0, 0.0, 0.0, 0.0, 0.0])
    thumbs = votes_on(np.arange(5), np.full(5, -1), up, ("g",) * 5)
    said = np.array([2.0, 3.0, 2.0, 1.0, 0.0])
    agreed = agreement(said, thumbs)
    area, shrink = (0 + 0.5 + 1 + 1) / 4, as_pairs(1 / 5)
    apart = [0.0, *(5 / 4 * (share - area) for share in (0, 0.5, 1, 1))]
    assert agreed == pytest.approx([0.5 + shrink * (area - 0.5 + each) for each in apart])
    assert agreed.mean() == pytest.approx(0.5 + shrink * (area - 0.5))
    assert np.isnan(agreement(said[:1], thumbs.pick(up == 1))).all()
    assert np.isnan(agreement(np.full(5, np.nan), thumbs)).all()


@pytest.mark.parametrize("ups", [0.5, 0.8, 0.95])
@pytest.mark.parametrize(("correlation", "off"), [(0.0, 0.012), (0.4, 0.02), (0.6, 0.03)])
def test_agreement_with_thumbs_is_what_comparisons_of_the_same_replies_would_show(
    ups: float, correlation: float, off: float
) -> None:
    """A reply that is liked and one that is not are further apart than two at random: unscaled it is 8 to 15 higher."""
    rng, n = np.random.default_rng(0), 20_000
    liked = rng.normal(size=n)
    said = correlation * liked + math.sqrt(1 - correlation**2) * rng.normal(size=n)
    thumbs = votes_on(np.arange(n), np.full(n, -1), liked > np.quantile(liked, 1 - ups), ("g",) * n)
    left, right = np.arange(0, n, 2), np.arange(1, n, 2)
    pairs = votes_on(left, right, liked[left] > liked[right], ("g",) * len(left))
    shown = agreement(said[left] - said[right], pairs).mean()
    assert agreement(said, thumbs).mean() == pytest.approx(shown, abs=off)


def test_thumbs_are_held_against_the_same_persons_only() -> None:
    """One likes all cooking except the best dish, one dislikes all sums except the worst: the topic tells nothing."""
    said = np.array([5.0, 6.0, 7.0, 8.0, 1.0, 2.0, 3.0, 4.0])
    good, rater = [1, 1, 1, 0, 1, 0, 0, 0], [0] * 4 + [1] * 4
    thumbs = votes_on(np.arange(8), np.full(8, -1), good, ("g",) * 8, rater, raters=2)
    assert agreement(said, thumbs).mean() == pytest.approx(0.5 + as_pairs(1 / 2) * (0 - 0.5))
    pooled = votes_on(np.arange(8), np.full(8, -1), good, ("g",) * 8)
    assert agreement(said, pooled).mean() == pytest.approx(0.5 + as_pairs(1 / 2) * (9 / 16 - 0.5))


def test_people_with_one_thumb_each_are_held_against_each_other() -> None:
    said, good = np.array([3.0, 2.0, 1.0, 0.0, 5.0, 6.0]), [1, 0, 1, 0, 1, 1]
    thumbs = votes_on(np.arange(6), np.full(6, -1), good, ("g",) * 6, [0, 1, 2, 3, 4, 4], raters=5)
    agreed = agreement(said, thumbs)
    assert np.isnan(agreed[4:]).all()  # rater 4 likes all
    assert agreed[:4].mean() == pytest.approx(0.5 + as_pairs(1 / 2) * (3 / 4 - 0.5))


@pytest.mark.parametrize(("raters", "least", "most"), [(1, 0.9, 1.1), (60, 0.95, 1.5)])
def test_the_error_of_the_agreement_with_thumbs_is_that_of_drawing_them_again(
    raters: int, least: float, most: float
) -> None:
    rng, means, errors = np.random.default_rng(0), [], []
    for _ in range(400):
        said = rng.normal(size=180)
        good = rng.random(180) < 1 / (1 + np.exp(-said))
        who = np.arange(180) % raters
        thumbs = votes_on(np.arange(180), np.full(180, -1), good, ("g",) * 180, who, raters)
        agreed = agreement(said, thumbs)
        mean, error = clustered_mean(agreed[~np.isnan(agreed)].tolist(), np.flatnonzero(~np.isnan(agreed)).tolist())
        means.append(mean)
        errors.append(error)
    assert least < np.mean(errors) / np.std(means) < most


@pytest.mark.parametrize("raters", [1, 200])
@pytest.mark.parametrize("ups", [0.5, 0.95])
def test_thumbs_that_a_coin_foretells_are_no_surer_where_hardly_anybody_gives_one_down(ups: float, raters: int) -> None:
    """What the few thumbs down show of their own spread is half of it where people give a thumb or two each."""
    rng, surprises = np.random.default_rng(0), []
    for _ in range(200):
        thumbs = votes_on(
            np.arange(240), np.full(240, -1), rng.random(240) < ups, tuple(map(str, range(240))),
            rng.integers(0, raters, 240), raters,
        )  # fmt: skip
        fit = foretold(rng.normal(size=240), thumbs, FitReport(0.5, 240))
        assert fit.foretold is not None
        surprises.append((fit.foretold - 0.5) / fit.foretold_error)
    assert 0.8 < np.std(surprises) < 1.25


def test_the_position_bias_adds_to_the_difference() -> None:
    def chance(difference: float, bias: float) -> float:
        return 1 / (1 + math.exp(-(difference + bias)))

    assert chance(1, 0.3) == pytest.approx(0.785835, abs=1e-6)
    assert chance(0, 0.3) == pytest.approx(0.574443, abs=1e-6)
    features = np.zeros((2, 1))  # nothing to tell the replies apart: only the side is left to learn
    votes = votes_on(np.zeros(2000, int), np.ones(2000, int), np.arange(2000) % 10 < 7, ("g",) * 2000)
    head = fit_head(features, votes, 1e-2, 0.0)
    assert chance(0, head.position) == pytest.approx(0.7, abs=0.005)


def test_pairs_say_nothing_about_the_thumbs_threshold() -> None:
    features = np.array([[1.0], [-1.0]])
    votes = votes_on([0, 0], [1, 1], [1, 1], ("a", "b"))
    assert fit_head(features, votes, 1e-2, 0.1).threshold == 0.0


def test_every_rater_has_a_threshold_of_their_own() -> None:
    """Rater 0 gives thumbs up from 1 on, rater 1 from 2 on; one threshold for both would call half of them noise."""
    features = np.linspace(0, 3, 13)[:, None]
    left, rater = np.tile(np.arange(13), 2), np.repeat([0, 1], 13)
    good = features[left, 0] > np.where(rater == 0, 0.9, 2.1)
    votes = votes_on(left, np.full(26, -1), good, ("g",) * 26, rater, raters=2)
    head = fit_head(features, votes, 1e-3, 0.0)
    assert head.offsets is not None
    assert head.offsets[1] - head.offsets[0] > 1.0
    assert (head.margins(features, votes) > 0).mean() > 0.9


def test_equal_scores_count_half_in_accuracy() -> None:
    votes = votes_on([0, 0], [1, 2], [1, 1], ("a", "b"))
    assert agreement(observed(np.array([[1.0], [1.0], [0.0]]), votes)[:, 0], votes).tolist() == [0.5, 1.0]

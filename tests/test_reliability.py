"""Raters against the crowd: who is trusted, who is capped, and what it saves."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from test_reward_model import make_labels, votes_on
from tiny_model import make_tiny_model

from thumbwise.contracts import Labels, RunContext
from thumbwise.plugins.bradley_terry import BradleyTerry
from thumbwise.training.config import TrainSettings
from thumbwise.training.models import Backbone
from thumbwise.training.reliability import LEAST_RATERS, capped, rater_weights, trust
from thumbwise.training.votes import bootstrap

TRAIN = TrainSettings(dtype="float32", rm_heads=2, rm_folds=3, micro_batch=16)
pytestmark = pytest.mark.usefixtures("one_thread")


def margins_of(eta: list[float], votes: int = 40) -> tuple[np.ndarray, np.ndarray]:
    """Held-out margins of 1 nat, of raters who agree with the better reply with probability eta."""
    draws = np.random.default_rng(0)
    agree = np.concatenate([draws.random(votes) < e * 0.73 + (1 - e) * 0.27 for e in eta])
    return np.where(agree, 1.0, -1.0), np.repeat(np.arange(len(eta)), votes)


def test_honest_raters_count_coins_hardly_and_contrary_ones_not_at_all() -> None:
    margins, rater = margins_of([1.0, 0.9, 0.5, 0.0], votes=200)
    weights = trust(margins, rater, 4)
    assert weights[:2].min() > 0.6
    assert weights[2] < 0.3
    assert weights[3] == 0.0


def test_a_rater_of_whom_nothing_is_known_is_trusted() -> None:
    margins, rater = margins_of([1.0], votes=200)
    weights = trust(np.append(margins, 0.0), np.append(rater, 1), 2)
    assert weights.tolist() == pytest.approx([1.0, 1.0])


def test_where_everybody_contradicts_everybody_all_count_alike_instead_of_nobody() -> None:
    rater = np.repeat(np.arange(LEAST_RATERS), 40)
    found = rater_weights(np.ones(len(rater)), rater, LEAST_RATERS, lambda factors: np.full(len(rater), -2.0), 0.5)
    assert found.tolist() == [1.0] * LEAST_RATERS


def test_prompts_are_drawn_again_until_a_vote_has_weight() -> None:
    votes = votes_on([0, 0, 0], [1, 1, 1], [1, 0, 1], ("a", "b", "c")).reweighted(np.array([0.0, 0.0, 1.0]))
    rng = np.random.default_rng(0)
    assert all(bootstrap(votes, rng).weight.any() for _ in range(50))


def test_nobody_has_more_than_the_share() -> None:
    totals = np.array([60.0, 20.0, 10.0, 5.0, 5.0])
    parts = totals * capped(totals, 0.3)
    assert parts.max() / parts.sum() == pytest.approx(0.3)
    assert (parts[2:] == totals[2:]).all()
    assert (capped(np.ones(10), 0.3) == 1).all()
    equal = totals * capped(totals, 0.01)  # under an equal part nobody can come
    np.testing.assert_allclose(equal / equal.sum(), 0.2, atol=1e-6)


def test_a_few_people_are_not_held_against_each_other() -> None:
    def never(factors: np.ndarray) -> np.ndarray:
        raise AssertionError("no head needs to be fitted")

    few = LEAST_RATERS - 1
    assert rater_weights(np.ones(8), np.arange(8) % few, few, never, 0.1).tolist() == [1.0] * few


@pytest.mark.slow
def test_votes_against_the_crowd_are_found_and_cost_less(tmp_path_factory: pytest.TempPathFactory) -> None:
    backbone = Backbone(make_tiny_model(tmp_path_factory.mktemp("model")), TRAIN)
    context = RunContext(backbone, TRAIN, 0.7, 8, (), (), tmp_path_factory.mktemp("run"))
    turned = {"left": "right", "right": "left"}
    made = [
        replace(c, choice=turned[c.choice]) if c.user in ("u0", "u1") else c
        for c in make_labels(180, ties=0).comparisons
    ]
    clean = make_labels(400, ties=0).comparisons[200:]

    def accuracy(on: bool) -> tuple[float, int]:
        train = TRAIN.model_copy(update={"rm_rater_weights": on})
        model = BradleyTerry(replace(context, train=train))
        report = model.fit(Labels(tuple(made)), seed=0)
        sides = [model.score([getattr(c, side) for c in clean]).value for side in ("left", "right")]
        right = np.array([c.choice == "left" for c in clean])
        return float(((sides[0] > sides[1]) == right).mean()), report.details["distrusted_raters"]

    (with_defence, found), (without, _) = accuracy(True), accuracy(False)
    assert found == 2
    assert with_defence > without + 0.02

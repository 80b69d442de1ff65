"""Raters against the crowd: who is trusted, who is capped, and what it saves."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from tiny_model import make_tiny_model
from toy_votes import make_labels, votes_on

from thumbwise.contracts import Labels, RunContext
from thumbwise.plugins.bradley_terry import BradleyTerry
from thumbwise.settings.training import TrainSettings
from thumbwise.training.backbone.backbone import Backbone
from thumbwise.training.data.people import FEW, LEAST_CROWD, capped
from thumbwise.training.data.votes import Votes, bootstrap
from thumbwise.training.reward.reliability import Camps, rater_weights, trust

TRAIN = TrainSettings(dtype="float32", rm_heads=2, rm_folds=3, micro_batch=16)
pytestmark = pytest.mark.usefixtures("one_thread")


def margins_of(eta: list[float], votes: int = 40) -> tuple[np.ndarray, np.ndarray]:
    """Held-out margins of 1 nat, of raters who agree with the better reply with probability eta."""
    draws = np.random.default_rng(0)
    agree = np.concatenate([draws.random(votes) < e * 0.73 + (1 - e) * 0.27 for e in eta])
    return np.where(agree, 1.0, -1.0), np.repeat(np.arange(len(eta)), votes)


def test_honest_raters_count_coins_hardly_and_contrary_ones_not_at_all() -> None:
    margins, rater = margins_of([1.0, 0.9, 0.5, 0.0], votes=200)
    beliefs = trust(margins, np.zeros(len(margins)), rater, 4, np.ones(len(margins)))
    assert beliefs[:2].min() > 0.6
    assert beliefs[2] < 0.3
    assert beliefs[3] < -1


def test_a_rater_of_whom_nothing_is_known_is_trusted() -> None:
    margins, rater = margins_of([1.0], votes=200)
    beliefs = trust(np.append(margins, 0.0), np.zeros(len(margins) + 1), np.append(rater, 1), 2, np.ones(201))
    assert beliefs[1] == pytest.approx(1.0)
    assert beliefs[0] > 1


def test_whose_thumbs_are_nearly_all_up_is_no_coin_for_it() -> None:
    margins, rater = margins_of([1.0], votes=200)
    easy = np.tile([1.0, -1.0], 20)  # as many on better replies than on worse ones
    all_margins, who = np.concatenate([margins, easy]), np.append(rater, np.ones(len(easy), np.int64))
    lean, ones = np.where(who == 1, 4.0, 0.0), np.ones(len(who))
    assert trust(all_margins, lean, who, 2, ones)[1] > 0.8
    assert trust(all_margins, np.zeros(len(who)), who, 2, ones)[1] < 0.6


def test_the_pairs_of_a_ranking_are_no_more_votes_than_it_is() -> None:
    margins, rater = margins_of([0.7, 1.0, 1.0], votes=60)
    once = trust(margins, np.zeros(180), rater, 3, np.ones(180))
    halves = trust(np.tile(margins, 2), np.zeros(360), np.tile(rater, 2), 3, np.full(360, 0.5))
    assert halves == pytest.approx(once)
    draws = np.random.default_rng(0)
    who = np.repeat(np.arange(RATERS), 30)  # five rankings of four each, six pairs a ranking, and some of it wrong
    found, pairs = [], list(combinations(range(4), 2))
    for _ in range(10):
        drafts = draws.normal(size=(len(who) // 6, 4, 60))
        told = drafts @ draws.normal(size=60)
        ranked = told + draws.normal(size=told.shape) * told.std() * 2  # what no feature tells, and noise
        seen = np.stack([drafts[:, a] - drafts[:, b] for a, b in pairs], 1).reshape(-1, 60)
        good = np.stack([ranked[:, a] > ranked[:, b] for a, b in pairs], 1).reshape(-1)
        index = np.arange(len(who))
        votes = votes_on(index, index + len(who), good, tuple(str(i // 6) for i in index), who, RATERS)
        found.append(rater_weights(seen, votes.reweighted(np.full(len(who), 0.5)), share=0.25))
    assert np.mean(found) > 0.9  # 0.85 where each pair is a vote: honest people would be doubted


RATERS, EACH, SIZE = 20, 30, 300


def crowd(seed: int, contrary: int, thumbs: bool = False) -> tuple[np.ndarray, Votes]:
    """What votes see, and votes of which a sixth are wrong and those of the first `contrary` raters all."""
    draws = np.random.default_rng(seed)
    rater = np.repeat(np.arange(RATERS), EACH)
    seen = draws.normal(size=(len(rater), SIZE)) * np.linspace(2, 0.1, SIZE)
    liked = seen @ draws.normal(size=SIZE)
    if thumbs:  # each of them has a threshold of their own
        liked += liked.std() * np.linspace(-1.5, 1.5, RATERS)[draws.permutation(RATERS)][rater]
    good = (liked > 0) != ((rater < contrary) | (draws.random(len(rater)) < 1 / 6))
    index = np.arange(len(rater))
    right = np.full(len(rater), -1) if thumbs else index + len(rater)
    return seen, votes_on(index, right, good, tuple(map(str, index)), rater, RATERS)


@pytest.mark.parametrize(("thumbs", "contrary"), [(False, 4), (True, 2)])
def test_contrary_raters_are_found_where_all_votes_together_say_nearly_nothing(thumbs: bool, contrary: int) -> None:
    found = [rater_weights(*crowd(seed, contrary, thumbs), share=0.25) for seed in range(10)]
    assert np.mean([weights[:contrary].mean() for weights in found]) < 0.15
    assert np.mean([weights[contrary:].mean() for weights in found]) > 0.85


@pytest.mark.parametrize("thumbs", [False, True])
def test_an_honest_crowd_keeps_its_weight(thumbs: bool) -> None:
    assert np.mean([rater_weights(*crowd(seed, 0, thumbs), share=0.25).mean() for seed in range(10)]) > 0.85


def test_of_two_camps_none_is_dropped_and_a_run_ends_with_their_names() -> None:
    seen, votes = crowd(0, 9)
    votes = replace(votes, names=tuple(f"browser:{n}" for n in range(RATERS)))
    assert rater_weights(seen, votes, share=0.25).tolist() == [1.0] * RATERS
    with pytest.raises(Camps, match="9 of 20 people with 10 votes or more") as caught:
        rater_weights(seen, votes, share=0.25, strict=True)
    assert "browser:0, browser:1" in str(caught.value)
    assert "train.rm_rater_weights" in str(caught.value)


def test_one_client_alone_ends_no_run_though_it_is_a_program_and_new_browsers_too() -> None:
    for seed in range(5):
        draws = np.random.default_rng(seed)
        rater = np.repeat(np.arange(8), EACH)
        seen = draws.normal(size=(len(rater), SIZE)) * np.linspace(2, 0.1, SIZE)
        good = (seen @ draws.normal(size=SIZE) > 0) != (rater >= 6)
        index = np.arange(len(rater))
        votes = votes_on(index, index + len(rater), good, tuple(map(str, index)), rater, 8)
        names = (*(f"browser:{n}" for n in range(6)), "programs", "browser:new")
        weights = rater_weights(seen, replace(votes, names=names), share=0.25, strict=True)
        assert weights[6:].tolist() == [0.0, 0.0]
        assert weights[:6].mean() > 0.85


def one_against(seed: int, people: int, against: int) -> tuple[np.ndarray, Votes]:
    """`people` with thirty votes each, and one person (the last) with `against` votes, all of them wrong."""
    draws = np.random.default_rng(seed)
    rater = np.append(np.repeat(np.arange(people), EACH), np.full(against, people))
    seen = draws.normal(size=(len(rater), SIZE)) * np.linspace(2, 0.1, SIZE)
    good = (seen @ draws.normal(size=SIZE) > 0) != ((rater == people) | (draws.random(len(rater)) < 1 / 6))
    index = np.arange(len(rater))
    return seen, votes_on(index, index + len(rater), good, tuple(map(str, index)), rater, people + 1)


def test_one_who_gave_most_of_the_votes_is_silenced_by_many_people_but_not_by_a_handful() -> None:
    for seed in range(5):
        seen, votes = one_against(seed, people=20, against=200)
        given = np.append(np.full(20, EACH), 1200.0)  # a thousand of them were set aside
        weights = rater_weights(seen, replace(votes, given=given), share=0.25, strict=True)
        assert weights[-1] == 0.0
        assert weights[:-1].mean() > 0.85
        seen, votes = one_against(seed, people=4, against=50)
        given = np.append(np.full(4, EACH), 5000.0)
        assert rater_weights(seen, replace(votes, given=given), share=0.25, strict=True)[-1] > 0.5


def test_guests_with_a_vote_each_silence_nobody() -> None:
    """Of a hundred that all contradict the few who vote, none has ten votes."""
    found = []
    for seed in range(5):
        seen, votes = one_against(seed, people=5, against=100)
        guests = np.where(votes.rater == 5, 5 + np.arange(len(votes.rater)) - 5 * EACH, votes.rater)
        found.append(rater_weights(seen, replace(votes, rater=guests, raters=105), share=0.25, strict=True)[:5].mean())
    assert np.mean(found) > 0.7


def test_replies_that_are_all_alike_say_nothing_of_anybody() -> None:
    seen, votes = crowd(0, 4)
    assert rater_weights(np.zeros_like(seen), votes, 0.25) == pytest.approx(np.ones(RATERS))


def test_one_who_votes_more_than_all_others_is_not_the_crowd() -> None:
    seen, votes = crowd(1, 1)
    weights = rater_weights(seen, votes.reweighted(np.where(votes.rater == 0, 40.0, 1.0)), 0.25)
    assert weights[0] == 0.0
    assert weights[1:].mean() > 0.85


def test_prompts_are_drawn_again_until_a_vote_has_weight() -> None:
    votes = votes_on([0, 0, 0], [1, 1, 1], [1, 0, 1], ("a", "b", "c")).reweighted(np.array([0.0, 0.0, 1.0]))
    rng = np.random.default_rng(0)
    assert all(bootstrap(votes, rng).weight.any() for _ in range(50))


def test_nobody_has_more_than_the_share() -> None:
    totals = np.array([60.0, 20.0, 10.0, 5.0, 5.0])
    parts = totals * capped(totals, 0.3, 0)
    assert parts.max() / parts.sum() == pytest.approx(0.3)
    assert (parts[2:] == totals[2:]).all()
    assert (capped(np.ones(10), 0.3, 0) == 1).all()
    equal = totals * capped(totals, 0.01, 0)  # under an equal part nobody can come
    np.testing.assert_allclose(equal / equal.sum(), 0.2, atol=1e-6)


def test_a_few_guests_with_a_vote_each_do_not_outweigh_the_one_who_votes() -> None:
    totals = np.array([400.0, 1.0, 1.0, 1.0, 1.0])
    assert (totals * capped(totals, 0.25, FEW)).tolist() == [FEW, 1, 1, 1, 1]


def test_a_few_people_are_not_held_against_each_other() -> None:
    seen, votes = crowd(0, 1)
    few = votes.pick(votes.rater < LEAST_CROWD - 1)
    weights = rater_weights(seen[: len(few.left)], replace(few, raters=LEAST_CROWD - 1), 0.1)
    assert weights.tolist() == [1.0] * (LEAST_CROWD - 1)


@pytest.mark.slow
def test_votes_against_the_crowd_are_found_and_cost_less(tmp_path_factory: pytest.TempPathFactory) -> None:
    backbone = Backbone(make_tiny_model(tmp_path_factory.mktemp("model")), TRAIN)
    context = RunContext(backbone, TRAIN, 0.7, 8, (), (), tmp_path_factory.mktemp("run"))
    turned = {"left": "right", "right": "left"}
    made = [
        replace(c, user=f"u{n % 12}", choice=turned[c.choice] if n % 12 < 2 else c.choice)
        for n, c in enumerate(make_labels(180, ties=0).comparisons)
    ]
    clean = make_labels(400, ties=0).comparisons[200:]

    def accuracy(on: bool) -> tuple[float, int]:
        train = TRAIN.model_copy(update={"rm_rater_weights": on})
        model = BradleyTerry(replace(context, train=train))
        report = model.fit(Labels(tuple(made)), seed=0)
        sides = [model.score([getattr(c, side) for c in clean]).value for side in ("left", "right")]
        right = np.array([c.choice == "left" for c in clean])
        return float(((sides[0] > sides[1]) == right).mean()), len(report.details["doubted"])

    (with_defence, found), (without, _) = accuracy(True), accuracy(False)
    assert found == 2
    assert with_defence > without + 0.02

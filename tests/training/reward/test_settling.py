"""Young accounts: together one person, unless what settled accounts teach bears their votes out."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from toy_votes import votes_on

from thumbwise.training.data.people import FEW, NEW_ACCOUNTS, alone, vote_limits, who
from thumbwise.training.data.votes import Votes
from thumbwise.training.reward.reliability import rater_weights
from thumbwise.training.reward.settling import borne_out, settled

EACH, SIZE = 30, 40
OLD, NEW = 12, 18


def team(right: list[float], young: int, seed: int = 0) -> tuple[np.ndarray, Votes]:
    """What votes see, and the votes of people who are right with these probabilities; the last `young` are young."""
    draws = np.random.default_rng(seed)
    rater = np.repeat(np.arange(len(right)), EACH)
    seen = draws.normal(size=(len(rater), SIZE))
    better = seen @ np.random.default_rng(9).normal(size=SIZE) > 0
    good = np.where(draws.random(len(rater)) < np.array(right)[rater], better, ~better)
    index = np.arange(len(rater))
    groups = tuple(map(str, index))
    votes = votes_on(index, index + len(rater), good, groups, rater, len(right))
    names = tuple(f"usr_{number}" for number in range(len(right)))
    when = tuple(f"fb_{number:05}" for number in index)
    return seen, replace(votes, names=names, when=when, young=frozenset(names[len(right) - young :]))


def test_thirty_contrary_young_accounts_are_one_person_with_one_part() -> None:
    seen, votes = team([5 / 6] * OLD + [0.0] * 30, young=30)
    found = settled(seen, votes, 0.1, 60)
    assert found.names[-1] == NEW_ACCOUNTS
    theirs = found.rater == found.raters - 1
    assert 0 < theirs.sum() <= FEW
    assert (~theirs).sum() == OLD * EACH
    assert found.counts[-1] == theirs.sum()
    kept = np.isin(np.array(votes.when), found.when)
    weights = rater_weights(seen[kept], found, 0.1, strict=True)  # no two camps: they are one of thirteen people
    assert weights[-1] == 0.0
    assert weights[:OLD].min() > 0.5


def test_honest_young_accounts_are_borne_out_and_lose_nothing() -> None:
    seen, votes = team([5 / 6] * OLD + [1.0] * NEW, young=NEW)
    passed = borne_out(seen, votes, votes.young, 0.1)[OLD:]
    assert passed.mean() > 0.8
    found = settled(seen, votes, 0.1, 60)
    assert len(found.left) >= len(votes.left) - FEW
    assert np.array_equal(settled(seen, votes, 0.1, 60).rater, found.rater)


def test_coins_pass_seldom_and_contrary_ones_never() -> None:
    coins = [borne_out(*given, given[1].young, 0.1)[OLD:].mean() for given in
             (team([5 / 6] * OLD + [0.5] * NEW, NEW, seed) for seed in range(20))]  # fmt: skip
    assert np.mean(coins) < 0.1
    seen, votes = team([5 / 6] * OLD + [0.1] * NEW, NEW)
    assert not borne_out(seen, votes, votes.young, 0.1)[OLD:].any()


def test_in_the_first_week_everybody_is_young_and_everybody_counts() -> None:
    seen, votes = team([5 / 6] * OLD, young=OLD)
    assert settled(seen, votes, 0.1, 60) is votes
    seen, votes = team([5 / 6] * OLD, young=0)
    assert settled(seen, votes, 0.1, 60) is votes


def test_beside_one_settled_account_the_young_ones_may_have_what_training_needs() -> None:
    seen, votes = team([5 / 6] + [0.5] * 10, young=10)
    found = settled(seen, votes, 0.1, 60)
    assert 50 <= (found.rater == found.raters - 1).sum() <= 60
    assert (found.rater == 0).sum() == EACH


def test_a_young_account_with_a_few_votes_is_not_borne_out_yet() -> None:
    seen, votes = team([5 / 6] * OLD + [1.0], young=1)
    few = votes.pick((votes.rater < OLD) | (np.arange(len(votes.rater)) % EACH < 5))
    few = replace(few, given=np.bincount(few.rater, minlength=few.raters).astype(float))
    kept = np.isin(np.array(votes.when), few.when)
    assert not borne_out(seen[kept], few, few.young, 0.1)[OLD]


def test_young_accounts_take_nothing_from_the_parts_of_the_others() -> None:
    old = {f"usr_{n}": 200.0 for n in range(4)}
    young = {f"usr_new{n}": 80.0 for n in range(30)}
    counts = {name: int(weight) for name, weight in (old | young).items()}
    limits = vote_limits(old | young, counts, 0.1, 60, frozenset(young))
    assert {limits[name] for name in old} == {200.0}  # four people are no crowd
    assert vote_limits(old | young, counts, 0.1, 60)["usr_0"] == 200.0
    more = old | {"usr_9": 20.0}
    counts = {name: int(weight) for name, weight in (more | young).items()}
    limits = vote_limits(more | young, counts, 0.1, 60, frozenset(young))
    assert {limits[name] for name in young} == {FEW}


def test_prompts_and_corrections_of_young_accounts_are_one_persons_beside_settled_ones() -> None:
    counts = {"usr_old": 10, "usr_a": 10, "usr_b": 10}
    young = frozenset({"usr_a", "usr_b"})
    assert {who(counts, young)(name) for name in counts} == {"usr_old", NEW_ACCOUNTS}
    assert {who(counts, young | {"usr_old"})(name) for name in counts} == set(counts)
    assert not alone(counts)

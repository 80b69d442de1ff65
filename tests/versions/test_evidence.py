"""The tests that versions are judged by: their formulas, that they keep their level at every look, and their power."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import pytest

from thumbwise.versions.evidence import Preferences, Rates, Stream


def tally(outcomes: Iterable[tuple[bool, bool]]) -> Rates:
    found = Rates()
    for outcome in outcomes:
        found.add(*outcome)
    return found


def test_the_evidence_is_the_product_of_e_variables_over_blocks() -> None:
    # Two blocks: nothing is known before the first, so it is worth 1. After it stable has 0 of 2 (rate 0.5 / 3) and
    # the canary 1 of 1 (rate (1 + 2 / 6) / 3 = 4 / 9); the second holds one turn of each, both rates' mean is 11 / 36.
    outcomes = [(False, False), (False, False), (True, True), (False, False), (True, True)]
    worth = (4 / 9) / (11 / 36) * (1 - 1 / 6) / (1 - 11 / 36)
    found = tally(outcomes)
    assert found.p == pytest.approx(1 / worth)
    assert (found.all.turns, found.all.bad, found.all.old_turns, found.all.old_bad) == (2, 2, 3, 0)
    assert tally([*outcomes, (False, True)]).p == found.p  # a block that is not over
    assert tally([*outcomes, (False, True), (True, False)]).p == found.p  # the smallest that was reached
    assert tally([(True, True)] * 50).p == 1.0  # nothing to compare with


@pytest.mark.parametrize(("canary_rate", "stable_rate"), [(0.05, 0.05), (0.3, 0.3), (0.1, 0.3)])
def test_a_canary_that_is_no_worse_is_taken_back_as_seldom_as_the_level_says_however_often_one_looks(
    canary_rate: float, stable_rate: float
) -> None:
    draws, runs, turns, level = np.random.default_rng(0), 800, 300, 0.1
    taken = 0
    for _ in range(runs):
        arm, chance = draws.random(turns) < 0.2, draws.random(turns)
        bad = chance < np.where(arm, canary_rate, stable_rate)
        taken += tally(zip(arm.tolist(), bad.tolist(), strict=True)).p <= level
    assert taken / runs <= level + 3 * math.sqrt(level * (1 - level) / runs)


def test_a_canary_that_fails_often_is_found_out_within_a_few_dozen_turns() -> None:
    draws, needed = np.random.default_rng(1), []
    for _ in range(50):
        outcomes = [(arm, bool(draws.random() < (0.4 if arm else 0.02))) for arm in (draws.random(400) < 0.2).tolist()]
        needed.append(next(n for n in range(1, 401) if tally(outcomes[:n]).p <= 0.025))
    assert np.median(needed) < 100  # 20 of them the canary's


def test_the_evidence_of_comparisons_is_a_bet_against_one_half() -> None:
    found = Preferences()
    for lost in (True, True, False):
        found.add(True, lost)
    # Nothing is known before the first: rate 1 / 2. Then 2 / 3, then 3 / 4, of which the one that was won takes away.
    assert found.p == pytest.approx(1 / (2 * 2 / 3))
    assert (found.pairs, found.lost) == (3, 2)


@pytest.mark.parametrize("preferred", [0.5, 0.3])
def test_a_version_that_is_no_worse_loses_its_comparisons_as_seldom_as_the_level_says(preferred: float) -> None:
    draws, runs, level, taken = np.random.default_rng(2), 800, 0.1, 0
    for _ in range(runs):
        found = Preferences()
        for lost in (draws.random(300) < preferred).tolist():
            found.add(True, lost)
        taken += found.p <= level
    assert taken / runs <= level + 3 * math.sqrt(level * (1 - level) / runs)


def test_a_version_that_loses_three_comparisons_of_four_is_found_out_within_some_dozens() -> None:
    draws, needed = np.random.default_rng(3), []
    for _ in range(50):
        found, n = Preferences(), 0
        while found.p > 0.05:
            found.add(True, bool(draws.random() < 0.75))
            n += 1
        needed.append(n)
    assert np.median(needed) < 60


def test_what_people_think_counts_where_it_would_without_any_one_of_them() -> None:
    stream = Stream(Preferences, 50)
    for n in range(20):
        stream.add("one", True, True)
        stream.add(f"another-{n}", True, n % 4 > 0)
    assert stream.test.p < 0.05
    assert stream.depends_on_one_person(0.05)
    for n in range(12):
        stream.add(f"third-{n}", True, True)
    assert not stream.depends_on_one_person(0.05)

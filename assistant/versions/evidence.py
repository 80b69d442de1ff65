"""Anytime-valid tests of whether a new version does worse than an old one, and how much one person may say in them.

Two tests. `Rates` compares how often something bad happens with each version; the null hypothesis is that the new
one's rate is at most the old one's. The evidence against it is the product of E-variables for two proportions over
blocks of turns (Turner, Ly and Grünwald 2024, "Generic E-variables for exact sequential k-sample tests that allow for
optional stopping", JSPI 230). `Preferences` is of blind comparisons of both; the null hypothesis is that the old one
is preferred in at most half of them. By Ville's inequality such a product ever reaches 1 / a with a probability of at
most a, however often one looks, so it may be looked at after every turn and acted on at once. Neither needs a library:
the formulas are of a few terms.

A `Stream` feeds a test with what people met. Of one person only the first few outcomes count, and what people think
counts only where it would without any one of them.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

PRIOR = 2.0
"""Turns at the old version's rate, or at one half, that a new version's rate starts from."""


class Test(Protocol):
    """Evidence that the new version is worse."""

    p: float
    """The smallest p-value that was reached."""

    def add(self, of_new: bool, bad: bool) -> None:
        """Take one outcome more: of the new version, or of the old one; bad for it, or not."""


T = TypeVar("T", bound=Test)


@dataclass
class _Counts:
    """Turns of both versions, and those that were bad."""

    turns: int = 0
    bad: int = 0
    old_turns: int = 0
    old_bad: int = 0

    def count(self, of_new: bool, bad: bool) -> None:
        if of_new:
            self.turns, self.bad = self.turns + 1, self.bad + bad
        else:
            self.old_turns, self.old_bad = self.old_turns + 1, self.old_bad + bad


class Rates:
    """Whether the new version's rate of bad turns is above the old one's."""

    def __init__(self) -> None:
        self.p = 1.0
        self.all = _Counts()
        self._known, self._block, self._evidence = _Counts(), _Counts(), 0.0

    def add(self, of_new: bool, bad: bool) -> None:
        """Take one turn more.

        A block ends as soon as it holds turns of both versions, and is scored with the rates known before it, so each
        factor's mean is at most 1 where the new version is no worse.
        """
        for counts in (self.all, self._block):
            counts.count(of_new, bad)
        if self._block.turns and self._block.old_turns:
            self._evidence += _log_e(self._block, *_rates(self._known))
            self.p = min(self.p, math.exp(-max(self._evidence, 0.0)))
            self._known, self._block = _sum(self._known, self._block), _Counts()

    def said(self, what: str) -> str:
        """Both rates in words."""
        counts = self.all
        return f"{counts.bad} of {counts.turns} {what}, beside {counts.old_bad} of {counts.old_turns} of stable's"


def _sum(one: _Counts, other: _Counts) -> _Counts:
    return _Counts(
        one.turns + other.turns, one.bad + other.bad, one.old_turns + other.old_turns, one.old_bad + other.old_bad
    )


def _rates(known: _Counts) -> tuple[float, float]:
    """Plug-in rates of new and old, the new one's at least the old one's: the alternative is one-sided."""
    old = (known.old_bad + 0.5) / (known.old_turns + 1)
    new = (known.bad + PRIOR * old) / (known.turns + PRIOR)
    return max(new, old), old


def _log_e(block: _Counts, new: float, old: float) -> float:
    """log of prod p_new(y) prod p_old(y) / prod p_pooled(y); pooled is the mean of both rates over the block."""
    pooled = (block.turns * new + block.old_turns * old) / (block.turns + block.old_turns)
    return (
        block.bad * math.log(new / pooled)
        + (block.turns - block.bad) * math.log((1 - new) / (1 - pooled))
        + block.old_bad * math.log(old / pooled)
        + (block.old_turns - block.old_bad) * math.log((1 - old) / (1 - pooled))
    )


class Preferences:
    """Whether the old version is preferred in more than half of the blind comparisons with a winner."""

    def __init__(self) -> None:
        self.p = 1.0
        self.pairs = self.lost = 0
        self._evidence = 0.0

    def add(self, of_new: bool, bad: bool) -> None:
        """Take one comparison more; `bad` where the old version was preferred. Always of both versions."""
        rate = max((self.lost + PRIOR / 2) / (self.pairs + PRIOR), 0.5)
        self._evidence += math.log(2 * (rate if bad else 1 - rate))
        self.p = min(self.p, math.exp(-max(self._evidence, 0.0)))
        self.pairs, self.lost = self.pairs + 1, self.lost + bad


class Stream(Generic[T]):
    """Outcomes of one kind in the order in which they came; of each person and version the first `each`."""

    def __init__(self, make: Callable[[], T], each: int) -> None:
        self.make, self.each = make, each
        self.test = make()
        self.outcomes: list[tuple[str, bool, bool]] = []  # person, of the new version, bad
        self.by: Counter[tuple[str, bool]] = Counter()
        self._rested: tuple[int, float, bool] = (0, 0.0, False)  # outcomes, limit, what `rests_on_one` said
        self._suspect = ""

    def add(self, person: str, of_new: bool, bad: bool) -> None:
        """Take one outcome more, unless this person has had their share."""
        if self.by[person, of_new] < self.each:
            self.by[person, of_new] += 1
            self.outcomes.append((person, of_new, bad))
            self.test.add(of_new, bad)

    def people(self, of_new: bool = True) -> set[str]:
        """Who had a part in it with the new version, or with the old one."""
        return {person for person, which in self.by if which is of_new}

    def rests_on_one(self, limit: float) -> bool:
        """Whether the evidence would not reach `limit` without some one person."""
        if self._rested[:2] != (len(self.outcomes), limit):
            heaviest = [person for person, _ in Counter(person for person, *_ in self.outcomes).most_common()]
            found = next((who for who in [self._suspect, *heaviest] if self._without(who).p > limit), None)
            self._suspect = found or ""
            self._rested = (len(self.outcomes), limit, found is not None)
        return self._rested[2]

    def _without(self, who: str) -> T:
        test = self.make()
        for person, of_new, bad in self.outcomes:
            if person != who:
                test.add(of_new, bad)
        return test

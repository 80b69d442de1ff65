"""Anytime-valid tests of whether a new version is worse than an old one, and the limit on one person's part in them.

**The guarantee.** Each test keeps a process S that starts at 1. Under the null hypothesis (the new version is no
worse) S is a test supermartingale: given the past, each factor has an expectation of at most 1 (it is an *E-variable*).
By Ville's inequality P(S ever reaches 1 / alpha) <= alpha. So `p`, which is 1 over the largest S so far, is an
*anytime-valid* p-value. It may be looked at after every turn, and acted on at once, and the probability of a false
alarm over the whole life of the test is still at most alpha (optional stopping). `log_s` is log S.

**Two proportions** (`Rates`): Turner, Ly and Grünwald (2024), "Generic E-variables for exact sequential k-sample tests
that allow for optional stopping", Journal of Statistical Planning and Inference 230. Group a is the new version, group
b the old one, and an outcome is 1 where the turn was bad. The null hypothesis is theta_a <= theta_b. Outcomes come in
blocks of n_a and n_b. The E-variable of a block is

    S_j = prod p(y; theta_a*) prod p(y; theta_b*) / prod p(y; theta_0),   theta_0 = (n_a theta_a* + n_b theta_b*) / n

with the products over group a, over group b, and over both. theta_a* >= theta_b* is the alternative, estimated from the
blocks before. The paper shows E[S_j] <= 1 for theta_a = theta_b. It holds for theta_a < theta_b too: log E[S_j] =
n_a log(1 + (theta_a - theta_0) d_a / v) + n_b log(1 - (theta_b - theta_0) d_b / v), where d_a = theta_a* - theta_0, d_b
= theta_0 - theta_b*, v = theta_0 (1 - theta_0) and n_a d_a = n_b d_b; by log(1 + x) <= x that is at most
n_a d_a (theta_a - theta_b) / v <= 0.

**Blind comparisons** (`Preferences`): the outcome is 1 where the old version was preferred, and the null hypothesis is
theta <= 1/2. The E-variable of a comparison is p(y; theta*) / p(y; 1/2) with theta* >= 1/2, a bet against one half
(Ramdas, Grünwald, Vovk and Shafer 2023, "Game-theoretic statistics and safe anytime-valid inference", Statistical
Science 38).

No library is needed: the formulas have a few terms. A `Stream` feeds a test with what people met.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

PRIOR = 2.0
"""Weight of the prior of the new version's estimate, in outcomes: at the old one's rate, or at one half."""


class Test(Protocol):
    """Evidence that the new version is worse."""

    p: float
    """The anytime-valid p-value: 1 over the largest S that was reached."""

    def add(self, of_new: bool, bad: bool) -> None:
        """Take one more outcome: of the new version or of the old one; bad for it or not."""


T = TypeVar("T", bound=Test)


@dataclass
class _Counts:
    """Outcomes of both versions (n_a and n_b in the paper), and how many of them were bad."""

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
    """Whether the new version's rate of bad turns is above the old one's: theta_a > theta_b."""

    def __init__(self) -> None:
        self.p = 1.0
        self.log_s = 0.0
        self.all = _Counts()
        self._past, self._block = _Counts(), _Counts()

    def add(self, of_new: bool, bad: bool) -> None:
        """Take one more turn.

        A block ends as soon as it holds turns of both versions. When it ends depends on who was given which version,
        and not on the outcomes, as the E-variable needs.
        """
        for counts in (self.all, self._block):
            counts.count(of_new, bad)
        if self._block.turns and self._block.old_turns:
            self.log_s += _log_e(self._block, *_alternative(self._past))
            self.p = min(self.p, math.exp(-max(self.log_s, 0.0)))
            self._past, self._block = _sum(self._past, self._block), _Counts()

    def said(self, what: str) -> str:
        """Both rates in words."""
        counts = self.all
        return f"{counts.bad} of {counts.turns} {what}, beside {counts.old_bad} of {counts.old_turns} of stable's"


def _sum(one: _Counts, other: _Counts) -> _Counts:
    return _Counts(
        one.turns + other.turns, one.bad + other.bad, one.old_turns + other.old_turns, one.old_bad + other.old_bad
    )


def _alternative(past: _Counts) -> tuple[float, float]:
    """theta_a* and theta_b*: posterior means given the blocks before, and theta_a* is at least theta_b* (one-sided).

    theta_b* has the prior Beta(1/2, 1/2). theta_a* has a prior of weight PRIOR at theta_b*.
    """
    theta_b = (past.old_bad + 0.5) / (past.old_turns + 1)
    theta_a = (past.bad + PRIOR * theta_b) / (past.turns + PRIOR)
    return max(theta_a, theta_b), theta_b


def _log_e(block: _Counts, theta_a: float, theta_b: float) -> float:
    """log S_j, the E-variable of one block."""
    theta_0 = (block.turns * theta_a + block.old_turns * theta_b) / (block.turns + block.old_turns)
    return (
        block.bad * math.log(theta_a / theta_0)
        + (block.turns - block.bad) * math.log((1 - theta_a) / (1 - theta_0))
        + block.old_bad * math.log(theta_b / theta_0)
        + (block.old_turns - block.old_bad) * math.log((1 - theta_b) / (1 - theta_0))
    )


class Preferences:
    """Whether the old version is preferred in more than half of the blind comparisons that have a winner."""

    def __init__(self) -> None:
        self.p = 1.0
        self.log_s = 0.0
        self.pairs = self.lost = 0

    def add(self, of_new: bool, bad: bool) -> None:
        """Take one more comparison of both versions; `bad` where the old one was preferred.

        theta* is the posterior mean given the comparisons before, with the prior Beta(1, 1), and at least 1/2.
        """
        theta = max((self.lost + PRIOR / 2) / (self.pairs + PRIOR), 0.5)
        self.log_s += math.log(2 * (theta if bad else 1 - theta))
        self.p = min(self.p, math.exp(-max(self.log_s, 0.0)))
        self.pairs, self.lost = self.pairs + 1, self.lost + bad


class Stream(Generic[T]):
    """Outcomes of one kind, in the order in which they came, and the test that they feed.

    Of each person and version only the first `each` outcomes count.
    """

    def __init__(self, make: Callable[[], T], each: int) -> None:
        self.make, self.each = make, each
        self.test = make()
        self.outcomes: list[tuple[str, bool, bool]] = []  # person, of the new version, bad
        self.by: Counter[tuple[str, bool]] = Counter()
        self._answered: tuple[int, float, bool] = (0, 0.0, False)  # outcomes, alpha, `depends_on_one_person` then
        self._suspect = ""

    def add(self, person: str, of_new: bool, bad: bool) -> None:
        """Take one more outcome, unless this person has had their share."""
        if self.by[person, of_new] < self.each:
            self.by[person, of_new] += 1
            self.outcomes.append((person, of_new, bad))
            self.test.add(of_new, bad)

    def people(self, of_new: bool = True) -> set[str]:
        """The people whose outcomes of the new version, or of the old one, count."""
        return {person for person, which in self.by if which is of_new}

    def depends_on_one_person(self, alpha: float) -> bool:
        """Whether there is a person without whose outcomes the test would not reach p <= `alpha`.

        Costs a test per person. So the answer is kept until there is a new outcome, and the person found last time is
        tried first, then the others, those with the most outcomes first.
        """
        if self._answered[:2] != (len(self.outcomes), alpha):
            heaviest = [person for person, _ in Counter(person for person, *_ in self.outcomes).most_common()]
            found = next((who for who in [self._suspect, *heaviest] if self._without(who).p > alpha), None)
            self._suspect = found or ""
            self._answered = (len(self.outcomes), alpha, found is not None)
        return self._answered[2]

    def _without(self, who: str) -> T:
        test = self.make()
        for person, of_new, bad in self.outcomes:
            if person != who:
                test.add(of_new, bad)
        return test

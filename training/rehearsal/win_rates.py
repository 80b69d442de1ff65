"""How good a version is by a judge: win rate, best of n, agreement with the reward model.

All are judged without noise, on prompts that nobody voted on. Win rates count ties half. Every interval is over
prompts, because several replies to one prompt are not independent.

Left out: people's own votes on live versions, which say more and come from serving.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from thumbwise.training.evaluation.intervals import clustered_mean

Scored = Sequence[Sequence[float]]
"""Scores (a judge's, or a reward model's), one row per prompt."""
Item = TypeVar("Item")
DRAFT = 48
"""The number of tokens of a reply that `Wanted.draws` is meant for."""
LEAST_DRAWS = 20


@dataclass(frozen=True)
class WinRate:
    """A share of pairs won, ties half; its 95% interval clustered by prompt; and the number of replies or draws."""

    rate: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Agreement:
    """A share of pairs that were ordered rightly, its standard error clustered by prompt, and the number of pairs."""

    rate: float
    error: float
    pairs: int


def won(ours: float, theirs: float) -> float:
    """1, 1/2 or 0."""
    return (ours > theirs) + 0.5 * (ours == theirs)


def win_rate(ours: Scored, theirs: Scored) -> WinRate:
    """Compare each of our replies with all of theirs to the same prompt, and count who scores higher.

    All pairs count, not one for each reply: on average that gives the same figure, with less luck in it. Prompts are
    the clusters of its interval.
    """
    shares: list[float] = []
    prompts: list[int] = []
    for number, (mine, yours) in enumerate(zip(ours, theirs, strict=True)):
        if yours:
            shares += [statistics.mean(won(a, b) for b in yours) for a in mine]
            prompts += [number] * len(mine)
    return _over(shares, prompts)


def _over(shares: Sequence[float], prompts: Sequence[int]) -> WinRate:
    rate, error = clustered_mean(shares, prompts)
    return WinRate(rate, rate - 1.96 * error, rate + 1.96 * error, len(shares))


def best_of(scores: Scored, rewards: Scored, n: int) -> WinRate:
    """Share of draws in which the best of `n` replies by `rewards` beats one more reply by the judge, ties half.

    Each reply to a prompt takes its turn as that one more, against the `n` that follow it (in a circle). Prompts with
    at most `n` replies are left out. All prompts have equal weight.
    """
    rows: list[float] = []
    draws = 0
    for judge, reward in zip(scores, rewards, strict=True):
        size = len(judge)
        if size > n:
            follow = [[(one + step) % size for step in range(1, n + 1)] for one in range(size)]
            best = [max(others, key=lambda i: reward[i]) for others in follow]
            rows.append(statistics.mean(won(judge[i], judge[one]) for one, i in enumerate(best)))
            draws += size
    if not rows:
        return WinRate(math.nan, math.nan, math.nan, 0)
    return replace(_over(rows, range(len(rows))), n=draws)


def pair_accuracy(scores: Scored, rewards: Scored) -> Agreement:
    """How far `rewards` orders replies to one prompt as the judge does, over pairs with unequal scores.

    Each reply has a share: of the pairs that it is in. The rate is the mean over replies. So a prompt with many
    replies, whose pairs grow with the square of their number, does not outweigh all the others.
    """
    shares: list[float] = []
    prompts: list[int] = []
    pairs = 0
    for number, (judge, reward) in enumerate(zip(scores, rewards, strict=True)):
        right: list[list[float]] = [[] for _ in judge]
        for a, b in itertools.combinations(range(len(judge)), 2):
            if judge[a] != judge[b]:
                agreed = won(float(reward[a]), float(reward[b]))
                agreed = agreed if judge[a] > judge[b] else 1 - agreed
                right[a].append(agreed)
                right[b].append(agreed)
                pairs += 1
        shares += [statistics.mean(row) for row in right if row]
        prompts += [number] * sum(bool(row) for row in right)
    return Agreement(*clustered_mean(shares, prompts), pairs) if shares else Agreement(math.nan, math.nan, 0)


@dataclass(frozen=True)
class Wanted:
    """How many replies each held-out prompt needs: at least `replies` of a candidate and `draws` of start in all."""

    prompts: int
    replies: int = 200
    draws: int = 60
    best_of: int = 16

    @classmethod
    def at(cls, prompts: int, tokens: int) -> Wanted:
        """For replies of `tokens` tokens. Longer replies get fewer draws of best_of, which make up most of all replies.

        A win rate's interval depends on the number of prompts, and that stays.
        """
        return cls(prompts, draws=max(LEAST_DRAWS, min(cls.draws, cls.draws * DRAFT // tokens)))

    @property
    def samples(self) -> int:
        """Replies of a candidate to each prompt, for the win rate."""
        return math.ceil(self.replies / self.prompts)

    def start(self) -> list[int]:
        """For each prompt: whole draws of best_of + 1 on the first ones, and at least `samples` on all."""
        each, more = divmod(self.draws, self.prompts)
        draws = [each + (number < more) for number in range(self.prompts)]
        return [max(self.samples, (self.best_of + 1) * count) for count in draws]


def by_prompt(counts: Sequence[int], items: Sequence[Item]) -> list[list[Item]]:
    """Split a flat list into rows of `counts`."""
    rows: list[list[Item]] = []
    at = 0
    for count in counts:
        rows.append(list(items[at : at + count]))
        at += count
    return rows

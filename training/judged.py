"""How good a version is by a judge: win rate, best of n, agreement with the reward model.

Judged without noise, on prompts that nobody voted on. Win rates count ties half, with a 95% interval over
prompts, because several replies to one prompt are not independent. Left out: people's own votes on live
versions, which say more and come from serving.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from thumbwise.training.intervals import clustered_mean

Scored = Sequence[Sequence[float]]
"""Scores (a judge's, or a reward model's), a row for each prompt."""
Item = TypeVar("Item")


@dataclass(frozen=True)
class WinRate:
    """A share of pairs won, ties half, its 95% interval clustered by prompt, and the number of our replies."""

    rate: float
    low: float
    high: float
    n: int


def won(ours: float, theirs: float) -> float:
    """1, 1/2 or 0."""
    return (ours > theirs) + 0.5 * (ours == theirs)


def win_rate(ours: Scored, theirs: Scored) -> WinRate:
    """Hold each of our replies against all of theirs to the same prompt, and count who scores higher.

    All pairs and not one for each reply: on average the same figure, with less luck in it. Prompts are the clusters of
    its interval.
    """
    shares: list[float] = []
    prompts: list[int] = []
    for number, (mine, yours) in enumerate(zip(ours, theirs, strict=True)):
        if yours:
            shares += [statistics.mean(won(a, b) for b in yours) for a in mine]
            prompts += [number] * len(mine)
    rate, error = clustered_mean(shares, prompts)
    return WinRate(rate, rate - 1.96 * error, rate + 1.96 * error, len(shares))


def best_of(scores: Scored, rewards: Scored, n: int) -> float:
    """Share of draws in which the best of `n` replies by `rewards` beats one more reply by the judge, ties half.

    Each reply to a prompt is that one more in turn, against the `n` that follow it (in a circle); prompts with no more
    than `n` replies are left out. Prompts count alike.
    """
    rows: list[float] = []
    for judge, reward in zip(scores, rewards, strict=True):
        size = len(judge)
        if size > n:
            follow = [[(one + step) % size for step in range(1, n + 1)] for one in range(size)]
            best = [max(others, key=lambda i: reward[i]) for others in follow]
            rows.append(statistics.mean(won(judge[i], judge[one]) for one, i in enumerate(best)))
    return statistics.mean(rows) if rows else math.nan


def pair_accuracy(scores: Scored, rewards: Scored) -> tuple[float, int]:
    """Share of the pairs of replies to one prompt with unequal scores that `rewards` orders as the judge does.

    Second is their number: C(K, 2) of K replies, less those of equal scores, so prompts with more replies count more.
    """
    right: list[float] = []
    for judge, reward in zip(scores, rewards, strict=True):
        for a, b in itertools.combinations(range(len(judge)), 2):
            if judge[a] != judge[b]:
                agreed = won(float(reward[a]), float(reward[b]))
                right.append(agreed if judge[a] > judge[b] else 1 - agreed)
    return (statistics.mean(right) if right else math.nan), len(right)


@dataclass(frozen=True)
class Wanted:
    """How many replies each held-out prompt needs: at least `replies` of a candidate and `draws` of start in all."""

    prompts: int
    replies: int = 200
    draws: int = 60
    best_of: int = 16

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

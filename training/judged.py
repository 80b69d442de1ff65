"""How good a version is by a judge: win rate, best of n, agreement with the reward model.

Judged without noise, on prompts that nobody voted on. Win rates count ties half, with a 95% interval over
prompts, because several replies to one prompt are not independent. Left out: people's own votes on live
versions, which say more and come from serving.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

Scored = Sequence[Sequence[float]]
"""Scores (a judge's, or a reward model's), a row for each prompt."""
Item = TypeVar("Item")


@dataclass(frozen=True)
class WinRate:
    """A share of pairs won, ties half, its 95% interval clustered by prompt, and the number of pairs."""

    rate: float
    low: float
    high: float
    n: int


def won(ours: float, theirs: float) -> float:
    """1, 1/2 or 0."""
    return (ours > theirs) + 0.5 * (ours == theirs)


def win_rate(ours: Scored, theirs: Scored) -> WinRate:
    """Pair the replies to each prompt in order, and count who scores higher.

    Prompts are the clusters: the standard error is that of a ratio estimate over clusters of n_i pairs,
    sqrt(m / (m - 1) sum (w_i - r n_i)^2) / sum n_i (Cochran, Sampling Techniques, 3rd ed., section 2.11).
    """
    clusters = [
        [won(a, b) for a, b in zip(mine, yours, strict=False)] for mine, yours in zip(ours, theirs, strict=True)
    ]
    clusters = [cluster for cluster in clusters if cluster]
    n, m = sum(map(len, clusters)), len(clusters)
    rate = sum(map(sum, clusters)) / n
    squares = sum((sum(cluster) - rate * len(cluster)) ** 2 for cluster in clusters)
    error = math.sqrt(squares * m / (m - 1)) / n if m > 1 else 0.5
    return WinRate(rate, rate - 1.96 * error, rate + 1.96 * error, n)


def best_of(scores: Scored, rewards: Scored, n: int) -> float:
    """Share of draws in which the best of `n` replies by `rewards` beats one more reply by the judge, ties half.

    Each row holds one or more draws of n + 1 replies to a prompt; the last of a draw is the one more.
    """
    results: list[float] = []
    for judge, reward in zip(scores, rewards, strict=True):
        for start in range(0, len(judge) - n, n + 1):
            best = max(range(start, start + n), key=lambda i: reward[i])
            results.append(won(judge[best], judge[start + n]))
    return statistics.mean(results) if results else math.nan


def pair_accuracy(scores: Scored, rewards: Scored) -> tuple[float, int]:
    """Share of neighbouring replies with unequal scores that `rewards` orders as the judge does, and how many."""
    right: list[float] = []
    for judge, reward in zip(scores, rewards, strict=True):
        for a in range(0, len(judge) - 1, 2):
            if judge[a] != judge[a + 1]:
                agreed = won(float(reward[a]), float(reward[a + 1]))
                right.append(agreed if judge[a] > judge[a + 1] else 1 - agreed)
    return (statistics.mean(right) if right else math.nan), len(right)


@dataclass(frozen=True)
class Wanted:
    """How many replies of start each held-out prompt needs; `pairs` and `draws` are the least in all."""

    prompts: int
    pairs: int = 200
    draws: int = 60
    best_of: int = 16

    @property
    def samples(self) -> int:
        """Replies of each side to each prompt, for the win rate."""
        return math.ceil(self.pairs / self.prompts)

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

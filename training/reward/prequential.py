"""Predicting votes in the order in which they were given: each by a model fitted only to votes before it.

Cross-validation predicts every vote anew each night, from votes before and after it. So a reward model that knows
nothing gets many draws: what two votes have in common counts in the fold of each. The accuracy then spreads up to
sqrt(2) times as far as its votes say, and one night's draw says little about the next one's.

In order, each vote is predicted once and for all. Whoever looks every night looks at one random walk, and one level
holds for its whole life (`thumbwise.training.evaluation.intervals.ever`; Dawid, J. R. Statist. Soc. A 147, 1984, on
forecasts in order).

Early votes are predicted from few votes, which costs power. Weighting each vote by how sure the model was of it wins
the power back. If 60% of 300 votes are predicted in cross-validation, z is 3.4 on average; with equal weights it is 2.8
(tests/bench/training/gates.py).
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import NDArray

from thumbwise.training.evaluation.intervals import Array, clustered_error, ratio

Mask = NDArray[np.bool_]
FIRST, GROWTH = 20, 1.25
"""The number of first votes that are not predicted, and the factor by which votes must grow before a new fit."""
SUREST = 2.0
"""A model's certainty is counted up to this many deviations of its scores."""
LEAST = 0.4
"""The least that a coin's comparisons spread about their mean (0.5 if half of them are right)."""


def prequential_splits(when: Sequence[str], groups: Sequence[Hashable]) -> list[tuple[Mask, Mask]]:
    """Which votes to fit to and which to predict, [n] each: one pair of masks for each model.

    Votes are in the order of `when`, sortable ids. No vote is predicted from others of its conversation (`groups`). So
    if a conversation continues later, its votes leave the part that is fitted to. Otherwise later votes change only the
    last pair's second mask.
    """
    place = np.empty(len(when), np.int64)
    place[sorted(range(len(when)), key=lambda n: when[n])] = np.arange(len(when))
    names = {group: number for number, group in enumerate(dict.fromkeys(groups))}
    group = np.array([names[name] for name in groups], np.int64)
    parts, begin = [], FIRST
    while begin < len(when):
        end = int(begin * GROWTH)
        foretold = (place >= begin) & (place < end)
        before = (place < begin) & ~np.isin(group, group[foretold])
        parts.append((before, foretold))
        begin = end
    return parts


def prequential_accuracy(
    right: Array, said: Array, clusters: Sequence[Hashable], coin: Array | float = LEAST
) -> tuple[float, int, float]:
    """The share of votes predicted rightly (`right` of each, 0 to 1), their number, and the share's standard error.

    Each vote is weighted by how sure the model was of it: `said` [n], in deviations of the model's scores. If the votes
    are a coin's, a surer model is right no more often. The error is at least that of a coin whose votes each spread by
    `coin` [n].
    """
    if not len(right):
        return 0.5, 0, 0.5
    sure = np.maximum(np.minimum(np.abs(said), SUREST), 1e-9)
    share, parts = ratio(right * sure, sure)
    error = clustered_error(parts, clusters)
    least = float(np.sqrt(((coin * sure) ** 2).sum()) / sure.sum())
    return share, len(right), max(error, least) if np.isfinite(error) else 0.5

"""Foretelling votes in the order in which they were given: each by a model fitted only to votes before it.

Cross-validation predicts every vote anew each night, from votes that came before and after it. A reward model that
knows nothing gets many draws that way: what two votes have in common counts in either's fold, so that accuracy spreads
up to sqrt(2) times as far as its votes say, and one night's draw says little of the next one's. In order, a vote is
foretold once and for all, so that who looks every night looks at one random walk, whose life has one level
(`thumbwise.training.evaluation.intervals.ever`; Dawid, J. R. Statist. Soc. A 147, 1984, on forecasts in order). That
early votes are foretold from few costs power, and what wins it back is to count a vote as far as the model was sure of
it: where 60% of 300 votes are foretold in cross-validation, z is 3.4 on average, and with equal votes 2.8
(tests/bench/training/gates.py).
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import NDArray

from thumbwise.training.evaluation.intervals import Array, clustered_error, ratio

Mask = NDArray[np.bool_]
FIRST, GROWTH = 20, 1.25
"""Votes that nothing is foretold of, and by what factor votes must have grown for a new model to be fitted."""
SUREST = 2.0
"""Deviations of a model's scores from which it counts as no surer than that."""
LEAST = 0.4
"""How far a coin's comparisons spread at least about their mean (0.5 where half of them are right)."""


def prequential_splits(when: Sequence[str], groups: Sequence[Hashable]) -> list[tuple[Mask, Mask]]:
    """Which votes to fit to and which to foretell, [n] each: one such pair a model.

    Votes are in the order of `when`, sortable ids. None is foretold by others of its conversation (`groups`), so where
    one goes on later its votes leave the part that is fitted to; else more votes after these change no pair but the
    last one's second part.
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
    """The share of votes that were foretold (`right` of each, 0 to 1), their number, and the share's standard error.

    A vote counts as far as the model was sure of it: `said` [n], in deviations of the model's scores. Where the votes
    are a coin's, how sure it was makes it right no more often. The error is at least a coin's, whose votes each spread
    by `coin` [n].
    """
    if not len(right):
        return 0.5, 0, 0.5
    sure = np.maximum(np.minimum(np.abs(said), SUREST), 1e-9)
    share, parts = ratio(right * sure, sure)
    error = clustered_error(parts, clusters)
    least = float(np.sqrt(((coin * sure) ** 2).sum()) / sure.sum())
    return share, len(right), max(error, least) if np.isfinite(error) else 0.5

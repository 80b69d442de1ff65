"""How far to trust each rater: weights from how their votes fit what all the others' votes say, and a cap.

A rater's vote agrees with the better reply with probability eta: P(left) = eta s(d) + (1 - eta) s(-d) (Chen et al.
2013, "Pairwise ranking aggregation in a crowdsourced setting", WSDM, equation 6), with d the log-odds of a head that
never saw votes on that prompt. Over a few values of eta with a prior that most people are honest this gives a
posterior, whose mean of 2 eta - 1 is the information in a vote: 1 for somebody always right, 0 for a coin, and
below 0 for somebody who votes against, whose votes are then dropped. Left out: turning such votes round, because
whoever knows of it could steer by it.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

ETA = np.array([0.1, 0.3, 0.5, 0.7, 0.9])
PRIOR = np.array([0.06, 0.02, 0.06, 0.2, 0.66])
SCALES = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0)
"""Of the log-odds, which a regularised head understates; the likeliest is taken (0: they say nothing)."""
LEAST_RATERS = 5
"""Below that there is no crowd to hold anybody against."""
ROUNDS = 5


def trust(margins: Array, rater: NDArray[np.int64], raters: int) -> Array:
    """A weight in [0, 1] a rater, [raters]: the posterior mean of 2 eta - 1 as a share of the prior's, at most 1.

    So only evidence against somebody costs weight: with a few votes each, praise would be luck. `margins` [n] are
    held-out log-odds of each vote as it was given, by `rater` [n]; 0 says nothing.
    """
    best, posterior = -np.inf, np.tile(PRIOR, (raters, 1))
    for scale in SCALES:
        chance = 1 / (1 + np.exp(-scale * margins))
        total = np.tile(np.log(PRIOR), (raters, 1))
        np.add.at(total, rater, np.log(ETA * chance[:, None] + (1 - ETA) * (1 - chance[:, None])))
        evidence = np.logaddexp.reduce(total, axis=1)
        if evidence.sum() > best:
            best, posterior = evidence.sum(), np.exp(total - evidence[:, None])
    weights: Array = (posterior @ (2 * ETA - 1) / (PRIOR @ (2 * ETA - 1))).clip(0, 1)
    return weights


def capped(totals: Array, share: float) -> Array:
    """Factors [raters] that bring nobody's part of the sum over `share`, or over an equal part where that is more."""
    down = np.sort(totals)[::-1]
    share = max(share, 1 / max(1, int((totals > 0).sum())))
    level = np.inf
    for over in range(len(down)):  # how many are brought down to the level at which each of them has exactly `share`
        if over * share >= 1 - 1e-9:
            level = down[over - 1]
            break
        level = share * down[over:].sum() / (1 - over * share)
        if down[over] <= level * (1 + 1e-9):
            break
    factors: Array = np.minimum(1.0, level / np.maximum(totals, 1e-12))
    return factors


def rater_weights(
    weight: Array, rater: NDArray[np.int64], raters: int, margins: Callable[[Array], Array], share: float
) -> Array:
    """A factor a rater, [raters]: trust times what the cap leaves; all 1 where there are fewer than LEAST_RATERS.

    `weight` [n] counts each vote; `margins` gives held-out log-odds [n] of the votes when a head is fitted with the
    factors [n] that it is given. All 1 too where nobody's votes bear anybody else's out: no weight would be left.
    """
    if raters < LEAST_RATERS:
        return np.ones(raters)

    def cap(factors: Array) -> Array:
        totals: Array = np.bincount(rater, weight * factors[rater], raters).astype(np.float64)
        found: Array = factors * capped(totals, share)
        return found

    factors = cap(np.ones(raters))
    for _ in range(ROUNDS):
        factors = cap(trust(margins(factors[rater]), rater, raters))
        if not (weight * factors[rater]).any():
            return np.ones(raters)
    return factors

"""Means whose terms come in clusters (votes in one conversation, or replies to it), and how sure they are.

Left out: exact intervals of shares near 0 or 1, because nearly every mean here is over dozens of conversations.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
MIXED_AT = 60.0
"""The number of votes at which `ever` is mixed. The bound is narrowest at about five times as many (2.5 at 300, for the
level 0.1), and within a sixth of that from 60 votes on.
"""


def clustered_mean(values: Sequence[float], clusters: Sequence[Hashable]) -> tuple[float, float]:
    """The mean of `values` and its standard error, if the terms of one cluster are not independent.

    With only one cluster the error is 0.5, which says nothing about a share.
    """
    mean, parts = ratio(np.asarray(values, float), np.ones(len(values)))
    error = clustered_error(parts, clusters)
    return mean, error if math.isfinite(error) else 0.5


def ratio(tops: Array, bottoms: Array) -> tuple[float, Array]:
    """sum tops / sum bottoms, and how far each term pulls it from there, [n] (these sum to 0): its linearisation."""
    bottom = float(bottoms.sum())
    found = float(tops.sum()) / bottom if bottom else 0.0
    parts: Array = (tops - found * bottoms) / bottom if bottom else np.zeros(len(tops))
    return found, parts


def clustered_error(parts: Array, clusters: Sequence[Hashable]) -> float:
    """The standard error of a ratio (or a difference of ratios) whose terms pull it so far (`ratio`).

    Over m clusters, each of which pulls it by w_i, that is sqrt(m / (m - 1) sum w_i^2) (Cochran, Sampling Techniques,
    3rd ed., section 2.11), times a factor for few clusters (`widening`). With only one cluster it is infinite.
    """
    sums: dict[Hashable, float] = {}
    for part, cluster in zip(parts.tolist(), clusters, strict=True):
        sums[cluster] = sums.get(cluster, 0.0) + part
    m = len(sums)
    return widening(m) * math.sqrt(sum(w**2 for w in sums.values()) * m / (m - 1)) if m > 1 else math.inf


def once(level: float) -> float:
    """The number of standard errors that luck exceeds with the chance `level`, on one side, if you look once."""
    return NormalDist().inv_cdf(1 - level)


def ever(level: float, votes: float) -> float:
    """The number of standard errors of a mean of `votes` terms that luck exceeds with the chance `level` *ever*.

    That holds for somebody who looks after every vote, for all time. It is Robbins' normal mixture, one-sided, in the
    closed form of Howard, Ramdas, McAuliffe and Sekhon (Ann. Statist. 49, 2021, equation 15). For a sum with variance v
    the bound is sqrt(2 (v + rho) log(sqrt((v + rho) / rho) / (2 level) + 1)); here it is divided by sqrt(v).
    """
    share = (votes + MIXED_AT) / MIXED_AT
    return math.sqrt(2 * (1 + MIXED_AT / votes) * math.log(math.sqrt(share) / (2 * level) + 1))


def widening(clusters: int) -> float:
    """How much wider than 1.96 standard errors a 95% interval over so many clusters (at least 2) is: Student's t.

    By Wallace (Ann. Math. Statist. 30, 1959): z = (8v + 1) / (8v + 3) sqrt(v ln(1 + t^2 / v)) with v = clusters - 1. It
    is within 1% from five clusters on, and on the safe side below. It is 1.01 for a hundred clusters.
    """
    v, z = clusters - 1, 1.96
    return math.sqrt(v * math.expm1((z * (8 * v + 3) / (8 * v + 1)) ** 2 / v)) / z

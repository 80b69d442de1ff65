"""Means whose terms come in clusters: several votes on one prompt, several replies to it.

Left out: intervals other than the mean plus or minus standard errors, because every mean here is over dozens of
prompts.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence


def clustered_mean(values: Sequence[float], clusters: Sequence[Hashable]) -> tuple[float, float]:
    """The mean of `values` and its standard error, where the terms of one cluster are not independent.

    The error is that of a ratio estimate over m clusters of n_i terms that sum to w_i:
    sqrt(m / (m - 1) sum (w_i - mean n_i)^2) / sum n_i (Cochran, Sampling Techniques, 3rd ed., section 2.11); 0.5, which
    says nothing of a share, where there is one cluster only.
    """
    sums: dict[Hashable, tuple[float, int]] = {}
    for value, cluster in zip(values, clusters, strict=True):
        total, count = sums.get(cluster, (0.0, 0))
        sums[cluster] = total + value, count + 1
    n, m = len(values), len(sums)
    mean = float(sum(values)) / n
    squares = sum((total - mean * count) ** 2 for total, count in sums.values())
    return mean, math.sqrt(squares * m / (m - 1)) / n if m > 1 else 0.5

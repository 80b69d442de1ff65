"""The check of scores that a plugin returns: one rule for reward models and for `shape_reward`."""

from __future__ import annotations

import numpy as np

from thumbwise.contracts import Scores


def wrong_with(scores: object, n: int) -> str:
    """What is wrong with `scores` as the scores of `n` samples, in words; empty if they can be used.

    A score that is NaN or infinite means "no opinion". Of several samples at least one must have a finite score:
    otherwise a policy would go through its whole round and be trained on nothing.
    """
    if not isinstance(scores, Scores):
        return f"{type(scores).__name__} and no Scores"
    for what, given in (("values", scores.value), ("deviations", scores.std)):
        if given is None and what == "deviations":
            continue
        found = np.asarray(given)
        if found.dtype.kind not in "fiu":
            return f"{what} that are no numbers"
        if found.shape != (n,):
            return f"{what} of shape {found.shape}"
    known = np.isfinite(scores.value)
    if n > 1 and not known.any():
        return "no finite score"
    if scores.std is not None and not (np.isfinite(scores.std) & (np.asarray(scores.std) >= 0))[known].all():
        return "deviations that are not finite or below 0"
    return ""

"""The losses of a reward model, as pure functions of float32 tensors.

They return one loss per element, unreduced. The caller divides by the count over the whole batch.
"""

from __future__ import annotations

from itertools import combinations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


def pair_loss(difference: Tensor, smoothing: float = 0.0) -> Tensor:
    """Bradley-Terry: -log sigmoid(d) of `difference` = score(chosen) - score(rejected), any shape.

    `smoothing` is the believed share of wrong clicks: the optimum is d = log((1 - s) / s), not infinity.
    """
    return -(1 - smoothing) * logsigmoid(difference) - smoothing * logsigmoid(-difference)


def ranking_loss(scores: Tensor) -> Tensor:
    """Mean pair loss over all C(K, 2) pairs of `scores` [K], best first (InstructGPT, eq. 1): a scalar."""
    pairs = list(combinations(range(scores.shape[0]), 2))
    better, worse = (torch.tensor(side) for side in zip(*pairs, strict=True))
    return pair_loss(scores[better] - scores[worse]).mean()


def thumb_loss(score: Tensor, up: Tensor, threshold: Tensor) -> Tensor:
    """Cross-entropy of a thumb: P(up) = sigmoid(score - threshold); `up` is 1 or 0, same shape as `score`."""
    sign = 2 * up - 1
    return -logsigmoid(sign * (score - threshold))


def tie_loss(difference: Tensor, log_nu: Tensor, tied: Tensor) -> Tensor:
    """Cross-entropy of whether a pair was called a tie: P(tie) = nu / (nu + 2 cosh(d / 2)); `tied` is 1 or 0.

    With `pair_loss` for the untied ones this is Davidson's model (JASA 65, 1970, equation 2.4), in which the winner
    of an untied pair follows Bradley-Terry: at nu = 1 and d = 0, left, right and tie have 1/3 each.
    """
    odds = log_nu - torch.logaddexp(difference / 2, -difference / 2)
    return -logsigmoid((2 * tied - 1) * odds)

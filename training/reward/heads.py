"""Fit one linear head to comparisons, ties and thumbs. It is deterministic and takes a fraction of a second.

The loss is convex except for the ties. With score(x) = a . x for a reply's features x:
- comparison (Bradley-Terry): P(left) = sigmoid(score(left) - score(right) + position)
- tie (Davidson): P(tie) = nu / (nu + 2 cosh(d / 2)), with d = score(left) - score(right) + position
- thumb: P(up) = sigmoid(score - threshold - the rater's own offset)

`position` is the bias for the side a reply was shown on. Position and thresholds absorb what is not about the replies:
pairs say nothing about the thresholds, and exchanging the sides changes the sign of `position`.

Left out: a position bias per person.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from thumbwise.training.data.votes import Array, Votes
from thumbwise.training.reward.losses import pair_loss, thumb_loss, tie_loss

NUISANCE_L2 = 1.0
"""Prior on the biases, in units of evidence per vote's mean. It keeps one-sided imports from being all bias."""


@dataclass(frozen=True)
class Head:
    """`direction` [D] of the score, the left side's bias, the thumbs' threshold and raters' offsets, ties' log nu."""

    direction: Array
    position: float
    threshold: float
    log_nu: float = 0.0
    offsets: Array | None = None

    def margins(self, features: Array, votes: Votes) -> Array:
        """Log-odds that each comparison with a winner, or each thumb, came out as it did; 0 for ties."""
        scores = features @ self.direction
        offsets = self.offsets[votes.rater] if self.offsets is not None else 0.0
        right = np.where(votes.is_thumb, self.threshold + offsets, scores[votes.right] - self.position)
        margins: Array = (2 * votes.good - 1) * (scores[votes.left] - right)
        return margins


def observed(features: Array, votes: Votes) -> Array:
    """What each vote sees of the features, [n, D]: left minus right for comparisons, the reply's own for thumbs."""
    right = np.where(votes.is_thumb[:, None], 0.0, features[votes.right])
    seen: Array = features[votes.left] - right
    return seen


def losses(seen: torch.Tensor, votes: Votes, head: torch.Tensor, smoothing: float) -> torch.Tensor:
    """Loss of every vote [n]; `head` is [direction, position, threshold, log nu, raters' offsets] in one vector.

    `seen` [n, D] is from `observed`.
    """
    size = seen.shape[1]
    position, threshold, log_nu, offsets = head[size], head[size + 1], head[size + 2], head[size + 3 :]
    score, good = seen @ head[:size], torch.from_numpy(votes.good)
    tied = torch.from_numpy(votes.is_tie)
    found = torch.where(tied, 0.0, pair_loss((2 * good - 1) * (score + position), smoothing))
    if bool(votes.is_tie.any()):
        found = found + tie_loss(score + position, log_nu, tied.double())
    if bool(votes.is_thumb.any()):
        thumb = thumb_loss(score, good, threshold + offsets[torch.from_numpy(votes.rater)])
        found = torch.where(torch.from_numpy(votes.is_thumb), thumb, found)
    return found


def _objective(seen: torch.Tensor, votes: Votes, head: torch.Tensor, l2: float, smoothing: float) -> torch.Tensor:
    weight, size = torch.from_numpy(votes.weight), seen.shape[1]
    data = (losses(seen, votes, head, smoothing) * weight).sum() / weight.sum()
    prior = l2 * (head[:size] ** 2).sum() + NUISANCE_L2 / len(weight) * (head[size:] ** 2).sum()
    return data + 0.5 * prior


@contextmanager
def _one_thread() -> Iterator[None]:
    """Torch on one thread inside the block: products this small are slower on two threads, and slower still on more."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@_one_thread()
def fit_head(features: Array, votes: Votes, l2: float, smoothing: float) -> Head:
    """The head with the least weighted mean loss plus l2/2 |direction|^2 (L-BFGS in float64)."""
    seen, size = torch.from_numpy(observed(features, votes)), features.shape[1]
    head = torch.zeros(size + 3 + votes.raters, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [head], max_iter=200, history_size=20, tolerance_grad=1e-6, tolerance_change=1e-10,
        line_search_fn="strong_wolfe",
    )  # fmt: skip

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = _objective(seen, votes, head, l2, smoothing)
        loss.backward()
        return loss

    optimizer.step(closure)
    solved = head.detach().numpy()
    position, threshold, log_nu = (float(value) for value in solved[size : size + 3])
    return Head(solved[:size].copy(), position, threshold, log_nu, solved[size + 3 :].copy())


def held_out_margins(features: Array, votes: Votes, fold: Sequence[int], l2: float, smoothing: float) -> Array:
    """`Head.margins` of every vote under the head that was fitted without its fold; 0 if there was no such head."""
    folds, margins = np.asarray(fold), np.zeros(len(votes.left))
    for number in np.unique(folds):
        train, test = votes.pick(folds != number), folds == number
        if train.weight.sum() > 0:
            margins[test] = fit_head(features, train, l2, smoothing).margins(features, votes.pick(test))
    return margins


def held_out_loss(features: Array, votes: Votes, fold: Sequence[int], l2: float, smoothing: float) -> float:
    """Weighted mean loss of the held-out votes that tell: it chooses the L2."""
    margins = torch.from_numpy(held_out_margins(features, votes, fold, l2, smoothing))
    weight = torch.from_numpy(votes.weight * votes.telling)
    return float((pair_loss(margins, smoothing) * weight).sum() / weight.sum().clamp(min=1e-12))

"""Fit one linear head to comparisons and thumbs: convex, deterministic, a few milliseconds.

score(x) = a . x for a reply's features x. A comparison is Bradley-Terry with a bias for the side it was
shown on, P(left) = sigmoid(score(left) - score(right) + position); a thumb is P(up) = sigmoid(score -
threshold). Position and threshold absorb what is not about the replies: pairs say nothing about the
threshold, and turning the sides round turns the position bias's sign. Left out: a threshold a person.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from thumbwise.training.losses import pair_loss, thumb_loss

POSITION_L2 = 1.0
"""Prior on the position bias in units of evidence per vote's mean: keeps one-sided imports from being all bias."""

Array = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Votes:
    """Votes on N replies, by row number: n comparisons, then m thumbs (`right` is -1 for a thumb).

    `good` is 1 where the left reply won or the thumb is up, else 0; `weight` counts a vote; `group` names
    its prompt.
    """

    left: Ints
    right: Ints
    good: Array
    weight: Array
    group: tuple[str, ...]

    def pick(self, which: NDArray[np.bool_]) -> Votes:
        """The votes where `which` is true."""
        kept = tuple(g for g, keep in zip(self.group, which, strict=True) if keep)
        return Votes(self.left[which], self.right[which], self.good[which], self.weight[which], kept)

    def reweighted(self, factor: Array) -> Votes:
        """The same votes with their weights times `factor`."""
        return Votes(self.left, self.right, self.good, self.weight * factor, self.group)

    @property
    def is_pair(self) -> NDArray[np.bool_]:
        """True for comparisons, False for thumbs."""
        return self.right >= 0


@dataclass(frozen=True)
class Head:
    """`direction` [D] of the score, the bias for the left side, and the thumbs' threshold."""

    direction: Array
    position: float
    threshold: float

    def correct(self, features: Array, votes: Votes) -> Array:
        """1 where the score agrees with a comparison, 0 where not, 0.5 for equal scores.

        Where there are thumbs only: for each thumb of the rarer direction, the share of the others that it is
        ordered rightly against. Their mean is the area under the ROC curve, which is 0.5 for a head that knows
        nothing, however rare one direction is (Hanley and McNeil, Radiology 143, 1982).
        """
        pairs, scores = votes.pick(votes.is_pair), features @ self.direction
        if len(pairs.left):
            agrees: Array = (np.sign((scores[pairs.left] - scores[pairs.right]) * (2 * pairs.good - 1)) + 1) / 2
            return agrees
        up, down = scores[votes.left[votes.good == 1]], scores[votes.left[votes.good == 0]]
        if not len(up) or not len(down):
            return np.empty(0)
        right: Array = ((np.sign(up[:, None] - down) + 1) / 2).mean(1 if len(up) <= len(down) else 0)
        return right


def losses(
    features: torch.Tensor, votes: Votes, head: torch.Tensor, smoothing: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss of every comparison and of every thumb; `head` is [direction, position, threshold] in one vector."""
    scores = features @ head[:-2]
    pair, thumb = votes.pick(votes.is_pair), votes.pick(~votes.is_pair)
    sign = torch.from_numpy(2 * pair.good - 1)
    difference = sign * (scores[torch.from_numpy(pair.left)] - scores[torch.from_numpy(pair.right)] + head[-2])
    up = torch.from_numpy(thumb.good)
    return pair_loss(difference, smoothing), thumb_loss(scores[torch.from_numpy(thumb.left)], up, head[-1])


def _objective(features: torch.Tensor, votes: Votes, head: torch.Tensor, l2: float, smoothing: float) -> torch.Tensor:
    pair, thumb = losses(features, votes, head, smoothing)
    is_pair = votes.is_pair
    weight = torch.from_numpy(np.concatenate([votes.weight[is_pair], votes.weight[~is_pair]]))
    data = (torch.cat([pair, thumb]) * weight).sum() / weight.sum()
    prior = l2 * (head[:-2] ** 2).sum() + POSITION_L2 / len(weight) * (head[-2:] ** 2).sum()
    return data + 0.5 * prior


def fit_head(features: Array, votes: Votes, l2: float, smoothing: float) -> Head:
    """The head with the least weighted mean loss plus l2/2 |direction|^2 (L-BFGS in float64)."""
    x = torch.from_numpy(features)
    head = torch.zeros(features.shape[1] + 2, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [head], max_iter=200, history_size=20, tolerance_grad=1e-6, tolerance_change=1e-10,
        line_search_fn="strong_wolfe",
    )  # fmt: skip

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = _objective(x, votes, head, l2, smoothing)
        loss.backward()
        return loss

    optimizer.step(closure)
    solved = head.detach().numpy()
    return Head(solved[:-2].copy(), float(solved[-2]), float(solved[-1]))


def held_out_loss(features: Array, votes: Votes, fold: Sequence[int], l2: float, smoothing: float) -> float:
    """Mean loss of held-out comparisons (thumbs, where there are no others) over the folds: it chooses the L2."""
    folds = np.asarray(fold)
    counted = votes.is_pair if votes.is_pair.any() else ~votes.is_pair
    total, count = 0.0, 0
    for number in np.unique(folds):
        test = votes.pick((folds == number) & counted)
        if len(test.left) == 0 or not (folds != number).any():
            continue
        head = fit_head(features, votes.pick(folds != number), l2, smoothing)
        vector = torch.from_numpy(np.concatenate([head.direction, [head.position, head.threshold]]))
        loss = torch.cat(losses(torch.from_numpy(features), test, vector, smoothing))
        total, count = total + float(loss.sum()), count + len(loss)
    return total / max(count, 1)

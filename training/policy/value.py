"""The value function: what the reward model's head says of a reply so far, learned further.

V_t is the value of the state *before* response token t. If V saw that token, it would take the token's own merit out of
its advantage: with a perfect critic, all of it.

- V starts as the reward model. Before any training, V after n tokens is the score of a reply of those n tokens
  (InstructGPT, C.4). What the score says of how a reply ends is left out of V: it is credited where the reply ends.
- V learns by its own optimizer. Only its level, and how the level falls with the tokens that remain, are not learned:
  both follow each batch's other replies at once (`level`).
- V reads the frozen backbone's hidden states, as the reward model does. They are computed once for a batch of rollouts,
  so the updates of V cost next to nothing.

Left out: a value function with weights of its own below the head. An adapter on the lower half of the model cost a
fifth of an iteration, and explained no more of the returns.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from thumbwise.contracts import Backbone, Sample, ValueInit


def adamw(parameters: Sequence[Tensor], lr: float) -> Any:
    """AdamW as in RLHF runs: eps 1e-5 (1e-8 is far more aggressive early), betas 0.9 and 0.95, no weight decay."""
    return torch.optim.AdamW(list(parameters), lr=lr, betas=(0.9, 0.95), eps=1e-5, weight_decay=0.0)


def prefix_means(hidden: Tensor, mean: Tensor, mask: Tensor, shrink: float) -> Tensor:
    """(sum over i < t of h_i - mean) / (t + shrink), t from 0: [B, T, D] -> [B, T, D]; 0 before the first token."""
    steps = torch.arange(hidden.shape[1], device=hidden.device)
    terms = (hidden - mean) * mask[..., None]
    before = torch.nn.functional.pad(terms[:, :-1], (0, 0, 1, 0))
    return before.cumsum(1) / (steps + shrink).clamp(min=1e-6)[:, None]


class ValueFunction:
    """A linear head on features of `backbone`'s hidden states; `init` None starts from a constant 0."""

    def __init__(self, backbone: Backbone, init: ValueInit | None, lr: float) -> None:
        if init is None:
            layer, size = len(backbone.layers) // 2, (1, backbone.hidden_size)
            zeros, ones = np.zeros(size, np.float32), np.ones(size, np.float32)
            init = ValueInit((layer,), zeros, zeros, ones, 0.0, 16.0)
        self.backbone, self.init = backbone, init
        self.weight = torch.tensor(init.weight).requires_grad_(True)
        self.mean, self.scale = torch.tensor(init.mean), torch.tensor(init.scale)
        self.optimizer = adamw([self.weight], lr)

    def parameters(self) -> dict[str, Tensor]:
        """What the optimizer learns, by name."""
        return {"head.weight": self.weight}

    def features(self, samples: Sequence[Sample], width: int) -> Tensor:
        """The features in which V is linear, before each of `width` response tokens: [N, width, layers, D] float32."""
        found = torch.zeros(len(samples), width, *self.mean.shape)
        for rows, batch, states in self.backbone.states(samples, self.init.layers):
            for layer, (state, mean, scale) in enumerate(zip(states, self.mean, self.scale, strict=True)):
                means = prefix_means(state, mean, batch.mask, self.init.shrink) * scale
                found[rows, : means.shape[1], layer] = means
        return found

    def level(self, features: Tensor, mask: Tensor, to_come: Tensor) -> Tensor:
        """The line under each reply's values, [N, T]. With it they are right on average about the rewards `to_come`.

        If the policy improves and the value lags behind, every last token looks better than expected, whichever token
        it is. With a lambda below 1 only the few tokens before it share in that, so the policy would learn to end.

        The line is a level and a slope, by least squares over the tokens of all *other* replies. With its own tokens
        among them, a reply would take part of its merit out of its advantages. That part grows with the reply's length
        and with fewer replies: of the last token's merit 2.5% with 48 replies of up to 48 tokens, 31% with 4. If there
        are no others, the line is the reward model's constant.
        """
        with torch.no_grad():
            missed = ((to_come - self._head(features)) * mask).double()
            left = self._left(mask.shape[1]).double()
            squares = torch.einsum("nt,ti,tj->nij", mask.double(), left, left)
            products = missed @ left
            inverse = torch.linalg.pinv(squares.sum(0) - squares, rtol=1e-9, hermitian=True)
            lines = torch.einsum("nij,nj->ni", inverse, products.sum(0) - products)
            alone = mask.sum() - mask.sum(1) < 1
            found: Tensor = torch.where(alone[:, None], self.init.bias, (lines @ left.T).float())
            return found

    def values(self, features: Tensor, line: Tensor, mask: Tensor) -> Tensor:
        """V before each response token, [N, T] float32, 0 under pads; `line` from `level`; gradients to the head."""
        return (self._head(features) + line) * mask

    def _head(self, features: Tensor) -> Tensor:
        found: Tensor = torch.einsum("ntld,ld->nt", features, self.weight)
        return found

    def _left(self, width: int) -> Tensor:
        """1, and the share of `width` tokens that remain, before each token: [width, 2]."""
        return torch.stack([torch.ones(width), 1 - torch.arange(width) / width], 1)

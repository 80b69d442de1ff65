"""The value function: what the reward model's head says of a reply so far, learned on.

V_t is the value of the state *before* response token t. Were it to see that token, it would take the token's own
merit out of its advantage: with a perfect critic, all of it. It starts as the reward model, so that after n
tokens V is the score of a reply of those n tokens before any training (InstructGPT, C.4), but for what the score says
of how a reply ends: that is credited where it ends. It learns by its own optimizer. It reads the frozen
backbone's hidden states, as the reward model does: they are computed once for a batch of rollouts, and its
updates cost next to nothing. Left out: a value function with weights of its own below the head (an adapter on
the lower half of the model cost a fifth of an iteration, and explained no more of the returns).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from thumbwise.contracts import Sample, ValueInit
from thumbwise.training.losses import masked_mean
from thumbwise.training.models import Backbone


def adamw(parameters: Sequence[Tensor], lr: float) -> Any:
    """AdamW as RLHF runs have it: eps 1e-5 (1e-8 is far more aggressive early), betas 0.9 and 0.95, no decay."""
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
        self.bias = torch.tensor(init.bias, dtype=torch.float32).requires_grad_(True)
        self.mean, self.scale = torch.tensor(init.mean), torch.tensor(init.scale)
        self.optimizer = adamw([self.weight, self.bias], lr)

    def parameters(self) -> dict[str, Tensor]:
        """The head's weights, by name."""
        return {"head.weight": self.weight, "head.bias": self.bias}

    def features(self, samples: Sequence[Sample], width: int) -> Tensor:
        """What V is linear in, before each of `width` response tokens: [N, width, layers, D] float32."""
        found = torch.zeros(len(samples), width, *self.mean.shape)
        for rows, batch, states in self.backbone.states(samples, self.init.layers):
            for layer, (state, mean, scale) in enumerate(zip(states, self.mean, self.scale, strict=True)):
                means = prefix_means(state, mean, batch.mask, self.init.shrink) * scale
                found[rows, : means.shape[1], layer] = means
        return found

    def level(self, features: Tensor, mask: Tensor, score: Tensor) -> None:
        """Shift V so that its mean over tokens is the mean of `score` [N]; rows without tokens do not count.

        What is taken from scores (for the heads' deviation, for a missing end) shifts them all, and the last
        tokens alone would pay for it until the bias had learned that.
        """
        rows = mask.sum(1) > 0
        if bool(rows.any()):
            with torch.no_grad():
                self.bias += score[rows].mean() - masked_mean(self.values(features, mask), mask)

    def values(self, features: Tensor, mask: Tensor) -> Tensor:
        """V before each response token, [N, T] float32, 0 under pads; with gradients to the head."""
        total: Tensor = torch.einsum("ntld,ld->nt", features, self.weight) + self.bias
        return total * mask

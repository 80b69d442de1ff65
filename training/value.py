"""The value function: what the reward model's head says of a reply so far, on an adapter of its own.

V_t is the value of the state *before* response token t. Were it to see that token, it would take the token's own
merit out of its advantage: with a perfect critic, all of it. It starts equal to the reward model (its adapter
changes nothing at first, and its head is a copy), so that after n tokens V is the score of a reply of those n
tokens before any training (InstructGPT, C.4). Its loss reaches only its own adapter and head. Left out: a value
function as large as the policy; the head reads the lower half of the model, and only that half is run.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from thumbwise.contracts import Sample, ValueInit
from thumbwise.training.batches import Batch, chunks, pad_rows
from thumbwise.training.models import Backbone

VALUE = "value"


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
    """V [B, T] of samples, with the adapter "value" on `backbone`; `init` None starts from a constant 0."""

    def __init__(self, backbone: Backbone, init: ValueInit | None, rank: int, lr: float, seed: int) -> None:
        if init is None:
            layer, size = len(backbone.layers) // 2, (1, backbone.hidden_size)
            zeros, ones = np.zeros(size, np.float32), np.ones(size, np.float32)
            init = ValueInit((layer,), zeros, zeros, ones, 0.0, 16.0)
        self.backbone = backbone
        self.init = init
        self.has_adapter = max(init.layers) > 0
        if self.has_adapter:
            backbone.add_adapter(VALUE, rank, max(init.layers), seed)
        self.weight = torch.tensor(init.weight).requires_grad_(True)
        self.bias = torch.tensor(init.bias, dtype=torch.float32).requires_grad_(True)
        self.mean, self.scale = torch.tensor(init.mean), torch.tensor(init.scale)
        self.optimizer = adamw(list(self.parameters().values()), lr)

    def parameters(self) -> dict[str, Tensor]:
        """The adapter's weights and the head's, by name."""
        adapter = self.backbone.parameters(VALUE) if self.has_adapter else {}
        return {**adapter, "head.weight": self.weight, "head.bias": self.bias}

    def values(self, batch: Batch) -> Tensor:
        """V before each response token, [B, T] float32, 0 under pads; with gradients to the value's weights."""
        adapter = VALUE if self.has_adapter else None
        states = self.backbone.hidden(batch, adapter, self.init.layers)
        total: Tensor = self.bias
        for state, mean, scale, weight in zip(states, self.mean, self.scale, self.weight, strict=True):
            total = total + (prefix_means(state, mean, batch.mask, self.init.shrink) * (scale * weight)).sum(-1)
        return total * batch.mask

    def predict(self, samples: Sequence[Sample], width: int) -> Tensor:
        """V of `samples` in micro-batches, [N, width], without gradients."""
        rows = []
        with torch.no_grad():
            for part in chunks(len(samples), self.backbone.micro_batch):
                rows.append(self.values(self.backbone.batch(samples[part])))
        return pad_rows(rows, width)

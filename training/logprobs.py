"""Log-probabilities of tokens straight from hidden states: logits of all positions are never there at once.

With 49,152 tokens in the vocabulary the logits of a few hundred positions in float32, their softmax and its gradient
were a fifth of the trainer's memory. Here a few rows at a time become logits, then numbers; where a gradient is wanted,
that of each log-probability by its hidden state is computed from the same logits and kept (as wide as the hidden
state), so nothing is computed twice. The head is frozen and gets no gradient: that is what makes it so simple. Left
out: entropy's gradient, because no loss here has an entropy term.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from thumbwise.training.batches import chunks

ROWS = 128
"""Hidden states that become logits together."""


class _TokenLogprobs(torch.autograd.Function):  # type: ignore[misc]
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, ids: Tensor, head: Any, temperature: float) -> tuple[Tensor, Tensor]:
        """Of N rows, log-probability and entropy; keeps d logp / d hidden = (W[id] - p W) / temperature."""
        logp, entropy = hidden.new_empty(len(ids), dtype=torch.float32), hidden.new_empty(len(ids), dtype=torch.float32)
        wanted = ctx.needs_input_grad[0]
        slopes = torch.empty_like(hidden, dtype=torch.float32) if wanted else None
        for part in chunks(len(ids), ROWS):
            row = torch.log_softmax(head(hidden[part]).float() / temperature, -1)
            logp[part] = row.gather(-1, ids[part, None])[:, 0]
            chance = row.exp()
            entropy[part] = -row.mul_(chance).sum(-1)
            if slopes is not None:
                rest = chance.neg_()
                rest[torch.arange(len(rest)), ids[part]] += 1
                slopes[part] = (rest.to(head.weight.dtype) @ head.weight).float() / temperature
        if slopes is not None:
            ctx.save_for_backward(slopes)
        ctx.mark_non_differentiable(entropy)
        ctx.dtype = hidden.dtype
        return logp, entropy

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (slopes,) = ctx.saved_tensors
        return (slopes * grads[0][:, None]).to(ctx.dtype), None, None, None


def token_logprobs(hidden: Tensor, ids: Tensor, head: Any, temperature: float) -> tuple[Tensor, Tensor]:
    """log softmax(head(hidden) / temperature)[ids] and that distribution's entropy in nats, both [N] float32.

    `hidden` is [N, D], `ids` [N], `head` a frozen linear layer D -> V. Only the first has a gradient, to `hidden`.
    """
    found: tuple[Tensor, Tensor] = _TokenLogprobs.apply(hidden, ids, head, temperature)
    return found

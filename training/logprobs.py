"""Log-probabilities of tokens straight from hidden states: logits of all positions are never there at once.

A few rows at a time become logits over the vocabulary, then numbers. Where a gradient is wanted, that of each
log-probability by its hidden state is computed from the same logits and kept (as wide as the hidden state), so nothing
is computed twice. The head is frozen and gets no gradient: that is what makes it so simple. Left out: entropy's
gradient, because no loss here has an entropy term.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from thumbwise.training.batches import chunks

ROWS = 128
"""Hidden states that become logits together."""


def _rows(hidden: Tensor, head: Any, temperature: float) -> Iterator[tuple[slice, Tensor]]:
    """log softmax(head(hidden) / temperature) in float32, ROWS rows at a time."""
    for part in chunks(len(hidden), ROWS):
        yield part, torch.log_softmax(head(hidden[part]).float() / temperature, -1)


class _TokenLogprobs(torch.autograd.Function):  # type: ignore[misc]
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, ids: Tensor, head: Any, temperature: float) -> Tensor:
        """Keeps d logp / d hidden = (W[id] - p W) / temperature where it is wanted."""
        logp = hidden.new_empty(len(ids), dtype=torch.float32)
        slopes = torch.empty_like(hidden, dtype=torch.float32) if ctx.needs_input_grad[0] else None
        for part, row in _rows(hidden, head, temperature):
            logp[part] = row.gather(-1, ids[part, None])[:, 0]
            if slopes is not None:
                rest = row.exp_().neg_()
                rest[torch.arange(len(rest)), ids[part]] += 1
                slopes[part] = (rest.to(head.weight.dtype) @ head.weight).float() / temperature
        if slopes is not None:
            ctx.save_for_backward(slopes)
        ctx.dtype = hidden.dtype
        return logp

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (slopes,) = ctx.saved_tensors
        return (slopes * grads[0][:, None]).to(ctx.dtype), None, None, None


def token_logprobs(hidden: Tensor, ids: Tensor, head: Any, temperature: float) -> Tensor:
    """log softmax(head(hidden) / temperature)[ids], [N] float32, with a gradient to `hidden`.

    `hidden` is [N, D], `ids` [N], `head` a frozen linear layer D -> V.
    """
    found: Tensor = _TokenLogprobs.apply(hidden, ids, head, temperature)
    return found


def logprobs_and_entropy(hidden: Tensor, ids: Tensor, head: Any, temperature: float) -> tuple[Tensor, Tensor]:
    """The same without a gradient, and each distribution's entropy in nats, both [N] float32."""
    logp, entropy = (hidden.new_empty(len(ids), dtype=torch.float32) for _ in range(2))
    with torch.no_grad():
        for part, row in _rows(hidden, head, temperature):
            logp[part] = row.gather(-1, ids[part, None])[:, 0]
            entropy[part] = -(row.exp() * row).sum(-1)
    return logp, entropy

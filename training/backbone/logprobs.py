"""Log-probabilities of tokens straight from hidden states: the logits of all positions never exist at once.

A few rows at a time become logits over the vocabulary, then numbers. If a gradient is wanted, the gradient of each
log-probability by its hidden state is computed from the same logits and kept (as wide as the hidden state). So nothing
is computed twice. The head is frozen and gets no gradient, which keeps this simple. What a model does to its logits
after its output layer belongs to the head here.

Left out: entropy's gradient, because no loss here has an entropy term.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from thumbwise.contracts import Compared
from thumbwise.training.backbone.batches import chunks

ROWS = 128
"""The number of hidden states that become logits together."""
SCALES = ("logit_scale", "lm_head_multiplier", "output_multiplier")
"""The names that model families use for a factor on their logits."""


@dataclass(frozen=True)
class Head:
    """A model's frozen output layer, a bias included, and what it does to the logits: times `scale`, capped at `cap`.

    The cap is soft: cap * tanh(logit / cap).
    """

    layer: Any
    scale: float = 1.0
    cap: float | None = None

    @classmethod
    def of(cls, model: Any) -> Head:
        """The head of a language model, from its configuration. `Backbone` compares it with what the model computes."""
        config = model.config
        scale = next((float(x) for name in SCALES if (x := getattr(config, name, None)) is not None), 1.0)
        scale /= float(getattr(config, "logits_scaling", None) or 1.0)
        return cls(model.get_output_embeddings(), scale, getattr(config, "final_logit_softcapping", None) or None)

    def __call__(self, hidden: Tensor) -> Tensor:
        """Logits [N, V] float32 of hidden states [N, D]."""
        logits: Tensor = self.layer(hidden).float()
        if self.scale != 1.0:
            logits = logits * self.scale
        return logits if self.cap is None else torch.tanh(logits / self.cap) * self.cap

    def pulled_back(self, slopes: Tensor, logits: Tensor) -> Tensor:
        """Turns slopes [N, V] by the logits into slopes [N, D] by the hidden states, float32."""
        if self.cap is not None:
            slopes = slopes * (1 - (logits / self.cap) ** 2)
        return (slopes.to(self.layer.weight.dtype) @ self.layer.weight).float() * self.scale


def _rows(hidden: Tensor, head: Head, temperature: float) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """log softmax(head(hidden) / temperature) in float32 and the logits, ROWS rows at a time."""
    for part in chunks(len(hidden), ROWS):
        logits = head(hidden[part])
        yield part, torch.log_softmax(logits / temperature, -1), logits


class _TokenLogprobs(torch.autograd.Function):  # type: ignore[misc]
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, ids: Tensor, head: Head, temperature: float) -> Tensor:
        """Keeps d logp / d hidden = (W[id] - p W) / temperature if wanted, with what the head does after W."""
        logp = hidden.new_empty(len(ids), dtype=torch.float32)
        slopes = torch.empty_like(hidden, dtype=torch.float32) if ctx.needs_input_grad[0] else None
        for part, row, logits in _rows(hidden, head, temperature):
            logp[part] = row.gather(-1, ids[part, None])[:, 0]
            if slopes is not None:
                rest = row.exp_().neg_()
                rest[torch.arange(len(rest)), ids[part]] += 1
                slopes[part] = head.pulled_back(rest, logits) / temperature
        if slopes is not None:
            ctx.save_for_backward(slopes)
        ctx.dtype = hidden.dtype
        return logp

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (slopes,) = ctx.saved_tensors
        return (slopes * grads[0][:, None]).to(ctx.dtype), None, None, None


def token_logprobs(hidden: Tensor, ids: Tensor, head: Head, temperature: float) -> Tensor:
    """log softmax(head(hidden) / temperature)[ids], [N] float32, with a gradient to `hidden`; [N, D] and [N]."""
    found: Tensor = _TokenLogprobs.apply(hidden, ids, head, temperature)
    return found


def compare(policy: Tensor, reference: Tensor, ids: Tensor, head: Head, temperature: float) -> Compared:
    """Policy and reference by their hidden states [N, D], at tokens `ids` [N]. What it returns is [N].

    `kl` is the whole sum over the vocabulary, sum_v p(v) log(p(v) / q(v)), after the tokens that were sampled. Summed
    over a reply it has the same mean as log(p / q) of the reply's tokens, and less variance. It is the
    Rao-Blackwellized estimator of Amini, Vieira and Cotterell 2025, "Better estimation of the Kullback-Leibler
    divergence between language models".
    """
    found = policy.new_empty(4, len(ids), dtype=torch.float32)
    with torch.no_grad():
        both = zip(_rows(policy, head, temperature), _rows(reference, head, temperature), strict=True)
        for (part, p, _), (_, q, _) in both:
            chances = p.exp()
            found[0, part], found[1, part] = (row.gather(-1, ids[part, None])[:, 0] for row in (p, q))
            found[2, part] = -(chances * p).sum(-1)
            found[3, part] = (chances * (p - q)).sum(-1)
    return Compared(*found)

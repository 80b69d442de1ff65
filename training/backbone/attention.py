"""Attention for generation with fewer key-value heads than query heads (grouped queries), one token at a time.

At every step transformers copies each key-value head once for every query head that reads it. For a batch that is most
of the memory that a step moves. Here query heads that share a key-value head are put to it as rows of one query.
`tests/bench/training/generation.py` measures what that saves.

Left out: more than one token at a time. That goes to transformers' own function.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface

GROUPED = "thumbwise_grouped"
"""The name under which transformers finds it."""


def grouped_attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None,
    scaling: float | None = None, **others: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """`query` [B, heads, T, D] on `key` and `value` [B, groups, L, D]: ([B, T, heads, D], None).

    `attention_mask` [B, 1, T, L] is added or boolean, as in PyTorch's own function. `scaling` is as there, too.
    """
    rows, heads, steps, size = query.shape
    groups = key.shape[1]
    if steps > 1 or groups == heads or others.get("position_bias") is not None:
        out, _ = sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **others)
        return out, None
    asked = query.reshape(rows, groups, heads // groups, size)
    found = scaled_dot_product_attention(asked, key, value, attn_mask=attention_mask, scale=scaling)
    return found.reshape(rows, 1, heads, size), None


AttentionInterface.register(GROUPED, grouped_attention)
AttentionMaskInterface.register(GROUPED, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])

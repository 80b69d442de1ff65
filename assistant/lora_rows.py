"""Keeps the base model's rows free of adapters in vLLM's CPU code.

In a batch that mixes policies, vLLM gives every row (one token) the index of its adapter's slot, and -1
where the row belongs to the base model. Its CPU code (`vllm/lora/ops/torch_ops/lora_ops.py`, 0.32.0) uses
the index as it is, and in PyTorch `weights[-1]` is the *last* slot: with every slot full, the base
answers with another policy's weights, and nothing says so. The CUDA kernels skip such rows.

`register` is a `vllm.general_plugins` entry point, which vLLM calls in each of its processes. It puts
functions of the same signatures in place of the three that all others end in (`sgmv_*` only repeat the
indices and call `bgmv_*`), in both modules that hold a name for them. Rows of -1 are computed with slot 0
and then set to zero (shrink), or left as they are (expand). A step without such a row costs one
comparison more. Left out: speed; embeddings and heads (same functions, and not adapted here).
"""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

_logger = logging.getLogger("vllm.thumbwise")  # vLLM shows what is logged below its own name

_SIGNATURES = {
    "bgmv_shrink": ["inputs", "lora_b_weights", "output_tensor", "lora_indices_tensor", "scaling"],
    "bgmv_expand": ["inputs", "lora_b_weights", "output_tensor", "lora_indices_tensor", "add_inputs"],
    "bgmv_expand_slice": [
        "inputs",
        "lora_b_weights",
        "output_tensor",
        "lora_indices_tensor",
        "slice_offset",
        "slice_size",
        "add_inputs",
    ],
}


def register() -> None:
    """Patch this process's vLLM if it runs on CPU; again is a no-op.

    On a vLLM whose functions are not the expected ones it logs one warning and changes nothing.
    """
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return
    import torch
    print("AMX", torch.cpu._init_amx(), flush=True)
    try:
        from vllm.lora.ops.torch_ops import lora_ops
        from vllm.lora.punica_wrapper import punica_cpu

        originals = {name: getattr(lora_ops, name) for name in _SIGNATURES}
    except (ImportError, AttributeError) as error:
        _logger.warning("Base rows are not kept free of adapters: this vLLM is laid out otherwise (%s)", error)
        return
    for name, original in originals.items():
        if hasattr(original, "base_rows_are_free"):
            return
        if list(inspect.signature(original).parameters) != _SIGNATURES[name]:
            _logger.warning("Base rows are not kept free of adapters: vLLM's %s has changed", name)
            return
    for name, original in originals.items():
        patched = free_base_rows(original, keeps_output=name != "bgmv_shrink")
        for module in (lora_ops, punica_cpu):
            setattr(module, name, patched)


def free_base_rows(original: Callable[..., None], keeps_output: bool) -> Callable[..., None]:
    """Return `original` such that rows whose adapter index is -1 get nothing from any adapter.

    `keeps_output`: the output of such rows stays as it was (expand adds to the base's result); otherwise
    it becomes 0 (shrink fills a scratch buffer). Shapes: inputs [rows, in], weights [slots, 1, out, in] or
    [slots, out, in], output [rows or more, out or more], indices i64[rows].
    """

    @functools.wraps(original)
    def patched(
        inputs: torch.Tensor,
        weights: torch.Tensor,
        output: torch.Tensor,
        indices: torch.Tensor,
        *rest: Any,
        **named: Any,
    ) -> None:
        is_base = indices < 0
        if not is_base.any():
            original(inputs, weights, output, indices, *rest, **named)
            return
        rows = is_base.nonzero().squeeze(1)
        before = output[rows]  # indexing by a tensor copies
        original(inputs, weights, output, indices.clamp_min(0), *rest, **named)
        output[rows] = before if keeps_output else 0

    patched.base_rows_are_free = True  # type: ignore[attr-defined]
    return patched

"""Keeps the base model's rows free of adapters in vLLM's CPU code.

In a batch that mixes policies, vLLM gives every row (one token) the index of its adapter's slot, and -1
where the row belongs to the base model. Its CPU code (`vllm/lora/ops/torch_ops/lora_ops.py`, 0.32.0) uses
the index as it is, and in PyTorch `weights[-1]` is the *last* slot: with every slot full, the base
answers with another policy's weights, and nothing says so. The CUDA kernels skip such rows.

`register` is a `vllm.general_plugins` entry point, which vLLM calls in each of its processes. It puts
functions of the same signatures in place of the three that all others end in (`sgmv_*` repeat the indices
and call `bgmv_*`). They hand vLLM's own functions the other rows only; a step without base rows costs one
comparison more. Left out: speed (a copy of the adapter is still gathered for every row).
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
    """Patch this process's vLLM if it runs on CPU; a second call changes nothing.

    On a vLLM whose functions are not the expected ones it logs a warning and leaves them alone.
    """
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return
    _allow_amx()
    try:
        from vllm.lora.ops import torch_ops
        from vllm.lora.ops.torch_ops import lora_ops
        from vllm.lora.punica_wrapper import punica_cpu

        originals = {name: getattr(lora_ops, name) for name in _SIGNATURES}
    except (ImportError, AttributeError) as error:
        _logger.warning("Base rows are not kept free of adapters, this vLLM is laid out otherwise: %s", error)
        return
    if any(hasattr(original, "leaves_base_rows") for original in originals.values()):
        return
    for name, original in originals.items():
        if list(inspect.signature(original).parameters) != _SIGNATURES[name]:
            _logger.warning("Base rows are not kept free of adapters: vLLM's %s has changed", name)
            return
    for name, original in originals.items():
        patched = leave_base_rows(original, fills=name == "bgmv_shrink")
        for module in (lora_ops, torch_ops, punica_cpu):
            setattr(module, name, patched)


def leave_base_rows(original: Callable[..., None], fills: bool) -> Callable[..., None]:
    """Return `original` such that rows whose adapter index is -1 get nothing from any adapter.

    `fills`: the output is a scratch buffer, of which such rows become 0 (shrink); otherwise they stay as
    they were (expand adds to the base's result). Shapes: inputs [rows, in], weights [slots, 1, out, in] or
    [slots, out, in], output [rows, at least out], indices i64[rows].
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
        if fills:
            output.zero_()
        rows = (~is_base).nonzero().squeeze(1)
        if rows.numel():
            part = output[rows]  # indexing by a tensor copies
            original(inputs[rows], weights, part, indices[rows], *rest, **named)
            output[rows] = part

    patched.leaves_base_rows = True  # type: ignore[attr-defined]
    return patched


def _allow_amx() -> None:
    """Ask Linux for the use of AMX tiles, which vLLM's bfloat16 attention uses without asking.

    oneDNN asks too, but only once a matrix product is large enough for vLLM to leave it to oneDNN; in a
    model of small layers the first token would end the worker with SIGILL. A no-op without AMX.
    """
    import torch

    if ask := getattr(torch.cpu, "_init_amx", None):
        ask()

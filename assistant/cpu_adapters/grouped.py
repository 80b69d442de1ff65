"""vLLM's adapter computation on CPU, as two matrix products a layer for each adapter in the batch.

vLLM calls a "Punica wrapper" in every linear layer that can carry an adapter: y += x A^T B^T, each row (one token)
with the A and B of its own adapter, whose weights lie in slots. vLLM 0.32's wrapper for CPU copies a slot's whole A and
B for every row and multiplies row by row. Here the rows are grouped by slot once a step, in `update_metadata`, and a
layer computes each group in one go; rows without an adapter are in no group. A layer made of several (q, k and v; gate
and up) has one A and one B: the parts' A above each other, their B as the blocks of a diagonal, so that it takes two
products, not two for each part. Both are packed once after a slot was written to, for the kernel that vLLM chooses for
its own layers (a plain matrix product costs twice as much to call), and without the rows that an adapter of a smaller
rank leaves empty. Left out: mixtures of experts, which vLLM's CPU code cannot do with adapters either.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU
from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm

Parts = Sequence[Tensor]
"""One tensor for each part of a layer, [slots, 1, out, in]."""


@dataclass(frozen=True)
class Groups:
    """The rows of a step by adapter slot. `rows` None: all rows are of the one slot in `spans`.

    Otherwise `rows` [n] are those that have an adapter, sorted by slot, and `spans` says which of them are whose.
    """

    spans: tuple[tuple[int, slice], ...] = ()
    rows: Tensor | None = None


def group(slots: Sequence[int]) -> Groups:
    """Group rows by slot; -1 is a row without an adapter."""
    kinds = sorted(set(slots) - {-1})
    if len(kinds) == 1 and -1 not in slots:
        return Groups(((kinds[0], slice(0, len(slots))),))
    rows: list[int] = []
    spans = []
    for kind in kinds:
        start = len(rows)
        rows += [row for row, slot in enumerate(slots) if slot == kind]
        spans.append((kind, slice(start, len(rows))))
    return Groups(tuple(spans), torch.tensor(rows, dtype=torch.long))


def linear(weight: Tensor) -> Callable[[Tensor], Tensor]:
    """x [rows, in] -> x W^T for a `weight` [out, in] that is packed here, once."""
    layer = torch.nn.Module()
    layer.weight = torch.nn.Parameter(weight, requires_grad=False)
    dispatch_cpu_unquantized_gemm(layer, remove_weight=True)
    return lambda x: layer.cpu_linear(x, layer.weight, None)  # type: ignore[no-any-return]


class Layer:
    """The adapters of one layer, packed as they are asked for."""

    def __init__(self, a_parts: Parts, b_parts: Parts) -> None:
        self.a_parts, self.b_parts = a_parts, b_parts
        self._packed: dict[int, tuple[tuple[int, ...], Callable[[Tensor], Tensor] | None]] = {}

    def of(self, slot: int) -> Callable[[Tensor], Tensor] | None:
        """x -> x A^T B^T of the adapter in `slot`; None where it does not touch this layer."""
        # PyTorch counts the writes to a tensor: that is how a slot that got another adapter is noticed.
        written = tuple(part._version for part in (*self.a_parts, *self.b_parts))
        kept = self._packed.get(slot)
        if kept is None or kept[0] != written:
            kept = self._packed[slot] = (written, self._pack(slot))
        return kept[1]

    def _pack(self, slot: int) -> Callable[[Tensor], Tensor] | None:
        used = torch.stack([part[slot, 0].any(1) for part in self.a_parts]).any(0).nonzero()
        if not len(used):
            return None
        rank = int(used[-1]) + 1
        down = linear(torch.cat([part[slot, 0, :rank] for part in self.a_parts]))
        up = linear(torch.block_diag(*(part[slot, 0, :, :rank] for part in self.b_parts)))
        return lambda x: up(down(x))


class GroupedLoRA(PunicaWrapperCPU):  # type: ignore[misc]
    """Takes the place of `PunicaWrapperCPU`; made by vLLM, one for all layers."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.tokens = Groups()
        """Of the rows of a step's tokens."""
        self.sampled = Groups()
        """Of the rows for which logits are computed."""
        self._layers: dict[int, Layer] = {}

    def update_metadata(self, mapping: Any, lora_index_to_id: Any, max_loras: int, vocab_size: int, **_: Any) -> None:
        """Take in which row has which adapter; vLLM calls this once for a step whose rows are others than before."""
        self._update_base_metadata(mapping, lora_index_to_id, max_loras, vocab_size)
        self.tokens = group(self.token_lora_indices.tolist())
        self.sampled = group(self.sampler_indices.tolist())

    def add_lora_linear(
        self,
        y: Tensor,
        x: Tensor,
        lora_a_stacked: Parts,
        lora_b_stacked: Parts,
        scale: float,
        output_slices: Sequence[int],
        **_: Any,
    ) -> None:
        """y [rows, out] += scale x [rows, in] A^T B^T, in place; the parts of `output_slices` lie side by side in y."""
        if not self.tokens.spans:
            return
        layer = self._layers.get(id(lora_a_stacked))
        if layer is None:  # it keeps the tuple, whose id so stays its own
            layer = self._layers[id(lora_a_stacked)] = Layer(lora_a_stacked, lora_b_stacked)
        _add(self.tokens, y.view(-1, y.shape[-1]), x.view(-1, x.shape[-1]), layer.of, scale)

    def add_lora_logits(
        self, y: Tensor, x: Tensor, lora_a_stacked: Tensor, lora_b_stacked: Tensor, scale: float, **_: Any
    ) -> None:
        """The same for rows whose logits are computed; A [slots, 1, rank, in], B [slots, 1, vocabulary, rank]."""
        layer = self._layers.setdefault(id(lora_a_stacked), Layer((lora_a_stacked,), (lora_b_stacked,)))
        _add(self.sampled, y.view(-1, y.shape[-1]), x.view(-1, x.shape[-1]), layer.of, scale)

    def add_shrink(self, y: Parts, x: Tensor, lora_a_stacked: Parts, scale: float, **_: Any) -> None:
        """y[i] [rows, rank] = scale x A_i^T; 0 in rows without an adapter."""
        for part, weights in zip(y, lora_a_stacked, strict=True):
            part.zero_()
            self._multiply(part.view(-1, part.shape[-1]), x.view(-1, x.shape[-1]), weights, scale)

    def add_expand(
        self,
        y: Tensor,
        x: Parts,
        lora_b_stacked: Parts,
        output_slices: Sequence[int],
        offset_start: int = 0,
        add_inputs: bool = True,
        **_: Any,
    ) -> None:
        """y[:, part i] += x[i] B_i^T (without `add_inputs`: =)."""
        y, left = y.view(-1, y.shape[-1]), offset_start
        for part, weights, width in zip(x, lora_b_stacked, output_slices, strict=True):
            self.add_lora_embedding(y[:, left : left + width], part, weights, add_inputs)
            left += width

    def add_lora_embedding(
        self, y: Tensor, x: Tensor, lora_b_stacked: Tensor, add_inputs: bool = True, **_: Any
    ) -> None:
        """y += x B^T (without `add_inputs`: =)."""
        if not add_inputs:
            y.zero_()
        self._multiply(y, x, lora_b_stacked, 1.0)

    def _multiply(self, y: Tensor, x: Tensor, weights: Tensor, scale: float) -> None:
        x = x.to(weights.dtype)
        _add(self.tokens, y, x, lambda slot: lambda rows: rows @ weights[slot, 0].T, scale)


def _add(
    groups: Groups, y: Tensor, x: Tensor, of: Callable[[int], Callable[[Tensor], Tensor] | None], scale: float
) -> None:
    """y[row] += scale f(x[row]) with the f = of(slot) of its slot; y may be wider than what f returns."""
    for slot, span in groups.spans:
        if (function := of(slot)) is None:
            continue
        rows = None if groups.rows is None else groups.rows[span]
        added = function(x if rows is None else x.index_select(0, rows)).to(y.dtype)
        target = y[:, : added.shape[1]]
        if rows is None:
            target.add_(added, alpha=scale)
        else:
            target.index_add_(0, rows, added, alpha=scale)

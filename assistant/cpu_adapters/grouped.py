"""vLLM's adapter computation on CPU, as two matrix products a layer, however many rows and adapters there are.

vLLM calls a "Punica wrapper" in every linear layer that can carry an adapter: y += x A^T B^T, each row (one token)
with the A and B of its own adapter, whose weights lie in slots. vLLM 0.32's wrapper for CPU copies a slot's whole A and
B for every row and multiplies row by row. Here the rows are grouped by slot once a step, in `update_metadata`, and

- where all rows are of one slot, a layer multiplies by that slot's A and then its B;
- where a few rows are of several, by all slots' A at once, blanks what is not a row's own, and multiplies by all their
  B: calls are what costs there, not numbers;
- where many rows are of several (prompts), slot by slot; in float32 all slots at once here too.

A layer made of several (q, k and v; gate and up) has one A and one B: the parts' A above each other, their B as the
blocks of a diagonal. They are put together once after a slot was written to, without the rows that a smaller rank
leaves empty; in bfloat16 packed for the kernel that vLLM chooses for its own layers (a plain matrix product costs twice
as much to call), in float32 as they are (vLLM's kernel costs four times as much, and cannot add to what is there).
Left out: mixtures of experts, which vLLM's CPU code cannot do with adapters either.
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

FEW = 128
"""Rows up to which all slots are computed for all of them, except in float32, where they always are."""
MANY = 16
"""Rows from which a product for each part of a layer is faster than one with the zeros between them (float32)."""
ALL = -2
"""In the place of a slot's number: all of them."""


@dataclass(frozen=True)
class Groups:
    """The rows of a step by adapter slot: `slots` [rows], and for each slot in use which rows are its (None: all).

    `place` [rows] is where each row is once they are put together slot by slot, and behind all others where it has no
    slot; None where all rows are of one.
    """

    slots: Tensor
    rows: tuple[tuple[int, Tensor | None], ...]
    place: Tensor | None = None

    def joint(self, dtype: torch.dtype) -> bool:
        """Whether to compute all slots at once."""
        return self.place is not None and (dtype == torch.float32 or len(self.slots) <= FEW)


def group(slots: Tensor) -> Groups:
    """Group rows by slot; -1 is a row without an adapter."""
    kinds = sorted(set(slots.tolist()) - {-1})
    if len(kinds) == 1 and bool((slots == kinds[0]).all()):
        return Groups(slots, ((kinds[0], None),))
    rows = [(slots == kind).nonzero()[:, 0] for kind in kinds]
    place = torch.full_like(slots, sum(map(len, rows)))
    if rows:
        place[torch.cat(rows)] = torch.arange(sum(map(len, rows)))
    return Groups(slots, tuple(zip(kinds, rows, strict=True)), place)


def linear(weight: Tensor) -> Callable[[Tensor], Tensor]:
    """x [rows, in] -> x W^T for a `weight` [out, in] that is packed here, once."""
    layer = torch.nn.Module()
    layer.weight = torch.nn.Parameter(weight, requires_grad=False)
    dispatch_cpu_unquantized_gemm(layer, remove_weight=True)
    return lambda x: layer.cpu_linear(x, layer.weight, None)


class Packed:
    """The A and B of a layer in one or more slots, ready to multiply by.

    The columns of A x, and with them the rows of B, are in order of the layer's parts, and within a part of the slots.
    """

    def __init__(self, a_parts: Parts, b_parts: Parts, slots: Sequence[int]) -> None:
        ranks = [(slot, _rank(a_parts, slot)) for slot in slots]
        self.owners = torch.tensor([slot for slot, rank in ranks for _ in range(rank)] * len(a_parts))
        """Whose each of those columns is."""
        self.key = tuple(self.owners.tolist())
        self.empty = not len(self.owners)
        above = torch.cat([part[slot, 0, :rank] for part in a_parts for slot, rank in ranks])
        beside = [torch.cat([part[slot, 0, :, :rank] for slot, rank in ranks], 1) for part in b_parts]
        up = torch.block_diag(*beside)
        self.width = len(up)
        self.finite = bool(up.isfinite().all())
        """Whether 0 times B is 0: else one slot's numbers would get into other slots' rows."""
        self.plain = up.dtype == torch.float32
        if self.plain:
            self._a, self._b = above.t(), up.t().contiguous()
            self._blocks = _blocks(beside)
        elif not self.empty:
            self._down, self._up = linear(above), linear(up)

    def _hidden(self, x: Tensor) -> Tensor:
        return x.mm(self._a) if self.plain else self._down(x)

    def added(self, x: Tensor) -> Tensor:
        """x A^T B^T, [rows, self.width]."""
        if self.empty:
            return x.new_zeros(len(x), self.width)
        return self._hidden(x).mm(self._b) if self.plain else self._up(self._hidden(x))

    def add(self, y: Tensor, x: Tensor, scale: float, others: Tensor | None = None) -> None:
        """y [rows, self.width] += scale x A^T B^T in place; where `others` is true, A x counts as 0."""
        if self.empty:
            return
        hidden = self._hidden(x)
        if others is not None:
            hidden.masked_fill_(others, 0)
        if not self.plain:
            y.add_(self._up(hidden), alpha=scale)
        elif len(x) < MANY:
            y.addmm_(hidden, self._b, alpha=scale)
        else:
            for rows, columns in self._blocks:
                y[:, columns].addmm_(hidden[:, rows], self._b[rows, columns], alpha=scale)


def _rank(a_parts: Parts, slot: int) -> int:
    """The rank of a slot's adapter in this layer, by the last row of an A that is not 0."""
    used = torch.stack([part[slot, 0].any(1) for part in a_parts]).any(0).nonzero()
    return int(used[-1]) + 1 if len(used) else 0


def _blocks(parts: Sequence[Tensor]) -> list[tuple[slice, slice]]:
    """Where each part's B [out, columns of A x] lies in the transposed block diagonal: its rows and columns."""
    found, row, column = [], 0, 0
    for part in parts:
        found.append((slice(row, row + part.shape[1]), slice(column, column + part.shape[0])))
        row, column = row + part.shape[1], column + part.shape[0]
    return found


class Layer:
    """The adapters of one layer, packed as they are asked for."""

    def __init__(self, a_parts: Parts, b_parts: Parts) -> None:
        self.a_parts, self.b_parts = a_parts, b_parts
        self._packed: dict[int, Packed] = {}
        self._written = -1

    def of(self, slot: int) -> Packed:
        """One slot's, or ALL slots'."""
        # vLLM empties a slot of every part before it fills it, and PyTorch counts the writes to a tensor.
        written = self.a_parts[0]._version
        if written != self._written:
            self._packed, self._written = {}, written
        kept = self._packed.get(slot)
        if kept is None:
            slots = range(len(self.a_parts[0])) if slot == ALL else (slot,)
            kept = self._packed[slot] = Packed(self.a_parts, self.b_parts, slots)
        return kept


class GroupedLoRA(PunicaWrapperCPU):  # type: ignore[misc]
    """Takes the place of `PunicaWrapperCPU`; made by vLLM, one for all layers."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        nobody = group(torch.empty(0, dtype=torch.long))
        self.tokens = nobody
        """Of the rows of a step's tokens."""
        self.sampled = nobody
        """Of the rows for which logits are computed."""
        self._layers: dict[int, Layer] = {}
        self._others: dict[tuple[int, ...], Tensor] = {}

    def update_metadata(self, mapping: Any, lora_index_to_id: Any, max_loras: int, vocab_size: int, **_: Any) -> None:
        """Take in which row has which adapter; vLLM calls this once for a step whose rows are others than before."""
        self._update_base_metadata(mapping, lora_index_to_id, max_loras, vocab_size)
        self.tokens, self.sampled = group(self.token_lora_indices.clone()), group(self.sampler_indices.clone())
        self._others = {}

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
        if not self.tokens.rows:
            return
        layer = self._layers.get(id(lora_a_stacked))
        if layer is None:  # it keeps the tuple, whose id so stays its own
            layer = self._layers[id(lora_a_stacked)] = Layer(lora_a_stacked, lora_b_stacked)
        y, x = y.view(-1, y.shape[-1]), x.view(-1, x.shape[-1])
        if self.tokens.joint(x.dtype) and (packed := layer.of(ALL)).finite:
            packed.add(y[:, : packed.width], x, scale, self._other_columns(packed))
        else:
            _add_each(self.tokens, y, x, layer, scale)

    def _other_columns(self, packed: Packed) -> Tensor:
        """Which columns of A x are of another slot than the row's, bool [rows, columns]; kept for the step's layers."""
        if packed.key not in self._others:
            self._others[packed.key] = self.tokens.slots[:, None] != packed.owners
        return self._others[packed.key]

    def add_lora_logits(
        self, y: Tensor, x: Tensor, lora_a_stacked: Tensor, lora_b_stacked: Tensor, scale: float, **_: Any
    ) -> None:
        """The same for rows whose logits are computed; A [slots, 1, rank, in], B [slots, 1, vocabulary, rank]."""
        layer = self._layers.setdefault(id(lora_a_stacked), Layer((lora_a_stacked,), (lora_b_stacked,)))
        _add_each(self.sampled, y.view(-1, y.shape[-1]), x.view(-1, x.shape[-1]), layer, scale)

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
        for slot, rows in self.tokens.rows:
            mine = slice(None) if rows is None else rows
            y[mine] += (scale * (x[mine] @ weights[slot, 0].T)).to(y.dtype)


def _add_each(groups: Groups, y: Tensor, x: Tensor, layer: Layer, scale: float) -> None:
    """y[row] += scale x[row] A^T B^T of its slot, one slot after the other; y may be wider than B."""
    if groups.place is None:
        ((slot, _),) = groups.rows
        packed = layer.of(slot)
        packed.add(y[:, : packed.width], x, scale)
        return
    width = sum(part.shape[2] for part in layer.b_parts)
    added = [layer.of(slot).added(x.index_select(0, rows)) for slot, rows in groups.rows if rows is not None]
    # adding at indices takes three times as long as putting in order and adding
    y[:, :width].add_(torch.cat([*added, x.new_zeros(1, width)]).index_select(0, groups.place), alpha=scale)

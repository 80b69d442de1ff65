"""Keys and values of replies that are being sampled: all of each sequence, with room for the tokens to come.

To add a token, transformers copies a layer's keys and values. For layers with a sliding window it keeps only those
within the window. Here a token is written into its place.

Everything is kept, so that rows of different lengths can be aligned: pads stand on the left of everything, where no
window counts them as tokens between two others.

Left out: layers that keep something other than keys and values.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicLayer


class Growing(DynamicLayer):  # type: ignore[misc]
    """One layer's keys and values, [B, heads, L, D] each. They are views of buffers with room for more."""

    places = 0
    """The number of tokens that there is room for."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Add new keys and values [B, heads, T, D]. Returns all of them."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self._length = 0
            self._buffers = tuple(self._empty(states) for states in (key_states, value_states))
        self._length += key_states.shape[-2]
        start = self._length - key_states.shape[-2]
        for buffer, states in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[:, :, start : self._length] = states
        self._look()
        return self.keys, self.values

    def _empty(self, states: Tensor) -> Tensor:
        rows, heads, _, size = states.shape
        return states.new_empty(rows, heads, self.places, size)

    def _look(self) -> None:
        self.keys, self.values = (buffer[:, :, : self._length] for buffer in self._buffers)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep only the rows `indices`."""
        if self.is_initialized:
            self._buffers = tuple(buffer[indices] for buffer in self._buffers)
            self._look()

    def line_up(self, rows: Tensor, pads: Tensor) -> None:
        """Keep only `rows`, each moved right by as many places as it has `pads` on its right; [B] both."""
        if not self.is_initialized:
            return
        sources = (torch.arange(self._length) - pads[:, None]) % self._length
        moved = []
        for buffer in self._buffers:
            found = buffer.new_empty(len(rows), *buffer.shape[1:])
            found[:, :, : self._length] = buffer[rows[:, None], :, sources].transpose(1, 2)
            moved.append(found)
        self._buffers = tuple(moved)
        self._look()


def growing(places: int) -> Cache:
    """A cache with room for so many tokens."""
    return Cache(layer_class_to_replicate=type("Placed", (Growing,), {"places": places}))


def line_up(cache: Cache, rows: Tensor, pads: Tensor) -> None:
    """`Growing.line_up` of every layer."""
    for layer in cache.layers:
        layer.line_up(rows, pads)

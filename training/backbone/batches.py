"""Turns stored token ids into padded tensors. Masks come from lengths: a stop token that is also the pad stays real.

Sequences are padded on the right, so attention needs no mask (it is causal) and positions count from 0. Only generation
pads on the left (`thumbwise.training.policy.rollouts`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from thumbwise.contracts import Batch, Sample


def make_batch(samples: Sequence[Sample], pad_id: int, *, extra: int = 0) -> Batch:
    """Pad `samples` to one batch; `extra` adds pad columns (which must change nothing)."""
    width = max(len(s.prompt_ids) + len(s.response_ids) for s in samples) + extra
    longest = max(1, *(len(s.response_ids) for s in samples)) + extra
    ids = torch.full((len(samples), width), pad_id)
    tokens = torch.full((len(samples), longest), pad_id)
    starts = torch.tensor([len(s.prompt_ids) for s in samples])
    lengths = torch.tensor([len(s.response_ids) for s in samples])
    for row, sample in enumerate(samples):
        whole = torch.tensor([*sample.prompt_ids, *sample.response_ids])
        ids[row, : len(whole)] = whole
        tokens[row, : lengths[row]] = whole[starts[row] :]
    steps = torch.arange(longest)
    mask = (steps < lengths[:, None]).float()
    at = (starts[:, None] + steps).clamp(max=width - 1)
    before = (starts[:, None] - 1 + steps).clamp(min=0, max=width - 1)
    return Batch(ids, tokens, mask, before, at, shared_prefix([s.prompt_ids for s in samples]))


def shared_prefix(prompts: Sequence[tuple[int, ...]]) -> int:
    """How many tokens all of `prompts` share at the start (a chat template's system text), without the last of each."""
    first, last = min(prompts), max(prompts)
    most = min(len(prompt) for prompt in prompts) - 1
    return max(0, next((n for n in range(most) if first[n] != last[n]), most))


def at_positions(hidden: Tensor, positions: Tensor) -> Tensor:
    """Pick rows of `hidden` [B, L, D] at `positions` [B, T] -> [B, T, D]."""
    return hidden[torch.arange(hidden.shape[0])[:, None], positions]


def chunks(n: int, size: int) -> Iterator[slice]:
    """Slices of at most `size` that cover range(n)."""
    for start in range(0, n, size):
        yield slice(start, min(n, start + size))


def pad_rows(rows: Sequence[Tensor], width: int) -> Tensor:
    """Stack [b, t] tensors of different t into one [B, width], zeros on the right."""
    return torch.cat([torch.nn.functional.pad(row, (0, width - row.shape[1])) for row in rows])

"""Plain statistics of replies, for gates and metrics; no torch."""

from __future__ import annotations

from collections.abc import Sequence

from thumbwise.contracts import Sample


def repetition(samples: Sequence[Sample], n: int = 4) -> float:
    """Share of n-grams of token ids that occurred before in the same reply; 0 if there are none."""
    found = [grams(sample, n) for sample in samples]
    total = sum(count for _, count in found)
    return sum(recurring for recurring, _ in found) / total if total else 0.0


def grams(sample: Sample, n: int = 4) -> tuple[int, int]:
    """How many of a reply's n-grams occurred before in it, and how many n-grams it has."""
    ids = sample.response_ids
    found = [ids[i : i + n] for i in range(len(ids) - n + 1)]
    return len(found) - len(set(found)), len(found)


def mean_length(samples: Sequence[Sample]) -> float:
    """Mean number of response tokens (the stop token counts)."""
    return sum(len(s.response_ids) for s in samples) / max(1, len(samples))


def finish_rate(samples: Sequence[Sample]) -> float:
    """Share of replies that ended by themselves, by finish reason (a custom stop id counts)."""
    return sum(s.finish_reason == "stop" for s in samples) / max(1, len(samples))


def finish_rate_at(lengths: Sequence[int], replies: Sequence[tuple[int, Sample]]) -> float:
    """The same share, if limits are distributed as `lengths`; from `replies` with the limit that each had.

    Longer replies end more often, and the limits of `replies` need not be distributed like that. Lengths without
    replies are left out.
    """
    by_limit: dict[int, list[Sample]] = {}
    for limit, sample in replies:
        by_limit.setdefault(limit, []).append(sample)
    known = [length for length in lengths if length in by_limit]
    rates = {limit: finish_rate(samples) for limit, samples in by_limit.items()}
    return sum(rates[length] for length in known) / max(1, len(known))


def eos_penalties(samples: Sequence[Sample], penalty: float) -> list[float]:
    """`penalty` for every reply that its length limit cut off, 0 for a reply that ended by itself."""
    return [0.0 if s.finish_reason == "stop" else penalty for s in samples]

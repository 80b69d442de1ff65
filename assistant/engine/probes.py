"""Probes: they show that a server answers with a version and not with another model.

A probe asks for next-token log-probabilities on contexts from the version's manifest, over the same socket as every
reply. They must agree with the trainer's, and be nearer to them than to the base model's. The reason: vLLM answers with
the base model and status 200 if the keys of an adapter match nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from thumbwise.errors import ThumbwiseError

if TYPE_CHECKING:
    from thumbwise.engine.client import EngineClient

ENGINE_TOP = 60  # more than a manifest's 20, so that a token at the edge of the trainer's list is not missed


@dataclass(frozen=True)
class Probe:
    """Distances in nats, weighted by the trainer's probabilities, averaged over the probe contexts."""

    to_trainer: float
    to_base: float

    def check(self, version: str, limit: float) -> None:
        """Raise ThumbwiseError (422) if these distances show that another model answered."""
        if not self.to_trainer <= limit:
            raise ThumbwiseError(
                f"{version} does not answer as it was trained: its probe is {self.to_trainer:.3f} nats from the "
                f"trainer's log-probabilities, over {limit} (setting engine.probe_tolerance).",
                status=422,
            )
        if not self.to_trainer < self.to_base:
            raise ThumbwiseError(
                f"{version} answers like the base model ({self.to_base:.3f} nats from it, "
                f"{self.to_trainer:.3f} from the trainer): it changes nothing, or vLLM did not use it.",
                status=422,
            )


def distance(trainer: Mapping[int, float], other: Mapping[int, float]) -> float:
    """Mean |log-probability difference| over the trainer's top tokens, weighted by their probability.

    `trainer` and `other` map token ids to natural log-probabilities at temperature 1. A token that is not in `other` is
    at most as likely as the least likely token in it, whose log-probability is used.
    """
    least = min(other.values())
    weights = {token: math.exp(value) for token, value in trainer.items()}
    total = sum(w * abs(trainer[token] - other.get(token, least)) for token, w in weights.items())
    return total / sum(weights.values())


async def ask(engine: EngineClient, version: str, probes: Sequence[Mapping[str, Any]]) -> Probe:
    """Ask an engine for a version's log-probabilities on `probes`, which are in its manifest."""
    own: list[float] = []
    base: list[float] = []
    try:
        answers = await engine.next_tokens(version, [probe["context_ids"] for probe in probes], ENGINE_TOP)
    except ThumbwiseError as error:
        if error.status != 400:
            raise
        raise ThumbwiseError(f"{version} has a probe that cannot be asked: {error}", status=422) from error
    for probe, answer in zip(probes, answers, strict=True):
        own.append(distance(dict(zip(probe["top_ids"], probe["top_logprobs"], strict=True)), answer))
        base.append(distance(dict(zip(probe["top_ids"], probe["base_top_logprobs"], strict=True)), answer))
    return Probe(sum(own) / len(own), sum(base) / len(base))

"""Every hook a Thumbwise plugin can implement, on one screen.

Registration hooks receive `register(name, factory)`; decision hooks return a value, and None means "not
mine". All are called with keyword arguments, so an implementation names only the ones it needs.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from thumbwise.contracts import Message, Register, Sample, Scores

hookspec = pluggy.HookspecMarker("thumbwise")


@hookspec
def register_judges(register: Register) -> None:
    """Register `judge(prompt, responses) -> scores`, which stands in for people."""


@hookspec
def register_reward_models(register: Register) -> None:
    """Register a factory `(context: RunContext) -> RewardModel`."""


@hookspec
def register_policy_algorithms(register: Register) -> None:
    """Register a factory `(context: RunContext, reward) -> PolicyAlgorithm`."""


@hookspec
def register_rollout_backends(register: Register) -> None:
    """Register a factory `(context: RunContext) -> RolloutBackend`, which samples replies for training."""


@hookspec
def register_gates(register: Register) -> None:
    """Register `gate(evidence) -> GateReport`; every gate must pass before a version takes traffic."""


@hookspec(firstresult=True)
def select_candidates(
    conversation: Sequence[Message], versions: Sequence[str], k: int, rng: random.Random
) -> list[str] | None:
    """Choose the k policy versions to show side by side (repeats mean several samples of one)."""


@hookspec
def shape_reward(samples: Sequence[Sample], scores: Scores, context: Any) -> Scores | None:
    """Return changed scores for rollouts; implementations are chained, and each gets the result of the one before."""


@hookspec
def on_feedback(event: dict[str, Any]) -> None:
    """Observe one stored vote. Like all observers, it runs in a background thread, and an exception is logged."""


@hookspec
def on_promote(old: str, new: str, reason: str) -> None:
    """Observe that `new` replaced `old` as the stable version."""


@hookspec
def on_rollback(old: str, new: str, reason: str) -> None:
    """Observe that `new` answers again instead of `old`, which was stable or the canary."""

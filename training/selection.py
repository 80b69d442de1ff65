"""Which of a run's policies goes on to the swap: the last one, unless it went too far.

A policy that drifts on after it has learned what people want is what over-optimisation looks like (Gao et al. 2022):
the proxy rises and the replies get worse. So where the gates refuse the last policy, they are asked once more, about
the newest one within half of the KL budget, and the round's votes are not lost. Two tries, not a search: each look
at the held-out prompts makes passing by luck likelier. Left out: averaging policies.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from thumbwise.contracts import Evidence, Gate, GateReport, PolicyAlgorithm
from thumbwise.training.evaluate import run_gates

HALFWAY = 0.5


@dataclass(frozen=True)
class Selected:
    """What the gates saw and said of the policy that the algorithm now holds, and why it is not the last one."""

    evidence: Evidence
    reports: list[GateReport]
    stopped: str

    @property
    def passed(self) -> bool:
        """Whether every gate passed."""
        return all(report.passed for report in self.reports)


def halfway(rows: Sequence[Mapping[str, float]], budget: float) -> int | None:
    """How many iterations the newest policy within half of the KL budget has behind it; None where none has learned.

    `rows` are the iterations' metrics; `kl` there is of the policy that the iteration began with.
    """
    within = [n for n, row in enumerate(rows) if n > 0 and row["kl"] <= HALFWAY * budget]
    return max(within, default=None)


def select(
    algorithm: PolicyAlgorithm,
    gather: Callable[[], Evidence],
    gates: dict[str, Gate],
    *,
    budget: float,
    last: Mapping[str, Any],
    milder: Callable[[], Mapping[str, Any] | None],
    stopped: str,
    say: Callable[[str], None],
) -> Selected:
    """Ask the gates about the policy that `algorithm` holds, and set it back where that is what they need.

    `last` is the state before the last update, known to be within `budget` (nats a reply); `milder` gives an
    earlier one, or None; `stopped` says why training ended early, if it did.
    """
    evidence = gather()
    if evidence.kl > budget and not stopped:
        stopped = "kl"  # the last update went over it
        algorithm.load_state_dict(last)
        evidence = gather()
    first = Selected(evidence, run_gates(gates, evidence), stopped)
    if first.passed or evidence.kl <= HALFWAY * budget or (earlier := milder()) is None:
        return first
    refused = " ".join(report.detail for report in first.reports if not report.passed)
    say(f"The last policy is refused; the gates are asked about the newest within half of the KL budget. {refused}")
    kept = algorithm.state_dict()
    algorithm.load_state_dict(earlier)
    evidence = gather()
    second = Selected(evidence, run_gates(gates, evidence), "gates")
    if second.passed:
        return second
    algorithm.load_state_dict(kept)
    return first

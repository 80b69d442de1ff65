"""Which of a run's policies goes on to the swap: the last one, unless it went too far.

Over-optimisation (Gao et al. 2022) looks like this: the policy has learned what people want and drifts on. The proxy
rises and the replies get worse. So if the gates refuse the last policy, they judge the newest one within three quarters
of the KL budget, then the newest one within half of it. Otherwise the round's votes would be lost.

There are three tries, not a search. Each look at the held-out prompts makes passing by luck likelier, so the three
tries share the win rate's level.

Left out: averaging policies.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from thumbwise.contracts import Evidence, Gate, GateReport, PolicyAlgorithm
from thumbwise.training.evaluation.evaluate import kl_of_a_token, run_gates

SHARES = (0.75, 0.5)
"""The parts of the KL budget that an earlier policy must be within, furthest first."""
TRIES = 1 + len(SHARES)
"""The most policies of one round that the gates judge."""


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


def earlier(rows: Sequence[Mapping[str, float]], budget: float, kl: float = math.inf) -> list[int]:
    """The iterations behind each policy to fall back on: the newest one within each of SHARES, furthest first.

    `rows` are the iterations' metrics. Their `kl` is that of the policy that the iteration began with. The untrained
    policy is never among them. A share is skipped if the policy at `kl` nats a token is itself within it.
    """
    limits = [share * budget for share in SHARES if not share * budget >= kl]
    # a log that was cut off may lack some
    begun = [(int(row["iteration"]), row["kl"] / max(row["length"], 1)) for row in rows]
    newest = (max((n for n, nats in begun if nats <= limit), default=0) for limit in limits)
    return list(dict.fromkeys(number for number in newest if number))


def select(
    algorithm: PolicyAlgorithm,
    gather: Callable[[], Evidence],
    gates: Mapping[str, Gate],
    brought_by: Mapping[str, str],
    *,
    budget: float,
    last: Mapping[str, Any],
    earlier_policies: Callable[[float], Iterable[Mapping[str, Any]]],
    stopped: str,
    say: Callable[[str], None],
) -> Selected:
    """Ask the gates about the policy that `algorithm` holds. If they refuse it, `algorithm` may get an earlier one.

    - `last` is the state before the last update. It is known to be within `budget` (nats a token).
    - `earlier_policies` gives the states to fall back on from a policy at that KL.
    - `stopped` says why training ended early, if it did.
    - `brought_by` names each gate's plugin.
    """
    evidence = gather()
    if not kl_of_a_token(evidence) <= budget and not stopped:  # also where it is not a number
        stopped = "kl"  # the last update went over it
        algorithm.load_state_dict(last)
        evidence = gather()
    first = found = Selected(evidence, run_gates(gates, evidence, brought_by), stopped)
    if first.passed:
        return first
    kept = copy.deepcopy(algorithm.state_dict())
    for state in earlier_policies(kl_of_a_token(evidence)):
        refused = " ".join(report.detail for report in found.reports if not report.passed)
        say(f"This policy is refused; the gates judge an earlier one. {refused}")
        algorithm.load_state_dict(state)
        evidence = gather()
        found = Selected(evidence, run_gates(gates, evidence, brought_by), "gates")
        if found.passed:
            return found
    algorithm.load_state_dict(kept)
    return first

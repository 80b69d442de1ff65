"""Which policy of a run goes on: the last one, the one before it, or an earlier one that the gates accept."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from thumbwise.contracts import Evidence, GateReport, Sample
from thumbwise.settings.gates import GateSettings
from thumbwise.training.evaluation.selection import Selected, earlier, select

TOKENS = 2
BUDGET = 8.0


class Policy:
    """An algorithm whose whole state is how far it is from the reference."""

    iterations = 1

    def __init__(self, kl: float) -> None:
        self.kl = kl

    def step(self, iteration: int) -> dict[str, float]:
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        return {"kl": self.kl}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.kl = state["kl"]


def selected(
    policy: Policy, limit: float, *, milder: Sequence[float] = (5.5, 3.0), stopped: str = ""
) -> tuple[Selected, int]:
    """Let gates that allow `limit` nats judge; returns what was selected and how often they were asked."""
    asked = 0

    def gather() -> Evidence:
        nothing, reply = np.zeros(0, np.float32), Sample((), "", (1,), (2,) * TOKENS, "stop", "policy-0000")
        return Evidence(0.7, 100, (reply,), (), nothing, nothing, policy.kl, GateSettings())

    def gate(evidence: Evidence) -> GateReport:
        nonlocal asked
        asked += 1
        return GateReport("kl", evidence.kl <= limit, evidence.kl, limit, f"It is {evidence.kl} nats away.")

    result = select(
        policy, gather, {"kl": gate}, {"kl": "mine"}, budget=BUDGET / TOKENS, last={"kl": 7.0}, stopped=stopped,
        say=lambda line: None, earlier_policies=lambda kl: ({"kl": less} for less in milder if less < kl * TOKENS),
    )  # fmt: skip
    return result, asked


@pytest.mark.parametrize(
    ("kl", "limit", "held", "stopped", "passed", "asked"),
    [
        (6.0, 15.0, 6.0, "", True, 1),  # the last one, as it is
        (9.0, 15.0, 7.0, "kl", True, 1),  # over the budget: the one before
        (math.nan, 15.0, 7.0, "kl", True, 1),  # spoilt by its last update: too
        (6.0, 5.8, 5.5, "gates", True, 2),  # refused: the milder one
        (9.0, 5.8, 5.5, "gates", True, 2),
        (6.0, 5.0, 3.0, "gates", True, 3),  # refused as well: the mildest
        (6.0, 2.0, 6.0, "", False, 3),  # all refused: the last one, with its reasons
        (2.5, 2.0, 2.5, "", False, 1),  # nothing is milder: not asked again
    ],
)
def test_the_policy_that_is_handed_over(
    kl: float, limit: float, held: float, stopped: str, passed: bool, asked: int
) -> None:
    policy = Policy(kl)
    result, times = selected(policy, limit)
    assert (policy.kl, result.evidence.kl, result.stopped, result.passed) == (held, held, stopped, passed)
    assert times == asked
    assert result.reports[0].detail == f"It is {held} nats away."


def test_where_no_earlier_policy_has_learned_the_refusal_stands() -> None:
    result, times = selected(Policy(6.0), 2.0, milder=())
    assert not result.passed
    assert times == 1


class Live(Policy):
    """Its state is the very thing that is trained, as torch's `state_dict` is."""

    def __init__(self, kl: float) -> None:
        self.state = {"kl": kl}

    @property
    def kl(self) -> float:  # type: ignore[override]
        return self.state["kl"]

    def state_dict(self) -> dict[str, Any]:
        return self.state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.state.update(state)


def test_a_plugins_live_state_is_copied_before_earlier_ones_are_tried() -> None:
    policy = Live(6.0)
    result, times = selected(policy, 2.0)
    assert (result.passed, times, policy.kl) == (False, 3, 6.0)


def test_a_run_that_its_budget_ended_keeps_that_reason() -> None:
    assert selected(Policy(7.0), 15.0, stopped="kl")[0].stopped == "kl"


def test_earlier_policies_are_the_newest_in_each_share_of_the_budget_and_never_the_untrained_one() -> None:
    rows = [
        {"iteration": n, "kl": kl * length, "length": length}
        for n, (kl, length) in enumerate(((0.0, 9), (1.0, 1), (3.9, 2), (4.1, 1), (3.0, 1), (5.9, 3), (7.0, 1)))
    ]
    assert earlier(rows, BUDGET) == [5, 4]
    assert earlier(rows, BUDGET, kl=6.0) == [4]
    assert earlier(rows, BUDGET, kl=math.nan) == [5, 4]
    assert earlier(rows, BUDGET, kl=4.0) == []
    assert earlier(rows[:5], BUDGET) == [4]  # one policy is the newest in both
    assert earlier(rows[:1], BUDGET) == []
    assert earlier([rows[0], rows[6]], BUDGET) == []
    assert earlier(rows[:3] + rows[4:], BUDGET) == [5, 4]  # a line is missing from the log

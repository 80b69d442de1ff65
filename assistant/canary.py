"""Whether a canary does worse than the stable version: an anytime-valid test on what people met.

Two streams are looked at, both of turns outside comparisons whose people the rollout assigned: replies that failed,
and thumbs that were down (the first thumb on each reply). In each, the null hypothesis is that the canary's rate is
at most stable's, and the evidence against it is the product of E-variables for two proportions over blocks of turns
(Turner, Ly and Grünwald 2024, "Generic E-variables for exact sequential k-sample tests that allow for optional
stopping", JSPI 230). By Ville's inequality that product ever reaches 1 / a with a probability of at most
a, however often one looks, so it may be looked at after every turn and acted on at once. It needs no library: the
formula is four terms. Left out: that one person's turns are alike. Who counts as many turns weighs as many.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from thumbwise.feedback.records import REFUSED

if TYPE_CHECKING:
    from thumbwise.feedback.store import Store
    from thumbwise.versions import Pointer

STREAMS = 2
PRIOR = 2.0
"""Turns at stable's rate that a canary's rate starts from."""


@dataclass
class Tally:
    """Outcomes of one stream: turns, those that were bad, and the smallest p-value that was reached."""

    turns: int = 0
    bad: int = 0
    stable_turns: int = 0
    stable_bad: int = 0
    p: float = 1.0

    def said(self, what: str) -> str:
        """Both rates in words."""
        return f"{self.bad} of {self.turns} {what}, beside {self.stable_bad} of {self.stable_turns} of stable's"


@dataclass(frozen=True)
class Judgement:
    """What is known of a canary so far."""

    replies: Tally
    thumbs: Tally

    def against(self, level: float) -> str:
        """Why it should be taken back, or nothing; wrong with a probability of at most `level`, ever."""
        found = ((self.replies, "of its replies failed"), (self.thumbs, "of its thumbs were down"))
        return "; ".join(tally.said(what) for tally, what in found if tally.p <= level / STREAMS)


def tally(outcomes: Iterable[tuple[bool, bool]]) -> Tally:
    """The tally of a stream in its order; an outcome is (of the canary?, bad?).

    A block ends as soon as it holds turns of both versions, and is scored with the rates known before it, so each
    factor's mean is at most 1 where the canary is no worse.
    """
    found, block, evidence = Tally(), Tally(), 0.0
    for of_canary, bad in outcomes:
        if of_canary:
            block.turns += 1
            block.bad += bad
        else:
            block.stable_turns += 1
            block.stable_bad += bad
        if block.turns and block.stable_turns:
            evidence += _log_e(block, *_rates(found))
            found.p = min(found.p, math.exp(-max(evidence, 0.0)))
            _add(found, block)
            block = Tally()
    _add(found, block)
    return found


def _rates(known: Tally) -> tuple[float, float]:
    """Plug-in rates of canary and stable, the canary's at least stable's: the alternative is one-sided."""
    stable = (known.stable_bad + 0.5) / (known.stable_turns + 1)
    canary = (known.bad + PRIOR * stable) / (known.turns + PRIOR)
    return max(canary, stable), stable


def _log_e(block: Tally, canary: float, stable: float) -> float:
    """log of prod p_canary(y) prod p_stable(y) / prod p_pooled(y); pooled is the mean of both rates over the block."""
    pooled = (block.turns * canary + block.stable_turns * stable) / (block.turns + block.stable_turns)
    return (
        block.bad * math.log(canary / pooled)
        + (block.turns - block.bad) * math.log((1 - canary) / (1 - pooled))
        + block.stable_bad * math.log(stable / pooled)
        + (block.stable_turns - block.stable_bad) * math.log((1 - stable) / (1 - pooled))
    )


def _add(found: Tally, block: Tally) -> None:
    found.turns += block.turns
    found.bad += block.bad
    found.stable_turns += block.stable_turns
    found.stable_bad += block.stable_bad


def judge(store: Store, pointer: Pointer) -> Judgement:
    """Read what people met since the rollout began; blocking.

    Turns that named their version do not count, nor those that vLLM refused.
    """
    assert pointer.canary is not None
    asked = [pointer.canary, pointer.stable, pointer.since]
    read = "SELECT r.policy_version AS version, r.user_id AS user, r.conversation_id AS place,"
    said = "r.policy_version IN (?, ?) AND r.created_at >= ? AND r.comparison_id IS NULL"
    replies = store.rows(
        f"{read} r.state = 'failed' AS bad FROM replies r WHERE {said} AND r.state IN ('done', 'failed')"
        " AND coalesce(r.finish_reason, '') <> ? ORDER BY r.finished_at, r.id",
        [*asked, REFUSED],
    )
    thumbs = store.rows(
        f"{read} f.value, min(f.seq) AS seq FROM replies r"
        f" JOIN feedback f ON f.message_id = r.id AND f.kind = 'thumb' WHERE {said} GROUP BY r.id ORDER BY seq",
        asked,
    )
    # SQLite takes `value` from the row that min(seq) is of.
    votes = [row | {"bad": vote == "down"} for row in thumbs if (vote := json.loads(row["value"])["thumb"]) != "clear"]

    def assigned(rows: Iterable[dict[str, Any]]) -> Iterator[tuple[bool, bool]]:
        for row in rows:
            if row["version"] == pointer.version_for(row["user"], row["place"]):
                yield row["version"] == pointer.canary, bool(row["bad"])

    return Judgement(tally(assigned(replies)), tally(assigned(votes)))

"""What a round learned from, item by item: the assistant keeps it, so that forgetting knows which versions to name.

Prompts held out for the gates and votes set aside (`thumbwise.training.data.people`) taught nothing and are left out.
Ids and weights only.
"""

from __future__ import annotations

import math

from thumbwise.contracts import FitReport, RunContext
from thumbwise.training.data.snapshot import Snapshot
from thumbwise.training.run.folders import read_json, write_json
from thumbwise.training.run.work import Work

LINEAGE = "lineage.json"
Item = tuple[str, str, float]


def tell_lineage(work: Work, context: RunContext, snapshot: Snapshot, fit: FitReport) -> None:
    """Tell the assistant what the round learns from, and keep it in the run's folder."""
    write_json(work.folder / LINEAGE, learned_from(work, context, snapshot, fit))
    work.client.tell_lineage(work.given, kept_lineage(work))
    work.lease.check()


def kept_lineage(work: Work) -> list[Item]:
    """What the round told, or an earlier attempt of it."""
    return [(str(id_), str(kind), float(weight)) for id_, kind, weight in read_json(work.folder / LINEAGE) or ()]


def learned_from(work: Work, context: RunContext, snapshot: Snapshot, fit: FitReport) -> list[Item]:
    """Every vote with its final weight, the corrections of SFT, and people's prompts that rollouts may start from."""
    labels, weights = snapshot.labels, fit.weights
    votes = [choice.id for choice in labels.comparisons]
    votes += [ranking.id for ranking in labels.rankings] + [thumb.id for thumb in labels.thumbs]
    items: list[Item] = [(id_, "vote", _number(weights.get(id_, 0.0) if weights else 1.0)) for id_ in votes]
    if snapshot.sft(work.settings.train):
        items += [(said.id, "demonstration", 1.0) for said in snapshot.demonstrations]
    items += [(prompt.id, "prompt", 1.0) for prompt in context.prompts if prompt.id]
    return sorted(dict.fromkeys(items))


def _number(weight: float) -> float:
    """The weight as JSON can carry it: one of a plugin may be anything."""
    return float(weight) if math.isfinite(weight) else 0.0

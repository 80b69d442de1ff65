"""What each training run learned from: which feedback, with which weight. Ids only, nothing of the text.

The job sends it in batches, once it has decided what it learns from. A batch may be sent again. The last one says how
many items there are, and only then the run may publish. Runs from before this was recorded have no lineage.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from thumbwise.errors import Conflict, ThumbwiseError
from thumbwise.feedback.store import Store

Kind = Literal["vote", "demonstration", "prompt"]
Item = tuple[str, Kind, float]
"""(id, kind, weight). The id is that of the feedback; of a prompt it is that of the reply whose prompt it is."""
_LEARNED = """
    SELECT l.run_id, l.feedback_id, l.kind, l.weight, p.version
    FROM lineage l LEFT JOIN policies p ON p.run_id = l.run_id
"""


@dataclass(frozen=True)
class Learned:
    """One thing that a run learned from.

    A vote of `weight` 0 was looked at and had no part in the reward model. `version` is what the run published; None if
    it has published nothing.
    """

    run_id: str
    feedback_id: str
    kind: Kind
    weight: float
    version: str | None


class Lineage:
    """What runs learned from, in the feedback database. All methods block."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def record(self, run_id: str, items: Sequence[Item], total: int | None) -> None:
        """Store a batch. `total` comes with the last batch: raises Conflict if another number of items is there."""
        if not all(kind in get_args(Kind) for _, kind, _ in items):
            raise ThumbwiseError(f"A run learns from {', '.join(get_args(Kind))}: send one of these kinds.")
        with self.store.write() as db:
            db.execute(
                "INSERT INTO lineage (run_id, feedback_id, kind, weight)"
                " SELECT ?, value ->> 0, value ->> 1, value ->> 2 + 0.0 FROM json_each(?) WHERE true"
                " ON CONFLICT (run_id, feedback_id, kind) DO UPDATE SET weight = excluded.weight",
                [run_id, json.dumps(items)],
            )
            if total is None:
                return
            (there,) = db.query("SELECT count(*) AS n FROM lineage WHERE run_id = ?", [run_id])
            if there["n"] != total:
                raise Conflict(
                    f"Of what the run learned from, {there['n']} of {total} items have arrived: send all of them again."
                )
            db.execute("UPDATE runs SET learned = ? WHERE id = ?", [total, run_id])

    def check(self, run_id: str) -> None:
        """Raise Conflict if the run has not said what it learned from."""
        if not self.store.rows("SELECT 1 FROM runs WHERE id = ? AND learned IS NOT NULL", [run_id]):
            raise Conflict(
                "This run has not said what it learned from, so nothing it made can be published: start a new one with "
                "`thumbwise train`."
            )

    def of_items(self, ids: Sequence[str]) -> list[Learned]:
        """Every use of these items, oldest run first. Ids as in `Item`."""
        found = self.store.rows(
            f"{_LEARNED} WHERE l.feedback_id IN (SELECT value FROM json_each(?)) ORDER BY l.run_id, l.feedback_id",
            [json.dumps(list(ids))],
        )
        return [Learned(**row) for row in found]

    def of_run(self, run_id: str) -> list[Learned]:
        """Everything that a run learned from."""
        found = self.store.rows(f"{_LEARNED} WHERE l.run_id = ? ORDER BY l.feedback_id, l.kind", [run_id])
        return [Learned(**row) for row in found]

"""One side of `sybil.py`: fit the reward model of the build that this process finds, and score replies with it.

    python tests/bench/training/sybil_parts/fit.py < job.json

The job names a file of hidden states, read in the model's place, and snapshots. Runs with builds of before people were
told apart, so it asks for what is newer by name. Cross-validation is left out: it is most of the time, and changes no
score.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np
from any_build import either

from thumbwise.contracts import Sample
from thumbwise.errors import ThumbwiseError
from thumbwise.plugins.bradley_terry import BradleyTerry

TrainSettings = either("settings.training", "training.config").TrainSettings
parse = either("training.data.snapshot", "training.data").parse


class Stored:
    """What a reward model asks of a backbone, from a file."""

    def __init__(self, path: Path) -> None:
        found = np.load(path)
        self.layers, self.hidden_size = range(int(found["depth"])), int(found["sums"].shape[2])
        self.stop_ids = frozenset(found["stop_ids"].tolist())
        self.read, self.read_last = tuple(found["layers"]), tuple(found["last_layers"])
        self.rows = {key: row for row, key in enumerate(found["keys"].tolist())}
        self.sums, self.lasts, self.counts = found["sums"], found["lasts"], found["counts"]

    def told(self, what: str, done: int, total: int) -> None:
        """Nobody asks how far it is."""

    def pooled(self, samples: Sequence[Sample], layers: Sequence[int], last: Sequence[int] = ()) -> tuple[Any, ...]:
        """As `Backbone.pooled`."""
        if tuple(layers) != self.read or tuple(last) not in ((), self.read_last):
            raise SystemExit(f"This build reads the layers {layers} and {last}, and those are not in the file.")
        rows = [self.rows[json.dumps([sample.prompt_ids, sample.response_ids])] for sample in samples]
        return self.sums[rows], self.lasts[rows][:, : len(last)], self.counts[rows]


def scores(snapshot: Path, test: Sequence[Sample], backbone: Stored, seed: int) -> dict[str, Any]:
    """Scores of `test` by a model fitted on the votes in `snapshot`, and how many votes were heard."""
    train = TrainSettings(rm_heads=2)
    found = parse(snapshot.read_bytes())
    found = found.heard(train) if hasattr(found, "heard") else found
    context: Any = SimpleNamespace(backbone=backbone, train=train, temperature=0.7, max_tokens=48)
    model: Any = BradleyTerry(context)
    if hasattr(model, "_foretell"):
        model._foretell = lambda views, votes, *more: np.full(len(votes.left), np.nan)
    else:  # an older build
        model._cross_validate = lambda views, votes, seed: (np.array([]), [])
    try:
        model.fit(found.labels, seed)
    except ThumbwiseError as error:
        return {"ended": str(error), "votes": found.n_labels}
    doubted = model.details.get("doubted", {})
    return {"scores": model.score(test).value.tolist(), "votes": found.n_labels, "doubted": doubted}


def main() -> None:
    """Read the job, print one JSON object."""
    job = json.load(sys.stdin)
    backbone = Stored(Path(job["features"]))
    test = [Sample((), "", tuple(asked), tuple(said), "", "") for asked, said in job["test"]]
    found = {name: scores(Path(path), test, backbone, job["seed"]) for name, path in job["snapshots"].items()}
    print(json.dumps(found))


if __name__ == "__main__":
    main()

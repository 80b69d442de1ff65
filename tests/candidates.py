"""A real candidate from a PEFT adapter folder: weights, configuration, manifest and probes as the job makes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from thumbwise.contracts import Message, Prompt
from thumbwise.models import prepare
from thumbwise.training.candidate import Candidate, adapter_files, make_candidate, make_probes
from thumbwise.training.config import TrainSettings
from thumbwise.training.models import POLICY, Backbone


def candidate_of(model: Path, adapter: Path, number: int, **facts: Any) -> Candidate:
    """The candidate number `number` with the weights of `adapter` (rank and alpha 8), trained on nothing."""
    from thumbwise.home import Home

    train = TrainSettings(dtype="float32", lora_rank=8, lora_alpha=8)
    backbone = Backbone(model, train)
    backbone.load_adapter("given", adapter)
    given = backbone.state("given")
    backbone.restore(POLICY, {key.replace(".given.", f".{POLICY}."): value for key, value in given.items()})
    prompts = [Prompt((Message(role="user", content=f"Say something about {n}."),), str(n)) for n in range(8)]
    row = {
        "parent": "policy-0000", "base_digest": prepare(Home.find(model.parent / "home"), str(model)).digest,
        "snapshot_id": "s", "algorithm": "given", "n_labels": 0, "metrics": {},
        "probes": make_probes(backbone, prompts),
    }  # fmt: skip
    return make_candidate(number, adapter_files(backbone, "tiny"), row | facts, [])

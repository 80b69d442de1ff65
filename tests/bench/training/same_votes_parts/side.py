"""One side of `same_votes.py`: a whole round of the build that this process finds, or scores by its reward model.

    python tests/bench/training/same_votes_parts/side.py train|score < job.json

Runs with older builds: it uses nothing newer, and modules that were moved by either name. A round that was stopped goes
on. The stand-in for the assistant, `training_world`, is that build's own. Prints one JSON object.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import httpx
from any_build import either
from training_world import FakeAssistant

from thumbwise.contracts import RunContext, Sample
from thumbwise.home import Home
from thumbwise.settings import Settings

PreparedModel = either("base_model.prepare", "models").PreparedModel
PluginManager = either("plugin_host.manager", "plugin_manager").PluginManager
GateSettings = either("settings.gates", "training.config").GateSettings
TrainSettings = either("settings.training", "training.config").TrainSettings
Backbone = either("training.backbone.backbone", "training.models").Backbone
run_training = either("training.job.job", "training.job").run_training


class Assistant(FakeAssistant):
    """At a temperature of our choice."""

    temperature = 0.7

    def _begin(self) -> httpx.Response:
        return httpx.Response(201, json=super()._begin().json() | {"temperature": self.temperature})


def settings_of(job: dict[str, Any]) -> Any:
    """The build's own defaults but for what is in the job and known to it."""
    train = {name: value for name, value in job["train"].items() if name in TrainSettings.model_fields}
    gates = {name: value for name, value in job["gates"].items() if name in GateSettings.model_fields}
    return Settings(train=TrainSettings(**train), gates=GateSettings(**gates), chat_max_tokens=job["chat_tokens"])


def train(job: dict[str, Any]) -> dict[str, Any]:
    """The round's result."""
    home = Home.find(Path(job["home"]))
    run = home.runs / "run-1"
    if (run / "result.json").exists():
        found: dict[str, Any] = json.loads((run / "result.json").read_text())
        if found["outcome"] != "failed":
            return found
    assistant = Assistant(Path(job["snapshot"]).read_bytes(), max_tokens=job["max_tokens"], lease_seconds=3600.0)
    assistant.temperature = job["temperature"]
    result = run_training(
        home, settings_of(job), "http://assistant", "secret", job["algorithm"], resume=(run / "run.json").exists(),
        plugins=PluginManager(home).load(), transport=httpx.MockTransport(assistant.answer),
        prepare_model=lambda home, name: PreparedModel(Path(job["model"]), "base", "model"),
    )  # fmt: skip
    return result.as_json()


def score(job: dict[str, Any]) -> dict[str, Any]:
    """Scores of `samples` by the reward model that the round left; no opinion is None."""
    settings, home = settings_of(job), Home.find(Path(job["home"]))
    backbone = Backbone(Path(job["model"]), settings.train)
    context = RunContext(backbone, settings.train, job["temperature"], job["max_tokens"], (), (), home.runs)
    model = PluginManager(home).load().get("reward_models", settings.reward)(context)
    model.load(home.runs / "run-1")
    samples = [Sample((), "", tuple(asked), tuple(said), "", "") for asked, said in job["samples"]]
    values = model.score(samples).value.tolist()
    return {"scores": [value if value == value else None for value in values]}  # NaN is no JSON


if __name__ == "__main__":
    print(json.dumps({"train": train, "score": score}[sys.argv[1]](json.load(sys.stdin))))

"""A home with its record of versions, candidates to publish into it, a fake engine to load them, and its people."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from fakes import FakeEngineClient
from safetensors.numpy import save

from thumbwise import names
from thumbwise.base_model.prepare import PreparedModel
from thumbwise.contracts import Message
from thumbwise.feedback.records import Asker, FeedbackRequest, ReplyState, sha256
from thumbwise.feedback.store import Store
from thumbwise.home import Home
from thumbwise.metrics import Metrics
from thumbwise.names import BASE
from thumbwise.plugin_host.manager import PluginManager
from thumbwise.settings import Settings
from thumbwise.settings.canary import CanarySettings
from thumbwise.versions.canary import Rollout
from thumbwise.versions.lifecycle import Policies
from thumbwise.versions.record import Versions

PROMPT = (Message(role="user", content="Hello?"),)
PEOPLE = [f"person-{n}" for n in range(200)]
MODULE = "model.layers.0.self_attn.q_proj"
SHAPES = {MODULE: (6, 4)}
TRAINER = {1: math.log(0.7), 2: math.log(0.3)}
OF_BASE = {1: math.log(0.2), 2: math.log(0.8)}
Change = Callable[[dict[str, Any], dict[str, Any], dict[str, np.ndarray]], None]


def candidate(number: int = 1, change: Change | None = None, seed: int = 0) -> tuple[str, dict[str, bytes]]:
    """A version's name and files; `change(config, manifest, tensors)` spoils one of them before hashing."""
    rng = np.random.default_rng([number, seed])
    prefix = f"base_model.model.{MODULE}"
    tensors = {
        f"{prefix}.lora_A.weight": rng.normal(size=(2, 4)).astype(np.float32),
        f"{prefix}.lora_B.weight": rng.normal(size=(6, 2)).astype(np.float32),
    }
    config: dict[str, Any] = {"peft_type": "LORA", "r": 2, "target_modules": ["q_proj"], "bias": "none"}
    probe = {"context_ids": [1, 2], "top_ids": list(TRAINER), "top_logprobs": list(TRAINER.values())}
    probe["base_top_logprobs"] = list(OF_BASE.values())
    manifest: dict[str, Any] = {
        "number": number, "parent": BASE, "base_digest": "base", "snapshot_id": "s", "algorithm": "ppo",
        "n_labels": 3, "metrics": {"kl": 1.5}, "created_at": "2026-01-01T00:00:00+00:00", "probes": [probe],
    }  # fmt: skip
    if change is not None:
        change(config, manifest, tensors)
    files = {names.WEIGHTS: save(tensors), names.CONFIG: json.dumps(config).encode()}
    manifest["files"] = {name: sha256(data) for name, data in files.items()}
    version = f"policy-{number:04d}-{sha256(files[names.WEIGHTS])[:12]}"
    files[names.MANIFEST] = json.dumps({"version": version} | manifest).encode()
    return version, files


@dataclass
class World:
    """A home with its record of versions and a fake engine."""

    home: Home
    versions: Versions
    policies: Policies
    engine: FakeEngineClient

    def receive(self, number: int) -> str:
        run = self.versions.runs.begin("s", 60)
        version, files = candidate(run.number)
        assert run.number == number
        self.versions.lineage.record(run.id, [], 0)
        self.policies.receive(version, files, run.lease)
        self.versions.runs.end(run.id, run.lease, "promoted", "")
        self.engine.logprobs[version] = TRAINER
        return version


def make_world(tmp_path: Path, **settings: Any) -> World:
    """A world in `tmp_path`; the base model is one layer's weights."""
    model = tmp_path / "base"
    model.mkdir()
    (model / "model.safetensors").write_bytes(save({f"{MODULE}.weight": np.zeros((6, 4), np.float32)}))
    home = Home.find(tmp_path / "home")
    store = Versions(Store(home.database))
    policies = Policies(home, Settings.load(home, **settings), store, PluginManager(home).load(), Metrics())
    engine = FakeEngineClient()
    policies.connect(PreparedModel(model, "base", "base"), engine)  # type: ignore[arg-type]
    return World(home, store, policies, engine)


def turn(
    world: World, user: str, version: str, state: ReplyState = "done", reason: str | None = "stop", person: str = ""
) -> str:
    """A reply of one version to somebody; its id."""
    store = world.versions.store
    message = store.start_reply(Asker(user, person or f"name:{user}"), PROMPT, version, {})
    store.finish_reply(message, state, text="Hi.", finish_reason=reason)
    return message


def thumb(world: World, user: str, message: str, value: str, key: str = "", person: str = "") -> None:
    """Somebody's thumb on it."""
    request = FeedbackRequest(kind="thumb", message_id=message, value=value)
    world.versions.store.add_feedback(Asker(user, person or f"name:{user}"), key or message, request)


def pair(world: World, person: str, versions: tuple[str, str], choice: str) -> None:
    """Two drafts in this order, and a vote on them."""
    store, who = world.versions.store, Asker("local", person)
    comparison, drafts = store.start_comparison(who, PROMPT, versions, {}, "page")
    for draft in drafts:
        store.finish_reply(draft, "done", text="Hi.", finish_reason="stop")
    value = {"choice": choice, "strength": 1}
    store.add_feedback(who, comparison, FeedbackRequest(kind="pair", comparison_id=comparison, value=value))


def counted(world: World, settings: CanarySettings | None = None) -> Rollout:
    """What is known of the canary by somebody who has read nothing yet."""
    pointer = world.versions.pointer()
    found = Rollout(pointer, settings or world.policies.settings.canary)
    with world.versions.store.reading() as db:
        found.read(db, pointer)
    return found


def people_of(world: World, version: str) -> Iterator[str]:
    """People whom the rollout gave this version, again and again."""
    pointer = world.versions.pointer()
    while True:
        yield from (person for person in PEOPLE if pointer.version_for(person) == version)


async def canary(world: World, number: int = 1, share: float = 0.5) -> str:
    """A new version as canary."""
    version = world.receive(number)
    await world.policies.promote(version, world.versions.stable(), "passed its gates", share)
    return version


def spoil(where: str, key: str, value: Any) -> Change:
    """Set one value of a candidate's configuration or manifest."""

    def change(config: dict[str, Any], manifest: dict[str, Any], tensors: dict[str, np.ndarray]) -> None:
        {"config": config, "manifest": manifest}[where][key] = value

    return change

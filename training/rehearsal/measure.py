"""What a rehearsal measures by itself: replies of versions to held-out prompts, and what the trainer says of them.

Replies are sampled by the job's rollout backend (`train.rollouts`), because whatever is asked through the assistant
becomes a prompt that later rounds may train on. The probe and the swap monitor show that serving speaks with the same
weights.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from thumbwise.base_model.prepare import prepare
from thumbwise.contracts import Floats, Message, Prompt, RunContext, Sample
from thumbwise.home import Home, write_durably
from thumbwise.names import BASE
from thumbwise.plugin_host.manager import PluginManager
from thumbwise.settings import Settings
from thumbwise.training.backbone.backbone import Backbone
from thumbwise.training.evaluation.evaluate import kl_between
from thumbwise.training.evaluation.replies import mean_length
from thumbwise.training.policy.rollouts import BATCH
from thumbwise.training.rehearsal.swap_monitor import Reply

FORCED = 4
"""The number of long replies in one forward pass: they take memory."""


class Measure:
    """The base model of `home` with the adapters of its policy versions, loaded when they are asked for."""

    def __init__(self, home: Home, settings: Settings, plugins: PluginManager) -> None:
        self.home, self.settings, self.plugins = home, settings, plugins
        self.backbone = Backbone(prepare(home, settings.model).folder, settings.train, settings.chat_template_kwargs)
        self.context = RunContext(
            backbone=self.backbone, train=settings.train, temperature=settings.temperature,
            max_tokens=settings.max_tokens, prompts=(), seed_prompts=(), folder=home.runs,
        )  # fmt: skip
        self._loaded: set[str] = set()

    def adapter(self, version: str) -> str | None:
        """The name of a version's adapter here: None for the base."""
        if version == BASE:
            return None
        if version not in self._loaded:
            self.load(version, self.home.policies / version)
        return version

    def load(self, version: str, folder: Path) -> None:
        """Register the adapter in `folder` as `version`."""
        self.backbone.load_adapter(version, folder)
        self._loaded.add(version)

    def sample(
        self, prompts: Sequence[Prompt], version: str, seed: int, done: Callable[[int], None] = lambda n: None
    ) -> list[Sample]:
        """One reply of `version` to each prompt, in order, at the one sampling setting; repeatable by the seed."""
        backend = self.plugins.get("rollout_backends", self.settings.train.rollouts)(self.context)
        replies: list[Sample] = []
        for number, start in enumerate(range(0, len(prompts), BATCH)):
            part = prompts[start : start + BATCH]
            replies += backend.sample(part, self.adapter(version), seed * 100_003 + number)
            done(len(replies))
        return replies

    def distances(self, samples: Sequence[Sample], version: str, begun: str) -> dict[str, Any]:
        """KL of `version` to the base and to `begun`, which its round began from, on samples of `version`.

        It is in nats a reply, and in nats a token (divided by the samples' mean length).
        """
        tokens, to_base = max(mean_length(samples), 1e-9), self.kl(samples, version, BASE)
        from_begun = to_base if begun == BASE else self.kl(samples, version, begun)
        return {
            "kl": to_base, "kl_token": to_base / tokens,
            "begun_from": begun, "kl_begun": from_begun, "kl_begun_token": from_begun / tokens,
        }  # fmt: skip

    def kl(self, samples: Sequence[Sample], version: str, other: str) -> float:
        """KL in nats a reply, `version` to `other`, on samples of `version`."""
        adapter, beside = self.adapter(version), self.adapter(other)
        return 0.0 if adapter is None else kl_between(self.context, samples, adapter, beside)

    def rewards(self, samples: Sequence[Sample], run: Path) -> Floats:
        """Scores f32[N] by the reward model that a run left in its folder. No opinion counts as the worst score."""
        model = self.plugins.get("reward_models", self.settings.reward)(self.context)
        model.load(run)
        value: Floats = np.nan_to_num(model.score(samples).value, nan=-np.inf)
        return value

    def force(self, replies: Sequence[Reply], version: str) -> list[list[float]]:
        """The trainer's log-probabilities of each reply's tokens under `version`, at the serving temperature."""
        adapter = self.adapter(version)
        samples = [self._sample(reply) for reply in replies]
        forced: list[list[float]] = [[] for _ in samples]
        order = sorted(range(len(samples)), key=lambda n: len(samples[n].prompt_ids) + len(samples[n].response_ids))
        for start in range(0, len(order), FORCED):
            rows = order[start : start + FORCED]
            batch = self.backbone.batch([samples[row] for row in rows])
            with torch.no_grad():
                logprobs = self.backbone.logprobs(batch, adapter, self.settings.temperature)
            for row, values in zip(rows, logprobs, strict=True):
                forced[row] = values[: len(samples[row].response_ids)].tolist()
            self.backbone.told(f"by {version}", min(start + FORCED, len(order)), len(order))
        return forced

    def _sample(self, reply: Reply) -> Sample:
        messages = tuple(Message(role="user", content=message["content"]) for message in reply.messages)
        ids = tuple(self.backbone.chat.prompt_ids(messages))
        return Sample(messages, "", ids, tuple(reply.token_ids), reply.finish_reason or "", reply.version)


def keep(path: Path, samples: Sequence[Sample]) -> None:
    """Write samples as JSON lines, whole or not at all."""
    write_durably(path, "".join(json.dumps(asdict(sample)) + "\n" for sample in samples).encode())


def kept(path: Path) -> list[Sample]:
    """Read what `keep` wrote."""
    samples = []
    for line in path.read_text().split("\n")[:-1]:
        row = json.loads(line)
        row |= {name: tuple(row[name]) for name in ("prompt", "prompt_ids", "response_ids")}
        row["rollout_logprobs"] = None  # not needed again
        samples.append(Sample(**row))
    return samples

"""A toy for tests of policy algorithms: prompts, a reward that can be learned, a policy that moved."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from thumbwise.contracts import Message, Prompt, RunContext, Sample, Scores
from thumbwise.plugins.ppo import in_process
from thumbwise.settings.training import TrainSettings
from thumbwise.training.backbone.backbone import Backbone

TEMPERATURE = 0.7
PROMPTS = tuple(
    Prompt((Message(role="user", content=text),), f"g{n}")
    for n, text in enumerate(
        ["Tell me a story", "What is France", "How do I boil an egg", "Yes or no", "Be brief, please"]
    )
)
SMALL = TrainSettings(
    dtype="float32", episodes=12, minibatches=2, micro_batch=12, iterations=10, lora_rank=8,
    learning_rate=5e-3, value_learning_rate=5e-3, warmup=0, kl_coefficient=0.2, ptx=0.0,
)  # fmt: skip


def low_ids(samples: Sequence[Sample]) -> Scores:
    """A toy reward: the share of ids under 100, scaled to about deviation 1."""
    shares = [sum(i < 100 for i in s.response_ids) / max(1, len(s.response_ids)) for s in samples]
    return Scores(np.array([6 * (share - 0.3) for share in shares], np.float32))


def silent(samples: Sequence[Sample]) -> Scores:
    """A reward without an opinion."""
    return Scores(np.full(len(samples), np.nan, np.float32))


def disturb(backbone: Backbone, adapter: str = "policy", scale: float = 0.05, seed: int = 5) -> None:
    """Make an adapter differ from what it is."""
    draws = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in backbone.parameters(adapter).values():
            weight += scale * torch.randn(weight.shape, generator=draws)


def make_context(model: Path, folder: Path, train: TrainSettings = SMALL) -> RunContext:
    context = RunContext(Backbone(model, train), train, TEMPERATURE, 10, PROMPTS, (), folder)
    return context.with_rollouts(in_process)


def sampled(context: RunContext, n: int = 6, adapter: str | None = None) -> list[Sample]:
    assert context.rollouts is not None
    return context.rollouts.sample([PROMPTS[i % 5] for i in range(n)], adapter, 11)

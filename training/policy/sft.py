"""The recipe's first step: supervised fine-tuning (SFT) on demonstrations, here replies that people corrected.

It runs a few epochs on the corrections. A share of general chat keeps the model from forgetting the rest (InstructGPT,
appendix C.3: two epochs with 10% pretraining mix). General chat here is the reference's own replies at temperature 1,
whose gradient is at first 0 in expectation.

A fifth of the prompts is held out, and the epoch with the least held-out loss is kept. If no epoch is below the base's
loss, nothing is kept. What is kept becomes the frozen reference, and the policy starts as a copy of it.

Left out:
- Choosing the epoch by the reward model's score (section 3.5): the reward model is fitted after SFT.
- Corrections as comparisons with the reply that they correct: that reward model would learn to tell people's writing
  from the model's.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, no_grad

from thumbwise.contracts import Backbone, RunContext, Sample
from thumbwise.settings.training import TrainSettings
from thumbwise.training.backbone.backbone import POLICY
from thumbwise.training.backbone.batches import chunks
from thumbwise.training.data.snapshot import Demonstration, folds
from thumbwise.training.policy.ptx import general_chat
from thumbwise.training.policy.stepping import descend, imitate
from thumbwise.training.policy.value import adamw

FOLDS = 5
"""The prompts are divided into so many folds, and one fold is held out."""
BATCH = 16
"""The number of texts in one update."""


@dataclass(frozen=True)
class SFTReport:
    """The number of demonstrations, the epoch that was kept (0: none), and the held-out loss before and after each.

    There are no losses if the demonstrations were too long, or of one conversation, so that none could be held out.
    """

    demonstrations: int
    epoch: int
    losses: list[float]

    def line(self) -> str:
        """One sentence for people."""
        if not self.losses:
            return (
                "No SFT: of the corrected replies, those of one conversation at least must be learned from and those "
                "of another held out, and too few are short enough (`train.max_prompt_tokens`)"
            )
        said = f"SFT on {self.demonstrations} corrected replies: held-out loss {self.losses[0]:.3f}"
        if self.epoch == 0:
            return f"{said}, and not lower in any of {len(self.losses) - 1} epochs: nothing is kept"
        return f"{said} -> {self.losses[self.epoch]:.3f} after epoch {self.epoch}"


def encode(demonstrations: Sequence[Demonstration], backbone: Backbone, longest: int) -> list[tuple[str, Sample]]:
    """Group and sample of each demonstration, ended as the template ends a reply. Those over `longest` are left out."""
    found = []
    for demo in demonstrations:
        prompt, ids = backbone.chat.prompt_ids(demo.prompt), backbone.chat.reply_ids(demo.prompt, demo.text)
        if len(prompt) <= longest and len(ids) <= longest:
            found.append((demo.group, Sample(demo.prompt, demo.text, tuple(prompt), ids, "stop", "person")))
    return found


def learn(
    context: RunContext, demonstrations: Sequence[Demonstration], check: Callable[[], None] = lambda: None
) -> SFTReport:
    """Fine-tune the adapter "policy". It ends as the best epoch left it. `check` is called before every update."""
    train, backbone = context.train, context.backbone
    encoded = encode(demonstrations, backbone, train.max_prompt_tokens)
    fold = folds([group for group, _ in encoded], FOLDS, train.seed)
    # Hold out the fold nearest to a fifth. The most corrected prompt may fill a fold alone; it should be learned from.
    out = min(set(fold), key=lambda number: (abs(fold.count(number) - len(fold) / FOLDS), number), default=0)
    own = [sample for (_, sample), number in zip(encoded, fold, strict=True) if number != out]
    held_out = [sample for (_, sample), number in zip(encoded, fold, strict=True) if number == out]
    if not own or not held_out:
        return SFTReport(0, 0, [])
    general = general_chat(context, math.ceil(len(own) * train.sft_general), "sft") if train.sft_general else []
    weights, rng = backbone.parameters(POLICY), random.Random(f"{train.seed}:sft")
    optimizer = adamw(list(weights.values()), train.sft_learning_rate)
    losses, kept, best = [held_out_loss(backbone, held_out)], backbone.state(POLICY), 0
    mixed = own + general
    for epoch in range(1, train.sft_epochs + 1):
        rng.shuffle(mixed)
        batches = list(chunks(len(mixed), BATCH))
        for number, part in enumerate(batches):
            check()
            backbone.told("updates", (epoch - 1) * len(batches) + number, train.sft_epochs * len(batches))
            done = (epoch - 1 + number / len(batches)) / train.sft_epochs
            _update(backbone, mixed[part], weights, optimizer, train, done)
        losses.append(held_out_loss(backbone, held_out))
        if losses[-1] < min(losses[:-1]):
            kept, best = backbone.state(POLICY), epoch
    backbone.restore(POLICY, kept)
    return SFTReport(len(own), best, losses)


def rate(done: float) -> float:
    """Factor on the learning rate when the share `done` of all updates is done: a cosine down to a tenth (C.1)."""
    return 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * done))


def _update(
    backbone: Backbone, samples: Sequence[Sample], weights: dict[str, Tensor], optimizer: Any, train: TrainSettings,
    done: float,
) -> None:  # fmt: skip
    for group in optimizer.param_groups:
        group["lr"] = train.sft_learning_rate * rate(done)
    optimizer.zero_grad(set_to_none=True)
    imitate(backbone, samples, list(chunks(len(samples), train.micro_batch)), 1.0)
    descend(weights, optimizer, train.max_grad_norm)


def held_out_loss(backbone: Backbone, samples: Sequence[Sample]) -> float:
    """Mean over tokens of -log policy(token) at temperature 1."""
    total, count = 0.0, 0
    with no_grad():
        for part in chunks(len(samples), backbone.micro_batch):
            total -= float(backbone.logprobs(backbone.batch(samples[part]), POLICY, 1.0).sum())
            count += sum(len(sample.response_ids) for sample in samples[part])
    return total / count

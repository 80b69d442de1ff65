"""PPO-ptx: the gradient of the pretraining objective, added to PPO's before one optimizer step.

The texts are replies of the reference to our prompts at temperature 1, and a file of the operator's own. At temperature
1 the gradient of a text's log-likelihood is 0 in expectation as long as the policy is the reference. So the term keeps
the policy near what the model could say before, and teaches nothing by itself.

InstructGPT's fixed coefficient (27.8, arXiv 2203.02155, equation 2) fits the scales of its losses. Here the term is a
share of PPO's own gradient by norm, which means the same at every model size and batch.

Left out: PPO and this term in separate steps (InstructGPT, appendix C.4, accumulates them), and a pretraining corpus,
which nobody has on a laptop.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from thumbwise.contracts import RunContext, Sample
from thumbwise.errors import ThumbwiseError
from thumbwise.settings.training import TrainSettings
from thumbwise.training.backbone.batches import chunks
from thumbwise.training.data.lengths import at_lengths
from thumbwise.training.data.operator_files import keep
from thumbwise.training.policy.stepping import by_group, imitate

KEPT = "ptx.txt"
"""The operator's file, as it was when the run began, in the run's folder."""
TEXTS = 192
"""The number of the reference's replies that texts are drawn from. Each comes about three times in a run."""
WINDOW = 128
"""The number of tokens of one text from the operator's file."""
MOST, SLICES = 2_000_000, 200
"""How many characters of an operator's file are read, and from how many pieces."""
MEMORY = 0.9
"""Decay of the running means of both gradients' norms. The norm of one minibatch alone is mostly luck."""


class Pretraining:
    """The texts, and `add_gradient`. Everything random depends on the run's seed."""

    def __init__(self, context: RunContext) -> None:
        train = context.train
        self.backbone, self.share, self.batch, self.micro = (
            context.backbone, train.ptx, train.ptx_batch, train.micro_batch,
        )  # fmt: skip
        self.texts = general_chat(context, TEXTS, "ptx")
        self.own = windows(context.folder / KEPT, self.backbone.tokenizer) if train.ptx_file else []
        self.norms = [0.0, 0.0]
        """Running means of the norms of PPO's gradient and of this one's; 0 before the first step."""

    def draw(self, rng: random.Random) -> list[Sample]:
        """`train.ptx_batch` texts, half of them from the operator's file if there is one."""
        theirs = rng.choices(self.own, k=self.batch // 2) if self.own else []
        return theirs + rng.choices(self.texts, k=self.batch - len(theirs))

    def add_gradient(self, weights: Mapping[str, Tensor], texts: Sequence[Sample]) -> dict[str, float]:
        """Add gamma times the gradient of the texts' loss to `weights`' gradients. Returns metrics.

        The loss is -log policy(token) at temperature 1, a mean over tokens. gamma = share |g_ppo| / |g_ptx|, over
        running means of the norms. With a share of 0 the gradients do not change, bit for bit.
        """
        ppo = [torch.zeros_like(weight) if weight.grad is None else weight.grad for weight in weights.values()]
        for weight in weights.values():
            weight.grad = None
        loss = imitate(self.backbone, texts, list(chunks(len(texts), self.micro)), 1.0)
        ptx = [weight.grad for weight in weights.values() if weight.grad is not None]
        norms = [float(torch.stack([gradient.norm() for gradient in side]).norm()) for side in (ppo, ptx)]
        self.norms = [
            new if old == 0 else MEMORY * old + (1 - MEMORY) * new for old, new in zip(self.norms, norms, strict=True)
        ]
        gamma = self.share * self.norms[0] / max(self.norms[1], 1e-12)
        for weight, ours, theirs in zip(weights.values(), ppo, ptx, strict=True):
            weight.grad = ours + gamma * theirs if gamma > 0 else ours
        return {"ptx_loss": loss, "ptx_gamma": gamma}

    def state_dict(self) -> dict[str, Any]:
        """The running means. The texts follow from the seed."""
        return {"ptx_norms": list(self.norms)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state_dict` returned."""
        self.norms = list(state["ptx_norms"])


def general_chat(context: RunContext, wanted: int, purpose: str) -> list[Sample]:
    """About `wanted` replies of the reference at temperature 1 to our prompts (people's, if there are none)."""
    assert context.backend is not None
    seed = context.train.seed
    rng = random.Random(f"{seed}:{purpose}")
    drawn = at_lengths(context, by_group(context.seed_prompts or context.prompts, wanted, rng), rng)
    backend = context.backend(replace(context, temperature=1.0))
    texts = backend.sample(drawn, context.backbone.reference, seed * 10 + 5)
    return [text for text in texts if text.response_ids]


def keep_file(train: TrainSettings, folder: Path) -> str:
    """Copy the operator's file into a run's folder, unless that is done. Returns its SHA-256 (empty: no file).

    Raises ThumbwiseError if it cannot be read.
    """
    return keep(train.ptx_file, folder / KEPT, _read)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (FileNotFoundError, IsADirectoryError, PermissionError, UnicodeDecodeError) as error:
        raise ThumbwiseError(f"{path} cannot be read ({error}): give --ptx a UTF-8 text file.") from None


def windows(path: Path, tokenizer: Any) -> list[Sample]:
    """A text file cut into texts of WINDOW tokens. Raises ThumbwiseError if it has fewer tokens.

    The first token of a text is its context, and all others are learned. Of a long file, SLICES pieces at equal
    distances are read, MOST characters in all: a run draws some hundred texts, and a tokenizer needs a hundred bytes a
    token.
    """
    text = path.read_text(encoding="utf-8")
    if len(text) > MOST:
        size = MOST // SLICES
        starts = [(len(text) - size) * n // (SLICES - 1) for n in range(SLICES)]
        text = "".join(text[start : start + size] for start in starts)
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    if len(ids) < WINDOW:
        raise ThumbwiseError(f"The text file {path.name} has {len(ids)} tokens; --ptx needs at least {WINDOW}.")
    return [
        Sample((), "", (ids[start],), tuple(ids[start + 1 : start + WINDOW]), "length", "text")
        for start in range(0, len(ids) - WINDOW + 1, WINDOW)
    ]

"""The frozen model of a run, as plugins and training's tools see it: the class is in training/backbone/backbone.py.

Plugins import these names from `thumbwise.contracts`. Tensors are torch's, but nothing here imports torch: a judge or
a gate needs none.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypedDict

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from peft import PeftModel
    from torch import Tensor
    from torch.nn import ModuleList
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Floats = NDArray[np.float32]


class Message(TypedDict):
    """One chat message, in the OpenAI shape."""

    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True)
class Sample:
    """One response to one prompt, as it was sampled: token ids are stored, never re-encoded from text.

    `prompt_ids` include the chat template; `response_ids` end with the stop token where
    `finish_reason` is "stop". `rollout_logprobs` has one entry per response token, or is None.
    """

    prompt: tuple[Message, ...]
    response: str
    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]
    finish_reason: str
    policy_version: str
    rollout_logprobs: tuple[float, ...] | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)


class Template(Protocol):
    """The model's chat template, with the operator's arguments and the run's date."""

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of a conversation, ready for the assistant's reply, as vLLM renders it."""

    def reply_ids(self, messages: Sequence[Message], text: str) -> tuple[int, ...]:
        """Token ids of `text` as the reply to `messages`, with the token that ends it."""


@dataclass(frozen=True)
class Batch:
    """B prompt-response sequences: `ids` [B, L], and their responses `tokens` and `mask`, both [B, T].

    `before` and `at` [B, T] are the positions in `ids` that predict, and that hold, each response token; all prompts
    begin with the same `shared` tokens.
    """

    ids: Tensor
    tokens: Tensor
    mask: Tensor
    before: Tensor
    at: Tensor
    shared: int


@dataclass(frozen=True)
class Compared:
    """A policy and its reference on the same tokens, all of one shape, float32, without gradients.

    `logp` and `reference` are the tokens' log-probabilities; `entropy` the policy's next-token distribution's, `kl` its
    KL from the reference's, in nats.
    """

    logp: Tensor
    reference: Tensor
    entropy: Tensor
    kl: Tensor


class Backbone(Protocol):
    """The frozen base model of a run and its LoRA adapters, as plugins see it. An adapter named None is the base.

    B sequences of a batch have T response tokens; D is `hidden_size`, V the vocabulary. Results are float32.
    """

    tokenizer: PreTrainedTokenizerBase
    base: PreTrainedModel
    """The model that the adapters are in."""
    peft: PeftModel
    """The same model as PEFT and TRL see it."""
    layers: ModuleList
    """Its decoder layers; hidden states are those that enter one."""
    hidden_size: int
    stop_ids: frozenset[int]
    """Ids of the tokens that end a reply."""
    pad_id: int
    micro_batch: int
    """How many samples are computed at once (`train.micro_batch`)."""
    reference: str | None
    """The adapter that the KL is taken to."""

    @property
    def chat(self) -> Template:
        """The model's chat template."""

    def told(self, what: str, done: int, total: int, /) -> None:
        """Say how far slow work is: what it is, and how much of how much is done."""

    def load_adapter(self, name: str, folder: Path) -> None:
        """Load a PEFT adapter (safetensors) as `name`, frozen."""

    def parameters(self, name: str) -> dict[str, Tensor]:
        """The weights of adapter `name`, by name, in a fixed order: change them in place."""

    def state(self, name: str) -> dict[str, Tensor]:
        """A copy of adapter `name`."""

    def restore(self, name: str, state: dict[str, Tensor]) -> None:
        """Set adapter `name` to what `state` returned."""

    def begin_as(self, name: str) -> None:
        """Make the adapter "policy" compute what adapter `name` does, whose rank is the same or less."""

    def freeze_reference(self) -> None:
        """Make a frozen copy of the adapter "policy" the reference."""

    def using(self, adapter: str | None) -> AbstractContextManager[None]:
        """Compute with `adapter` inside the block; only its weights get gradients."""

    def sampling(self, adapter: str | None) -> AbstractContextManager[PreTrainedModel]:
        """A model that computes the same, made for sampling token by token, inside the block."""

    def batch(self, samples: Sequence[Sample]) -> Batch:
        """Pad samples into one batch, from their stored ids."""

    def logprobs(self, batch: Batch, adapter: str | None, temperature: float) -> Tensor:
        """Log-probabilities [B, T] of the response tokens, 0 under pads, with gradients."""

    def compared(self, batch: Batch, adapter: str | None, temperature: float) -> Compared:
        """`adapter` and the reference on the response tokens, each [B, T], 0 under pads; no gradients."""

    def beside(self, batch: Batch, adapter: str | None, other: str | None, temperature: float) -> Compared:
        """The same with the adapter `other` in the reference's place."""

    def states(
        self, samples: Sequence[Sample], layers: Sequence[int]
    ) -> Iterator[tuple[NDArray[np.intp], Batch, list[Tensor]]]:
        """Yield batches of like lengths: their rows in `samples`, the batch, and for each of `layers` the base's hidden
        states [B, T, D] of the response tokens."""

    def pooled(
        self, samples: Sequence[Sample], layers: Sequence[int], last: Sequence[int] = ()
    ) -> tuple[Floats, Floats, Floats]:
        """Over each response's tokens: the sums of the base's states at `layers`, f32[N, layers, D]; the last token's
        at `last`, f32[N, last, D], 0 of an empty response; and how many tokens there are, f32[N]."""

    def next_logprobs(self, context: Sequence[int], adapter: str | None) -> Tensor:
        """Log-probabilities [V] of the token after `context` at temperature 1."""

    def base_sha256(self) -> str:
        """SHA-256 of the frozen weights."""

"""The typed contracts between the loop and its plugins.

Nothing here imports torch, so a judge or a gate stays a ten-line file. Scores and label sets are NumPy. Tensors appear
only inside a reward model or a policy algorithm.

Left out: label kinds, advantages and losses as separate plugins. One readable algorithm per file is easier to exchange
than five registries.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from thumbwise.backbone import Backbone as Backbone
from thumbwise.backbone import Batch as Batch
from thumbwise.backbone import Compared as Compared
from thumbwise.backbone import Floats as Floats
from thumbwise.backbone import Message as Message
from thumbwise.backbone import Sample as Sample
from thumbwise.backbone import Template as Template
from thumbwise.settings.gates import GateSettings
from thumbwise.settings.training import TrainSettings


@dataclass(frozen=True)
class Scores:
    """A reward model's opinion of N samples: `value` f32[N] (NaN: no opinion), and `std` f32[N] or None."""

    value: Floats
    std: Floats | None = None


@dataclass(frozen=True)
class Comparison:
    """One side-by-side vote. `choice` is left, right, tie or both_bad; `group` keeps a prompt in one fold.

    `user` is the name under which it was given. `person` is the person that it counts as (empty: the same as `user`).
    """

    id: str
    user: str
    group: str
    left: Sample
    right: Sample
    choice: Literal["left", "right", "tie", "both_bad"]
    strength: int = 1
    person: str = ""


@dataclass(frozen=True)
class Ranking:
    """K drafts of one prompt in the order shown, and the tier of each: 0 is best, equal tiers are tied."""

    id: str
    user: str
    group: str
    drafts: tuple[Sample, ...]
    tiers: tuple[int, ...]
    person: str = ""


@dataclass(frozen=True)
class Thumb:
    """One thumb on one reply; `up` False means down."""

    id: str
    user: str
    group: str
    sample: Sample
    up: bool
    person: str = ""


@dataclass(frozen=True)
class Labels:
    """What people said, as one snapshot holds it, without a person's votes beyond that person's part.

    `given` is the number of votes that each person gave, including those that were set aside. People without votes set
    aside may be missing from it. `young` are the people whose accounts are new: their votes count for less until they
    are borne out.
    """

    comparisons: tuple[Comparison, ...] = ()
    thumbs: tuple[Thumb, ...] = ()
    rankings: tuple[Ranking, ...] = ()
    given: Mapping[str, int] = field(default_factory=dict)
    young: frozenset[str] = frozenset()


@dataclass(frozen=True)
class GateReport:
    """One gate's verdict. `value` and `limit` are what it compared; `detail` is a sentence for people."""

    name: str
    passed: bool
    value: float
    limit: float
    detail: str


Judge = Callable[[str, list[str]], list[float]]
"""Scores the responses to one prompt; higher is better. It stands in for people in rehearsals and evaluation."""


@dataclass(frozen=True)
class Prompt:
    """A conversation that waits for its reply. `group` (a topic, or the prompt's hash) is never split.

    `person` asked it, under the name `user`. Both are empty for prompts that ship with Thumbwise or come from a file.
    The reply may have `max_tokens` tokens (None: the run's `max_tokens`). `id` is that of the reply that a person got
    to it first.
    """

    messages: tuple[Message, ...]
    group: str
    person: str = ""
    user: str = ""
    max_tokens: int | None = None
    id: str = ""


@dataclass(frozen=True)
class Evidence:
    """What the gates judge: the reward model's cross-validation, and replies to held-out prompts.

    - `rm_accuracy` is the reward model's accuracy in cross-validation, over `rm_votes` votes. `rm_error` is its
      standard error (None: count the votes as independent).
    - `foretold`, `foretold_votes` and `foretold_error` are the prequential accuracy, as in `FitReport`. If `foretold`
      is there, the gate `rm_accuracy` tests it instead of the accuracy in cross-validation.
    - `candidate` and `stable` answer the same prompts in the same order, with the same sampling. `candidate_scores` and
      `stable_scores`, f32[N], are the reward model's.
    - `kl` is in nats a reply, candidate to reference, on the candidate's replies. `base_kl` is candidate to base (None:
      the reference is the base).
    - `chat` and `stable_chat` are replies with chat's own length limit. `chat_kl` is `kl` on `chat`.
    - `groups` and `chat_groups` give the conversation (`Prompt.group`) of each reply of `candidate` and of `chat`.
      Replies of one group are not independent.
    """

    rm_accuracy: float
    rm_votes: int
    candidate: tuple[Sample, ...]
    stable: tuple[Sample, ...]
    candidate_scores: Floats
    stable_scores: Floats
    kl: float
    limits: GateSettings
    rm_error: float | None = None
    chat: tuple[Sample, ...] = ()
    stable_chat: tuple[Sample, ...] = ()
    base_kl: float | None = None
    groups: tuple[str, ...] = ()
    chat_groups: tuple[str, ...] = ()
    chat_kl: float | None = None
    foretold: float | None = None
    foretold_votes: int = 0
    foretold_error: float = 0.5


Gate = Callable[[Evidence], GateReport]


class RolloutBackend(Protocol):
    """Samples replies for training, at the run's temperature over the whole vocabulary."""

    def sample(self, prompts: Sequence[Prompt], adapter: str | None, seed: int) -> list[Sample]:
        """One reply to each prompt, in order. `adapter` None is the base. The same seed gives the same replies."""


@dataclass(frozen=True)
class RunContext:
    """What a run gives to the factories of reward models, rollout backends and policy algorithms.

    - `prompts` (people's) and `seed_prompts` (shipped, or from a file): rollouts may start from both. Held-out prompts
      are in neither.
    - `max_tokens`: the most tokens of a reply. If `lengths` is not empty, each prompt's limit is drawn from it instead.
      `lengths` are the limits of the replies that people judged, one entry for each reply.
    - `backend` makes rollout backends of the run's kind. Each one samples as the context that it is given says.
    - `rollouts`, `value` and `finish_rate` are filled in during the run. `value` stays None if the reward model offers
      none. `finish_rate` is the share of replies that should end by themselves within `max_tokens`: somewhat more than
      the reference's share, and not much less than stable's.
    """

    backbone: Backbone
    train: TrainSettings
    temperature: float
    max_tokens: int
    prompts: tuple[Prompt, ...]
    seed_prompts: tuple[Prompt, ...]
    folder: Path
    rollouts: RolloutBackend | None = None
    value: ValueInit | None = None
    finish_rate: float | None = None
    lengths: tuple[int, ...] = ()
    backend: Callable[[RunContext], RolloutBackend] | None = None

    def with_rollouts(self, backend: Callable[[RunContext], RolloutBackend]) -> RunContext:
        """This context with a rollout backend made by `backend`. `backend` itself is kept to make others like it."""
        return replace(self, backend=backend, rollouts=backend(self))


@dataclass(frozen=True)
class ValueInit:
    """A reward model's linear head on hidden states, from which a value function can start.

    After n response tokens V = bias + sum over layers and dimensions of weight * scale * (sum of h_i - mean, i <= n) /
    (n + shrink). Here h_i is the i-th response token's hidden state at that layer. After the last token V is the score,
    except for what only shows at the end of a reply. `weight`, `mean` and `scale` are f32[layers, hidden].
    """

    layers: tuple[int, ...]
    weight: Floats
    mean: Floats
    scale: Floats
    bias: float
    shrink: float


@runtime_checkable
class OffersValue(Protocol):
    """A reward model whose score, or most of it, has a value at every token."""

    def value_init(self) -> ValueInit:
        """The head that gives `score` at the last response token, except for what only shows at the end."""


@dataclass
class FitReport:
    """How well a reward model fits: held-out accuracy over `n` votes, folds by prompt (chance is 0.5).

    The votes are those on replies sampled as the run samples (`thumbwise.training.data.votes.Sampling`). `error` is the
    accuracy's standard error; None counts the votes as independent. `details["by"]` may split the accuracy: a list of
    `{"kind": "pair" or "thumb", "tokens": [low, high or None], "votes": n, "accuracy": a, "error": e}`.

    `foretold` is the prequential accuracy: the share of `foretold_votes` votes that were predicted rightly, each by a
    model fitted only to earlier votes in other conversations. `foretold_error` is its standard error. Later votes
    change none of it, so looking each night does not make a false alarm likelier. None: the model cannot say. The gate
    `rm_accuracy` tests `foretold` if it is there.

    `weights` is the final weight of each vote, by its id. Votes that are not in it had no part. Empty: all votes had a
    weight of 1.
    """

    accuracy: float
    n: int
    details: dict[str, Any] = field(default_factory=dict)
    error: float | None = None
    foretold: float | None = None
    foretold_votes: int = 0
    foretold_error: float = 0.5
    weights: Mapping[str, float] = field(default_factory=dict)


class RewardModel(Protocol):
    """Learns from labels, scores samples. `score` must be deterministic and independent of the batch."""

    def fit(self, labels: Labels, seed: int) -> FitReport:
        """Fit on every label. The report's accuracy comes from cross-validation, never from training votes."""

    def score(self, samples: Sequence[Sample]) -> Scores:
        """Score samples, scaled so that the reference policy's replies have mean 0 and deviation 1."""

    def normalise(self, samples: Sequence[Sample]) -> None:
        """Set gain and bias so that `samples` (the reference's replies) score mean 0, deviation 1."""

    def save(self, folder: Path) -> None:
        """Write the model (safetensors and JSON) into `folder`."""

    def load(self, folder: Path) -> None:
        """Read what `save` wrote."""


Reward = Callable[[Sequence[Sample]], Scores]
"""What a policy is trained on: the reward model's scores after every plugin's `shape_reward`."""


class PolicyAlgorithm(Protocol):
    """Improves the adapter that a round begins with, one `step` per iteration. The job owns the loop and the budget.

    Its factory takes `(context: RunContext, reward: Reward)`. The adapter that it trains is named "policy". The metrics
    of `step` hold at least `kl`, in nats a reply, and `length`, the mean number of tokens. Both are of the replies of
    the policy that the step *began* with.
    """

    iterations: int

    def step(self, iteration: int) -> dict[str, float]:
        """Run one iteration and return its metrics (names from thumbwise.training.evaluation.metrics.GLOSSARY)."""

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to resume after a kill: tensors in a flat dict, plus plain JSON values."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""


class Register(Protocol):
    """What registration hooks receive: it takes a name and a factory. A duplicate name is an error that names both."""

    def __call__(self, name: str, factory: Callable[..., Any]) -> None:
        """Register `factory` under `name`."""

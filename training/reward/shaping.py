"""What the policy is trained on: the reward model's scores, minus its uncertainty, after every plugin's `shape_reward`.

A failing reward is loud: it ends the run with one sentence and leaves the stable version alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

import numpy as np

from thumbwise.contracts import FitReport, Prompt, RewardModel, RolloutBackend, RunContext, Sample, Scores
from thumbwise.errors import ThumbwiseError
from thumbwise.faults import disk_is_full, out_of_memory
from thumbwise.plugin_host.scores import wrong_with


class Shaper(Protocol):
    """The part of the plugin manager that rewards pass through."""

    def shape(self, samples: Sequence[Sample], scores: Scores, context: RunContext) -> Scores:
        """Pass scores through every plugin's `shape_reward`."""


class ShapedReward:
    """Callable: samples to Scores of the same length (NaN = no opinion: that reply is left out of the loss)."""

    def __init__(self, name: str, model: RewardModel, plugins: Shaper, context: RunContext) -> None:
        self.name = name
        self.model = model
        self.plugins = plugins
        self.context = context

    def __call__(self, samples: Sequence[Sample]) -> Scores:
        """Score, subtract the penalty for disagreement, shape. Raises ThumbwiseError that names what failed."""
        scores = self.plain(samples)
        penalty = self.context.train.std_penalty
        if penalty > 0 and scores.std is not None:
            scores = Scores((scores.value - penalty * scores.std).astype(np.float32), scores.std)
        return self.plugins.shape(samples, scores, self.context)

    def plain(self, samples: Sequence[Sample]) -> Scores:
        """The reward model's own scores, which gates use."""
        with naming(what := f"Reward model {self.name}", "--reward"):
            scores = self.model.score(samples)
            if wrong := wrong_with(scores, len(samples)):
                raise ThumbwiseError(f"{what} returned {wrong} for {len(samples)} samples: {mend('--reward')}")
            std = None if scores.std is None else np.asarray(scores.std, np.float32)
            return Scores(np.asarray(scores.value, np.float32), std)


def check_fit(name: str, fit: FitReport) -> None:
    """Raise ThumbwiseError if a reward model's report cannot be an accuracy of votes."""
    if not isinstance(fit, FitReport):
        wrong = f"{type(fit).__name__} and no FitReport"
    elif not is_number(fit.accuracy) or not -1e-6 <= fit.accuracy <= 1 + 1e-6:
        wrong = f"an accuracy of {fit.accuracy!r:.40}, which is not a share"
    elif not is_number(fit.n) or fit.n < 0 or fit.n != int(fit.n):
        wrong = f"an accuracy of {fit.n!r:.40} votes, which is not a number of votes"
    elif fit.error is not None and (not is_number(fit.error) or fit.error < 0):
        wrong = f"a standard error of {fit.error!r:.40}, which is not one"
    elif fit.foretold is not None and (not is_number(fit.foretold) or not -1e-6 <= fit.foretold <= 1 + 1e-6):
        wrong = f"a `foretold` of {fit.foretold!r:.40}, which is not a share"
    elif not is_number(fit.foretold_votes) or fit.foretold_votes < 0 or fit.foretold_votes != int(fit.foretold_votes):
        wrong = f"a `foretold_votes` of {fit.foretold_votes!r:.40}, which is not a number of votes"
    elif not is_number(fit.foretold_error) or fit.foretold_error < 0:
        wrong = f"a `foretold_error` of {fit.foretold_error!r:.40}, which is not a standard error"
    elif not isinstance(fit.details, dict):
        wrong = f"details that are {type(fit.details).__name__} and not a dict"
    else:
        return
    raise ThumbwiseError(f"Reward model {name} returned {wrong} from fit: {mend('--reward')}")


def is_number(value: object) -> bool:
    """Whether it is one finite number, Python's or NumPy's. A boolean is not a number here."""
    real = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
    return real and math.isfinite(float(value))  # type: ignore[arg-type]


def mend(option: str) -> str:
    """What to do about a plugin with which training cannot continue."""
    return f"fix the plugin that brings it, or train with another {option}."


@contextmanager
def naming(what: str, option: str) -> Iterator[None]:
    """Whatever a plugin raises in this block becomes one sentence that names it, except a full disk or memory."""
    try:
        yield
    except ThumbwiseError:
        raise
    except Exception as error:
        if disk_is_full(error) or out_of_memory(error):
            raise
        said = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise ThumbwiseError(f"{what} failed ({said}): {mend(option)}") from error


def named_backend(name: str, make: Callable[[RunContext], RolloutBackend]) -> Callable[[RunContext], RolloutBackend]:
    """The factory `make` of the rollout backend `name`. Its failures name the backend wherever it is called."""

    class Named:
        def __init__(self, context: RunContext) -> None:
            with naming(f"Rollout backend {name}", "train.rollouts"):
                self.backend = make(context)

        def sample(self, prompts: Sequence[Prompt], adapter: str | None, seed: int) -> list[Sample]:
            with naming(f"Rollout backend {name}", "train.rollouts"):
                return self.backend.sample(prompts, adapter, seed)

    return Named

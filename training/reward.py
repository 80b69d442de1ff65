"""What the policy is trained on: the reward model's scores, its caution, and every plugin's `shape_reward`.

A failing reward is loud: it ends the run with one sentence and leaves the stable version alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from thumbwise.contracts import RewardModel, RunContext, Sample, Scores
from thumbwise.errors import ThumbwiseError


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
        """Score, take off the penalty for disagreement, shape. Raises ThumbwiseError naming what failed."""
        scores = self.plain(samples)
        penalty = self.context.train.std_penalty
        if penalty > 0 and scores.std is not None:
            scores = Scores((scores.value - penalty * scores.std).astype(np.float32), scores.std)
        return self.plugins.shape(samples, scores, self.context)

    def plain(self, samples: Sequence[Sample]) -> Scores:
        """The reward model's own scores, which gates use."""
        try:
            scores = self.model.score(samples)
            shape = np.shape(scores.value)
        except ThumbwiseError:
            raise
        except Exception as error:
            raise ThumbwiseError(
                f"Reward model {self.name} failed ({type(error).__name__}: {error}): mend the plugin that brings it, "
                "or train with another --reward."
            ) from error
        if shape != (len(samples),):
            raise ThumbwiseError(
                f"Reward model {self.name} returned scores of shape {shape} for {len(samples)} samples: mend the "
                "plugin that brings it, or train with another --reward."
            )
        return scores

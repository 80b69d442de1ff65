"""The state that policy algorithms have in common and save, and their learning rate, which the KL steers.

Torch is imported late, because plugins are listed without it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from thumbwise.contracts import Reward, RunContext, Sample

if TYPE_CHECKING:
    from torch import Tensor

    from thumbwise.training.policy.stepping import Parts


class PolicyState:
    """The policy's weights, their optimizer, its pace and the penalty for a missing end; saved and restored."""

    policy: dict[str, Tensor]

    def __init__(self, context: RunContext, reward: Reward) -> None:
        from thumbwise.training.backbone.backbone import POLICY
        from thumbwise.training.policy.losses import Pace
        from thumbwise.training.policy.stepping import missing_end
        from thumbwise.training.policy.value import adamw

        if context.rollouts is None:
            raise ValueError(f"{type(self).__name__} needs a rollout backend in its context")
        self.context, self.train, self.backbone, self.reward = context, context.train, context.backbone, reward
        self.iterations = self.train.iterations
        self.policy = self.backbone.parameters(POLICY)
        self.ends = missing_end(context)
        self.pace = Pace(self.train.kl_target, self.train.pace)
        self.optimizer: Any = adamw(list(self.policy.values()), self.train.learning_rate)

    def set_pace(self, iteration: int, kl_token: float) -> float:
        """Set the policy's learning rate before an iteration that begins at `kl_token`, and return it.

        It is after warm-up, annealing and `Pace`'s factor, so that every algorithm reaches `train.kl_target`.
        """
        from thumbwise.training.policy import stepping

        ahead = [stepping.schedule(self.train, later) for later in range(iteration, self.iterations)]
        self.pace.update(kl_token, ahead, steer=iteration >= self.train.warmup)
        wanted = self.train.learning_rate * self.pace.value
        return stepping.set_learning_rate(self.optimizer, wanted, self.train, iteration)

    def kl_price(self, samples: Sequence[Sample]) -> float:
        """What a nat of a reply's KL costs: `train.kl_coefficient` divided by the mean number of tokens of `samples`.

        There is one price for all replies, so that no reply pays less for being long. If the price did not depend on
        length, replies of 200 tokens at `train.kl_target` would lose about as much to the KL as the reward can give
        them.
        """
        from thumbwise.training.evaluation.replies import mean_length

        return self.train.kl_coefficient / max(1.0, mean_length(samples))

    def parts(self) -> Parts:
        """What is trained. An algorithm that trains more than the policy adds its parts."""
        return {"policy": (self.policy, self.optimizer)}

    def state_dict(self) -> dict[str, Any]:
        """The parts, the pace and the penalty for a missing end, copied."""
        from thumbwise.training.policy.stepping import saved

        return saved(self.parts()) | {"pace": asdict(self.pace), "missing_end": self.ends.value}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        from thumbwise.training.policy.losses import Pace
        from thumbwise.training.policy.stepping import restore

        restore(self.parts(), state)
        self.pace, self.ends.value = Pace(**state["pace"]), state["missing_end"]

"""An algorithm that trains the policy alone: what it is made from, and what it has to save.

Torch is imported late, because plugins are listed without it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from thumbwise.contracts import Reward, RunContext

if TYPE_CHECKING:
    from torch import Tensor


class PolicyState:
    """The policy's weights, their optimizer and the missing end's penalty; from a context, saved and restored."""

    policy: dict[str, Tensor]

    def __init__(self, context: RunContext, reward: Reward) -> None:
        from thumbwise.training.models import POLICY
        from thumbwise.training.stepping import missing_end
        from thumbwise.training.value import adamw

        if context.rollouts is None:
            raise ValueError(f"{type(self).__name__} needs a rollout backend in its context")
        self.context, self.train, self.backbone, self.reward = context, context.train, context.backbone, reward
        self.iterations = self.train.iterations
        self.policy = self.backbone.parameters(POLICY)
        self.ends = missing_end(context)
        self.optimizer: Any = adamw(list(self.policy.values()), self.train.learning_rate)

    def state_dict(self) -> dict[str, Any]:
        """The policy, its optimizer and the missing end's penalty, copied."""
        from thumbwise.training.stepping import saved

        return saved({"policy": (self.policy, self.optimizer)}) | {"missing_end": self.ends.value}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go back, or on, to what `state_dict` returned."""
        from thumbwise.training.stepping import restore

        restore({"policy": (self.policy, self.optimizer)}, state)
        self.ends.value = state["missing_end"]

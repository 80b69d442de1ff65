"""What an algorithm that trains the policy alone has to save. Torch is imported late: plugins are listed without it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


class PolicyState:
    """`state_dict` and `load_state_dict` of an algorithm whose state is `policy` and its `optimizer`."""

    policy: dict[str, Tensor]
    optimizer: Any

    def state_dict(self) -> dict[str, Any]:
        """The policy and its optimizer, copied."""
        from thumbwise.training.stepping import saved

        return saved({"policy": (self.policy, self.optimizer)})

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go back, or on, to what `state_dict` returned."""
        from thumbwise.training.stepping import restore

        restore({"policy": (self.policy, self.optimizer)}, state)

"""RLOO by TRL: REINFORCE with the other replies to the same prompt as the baseline. The loop, top to bottom.

Each iteration samples `replies` replies to a prompt. From each reply's score TRL subtracts beta times the KL to the
reference, and then the mean of the prompt's other replies. It clips the ratio of whole replies (Ahmadian et al. 2024,
arXiv 2402.14740, equation 8; Schulman et al. 2017 for the clip).

If prompts differ more than replies to one of them do, that baseline is better than a critic that has just started. But
all tokens of a reply get the same advantage. The learning rate follows the KL (`Pace`).

Left out: sharing log-probabilities with TRL, which computes those of policy and reference once more in its own padding.
Torch and TRL are imported in the methods that need them, so that listing plugins stays cheap.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from thumbwise import hookimpl
from thumbwise.contracts import Register, Reward, RunContext, Sample
from thumbwise.training.policy.state import PolicyState

if TYPE_CHECKING:
    from torch import Tensor


class RLOO(PolicyState):
    """Improves the adapter "policy", one batch of rollouts a step."""

    def __init__(self, context: RunContext, reward: Reward) -> None:
        super().__init__(context, reward)
        self.samples: Sequence[Sample] = ()
        self.scores: list[float] = []  # NaN if there is none
        self.trainer = self._make_trainer()

    def _make_trainer(self) -> Any:
        """TRL's trainer, with our replies instead of its generation, and our scores instead of its rewards."""
        from thumbwise.training.policy import trl_parts

        trainer, config = trl_parts.load("RLOOTrainer", "RLOOConfig")
        algorithm = self

        class OnOurReplies(trainer):  # type: ignore[misc, valid-type]
            def _generate(self, prompts: list[Any]) -> tuple[list[list[int]], list[list[int]], list[str]]:
                del prompts
                replies = algorithm.samples
                ids = [list(sample.prompt_ids) for sample in replies], [list(s.response_ids) for s in replies]
                return *ids, [sample.response for sample in replies]

        def reward(**_: Any) -> list[float]:
            return algorithm.scores

        train = self.train
        args = config(
            **trl_parts.settings(self.context), beta=train.kl_coefficient, epsilon=train.clip,
            num_generations=train.replies, steps_per_generation=train.replies, temperature=self.context.temperature,
        )  # fmt: skip
        return trl_parts.build(self.backbone, OnOurReplies, {"prompt": "a"}, args=args, reward_funcs=reward)

    def step(self, iteration: int) -> dict[str, float]:
        """One iteration: rollouts, scores, advantages, then the updates. Returns its metrics."""
        import torch

        from thumbwise.training.backbone.backbone import POLICY
        from thumbwise.training.policy import stepping, trl_parts

        start, train = time.monotonic(), self.train
        rolled = stepping.score_replies(self.context, self.reward, iteration, train.replies, self.ends)
        samples, metrics = rolled.samples, rolled.metrics
        self.samples = samples
        self.trainer.beta = self.kl_price(samples)
        self.scores = torch.where(rolled.known, rolled.score - rolled.penalty, torch.nan).tolist()
        with self.backbone.using(POLICY), torch.no_grad():
            batch = self.trainer._generate_and_score_completions([{"prompt": "a"}] * len(samples))
        rate = self.set_pace(iteration, metrics["kl_token"])
        metrics |= stepping.passes(len(samples), train, rolled.rng, lambda minibatch: self._update(batch, minibatch))
        metrics |= {"clip_fraction": trl_parts.logged(self.trainer, "clip_ratio/region_mean")}
        return metrics | {"learning_rate": rate, "seconds": time.monotonic() - start}

    def _update(self, batch: Mapping[str, Tensor], minibatch: Sequence[slice]) -> dict[str, float]:
        """One optimizer step on the mean over replies of TRL's loss."""
        from thumbwise.training.policy import trl_parts

        def inputs(part: slice) -> Any:
            return {name: values[part] for name, values in batch.items()}

        loss, norm = trl_parts.update(self, self.trainer, inputs, minibatch)
        return {"policy_loss": loss, "policy_grad_norm": norm}


@hookimpl
def register_policy_algorithms(register: Register) -> None:
    """As `rloo`."""
    register("rloo", RLOO)

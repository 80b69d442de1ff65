"""KTO by TRL, online: the policy's own replies, each good or bad by itself, as with a thumb. The loop, top to bottom.

Each iteration samples one reply to each prompt. A reply is desirable if the reward likes it better than the reference's
replies on average (a score above 0). The loss is TRL's: 1 - sigmoid(beta (log ratio - KL)) for desirable replies, 1 -
sigmoid(beta (KL - log ratio)) for the others, ratios to the reference (Ethayarajh et al. 2024, arXiv 2402.01306,
equation 7), here at the run's temperature. Both kinds weigh the same in an iteration, however few replies one kind has.

The KL is measured on the replies. TRL's own estimate puts replies after other prompts, so it is for replies that the
policy did not give.

Left out: thumbs that people gave (the reward model has learned from them), and replies of earlier iterations. Torch and
TRL are imported in the methods that need them, so that listing plugins stays cheap.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from thumbwise import hookimpl
from thumbwise.contracts import Register, Reward, RunContext
from thumbwise.training.policy.state import PolicyState

if TYPE_CHECKING:
    from torch import Tensor


def balanced(desirable: Sequence[bool]) -> tuple[float, float]:
    """Weights of desirable and of other replies with which each kind counts half; 1 if there is only one kind."""
    good, n = sum(desirable), len(desirable)
    return (n / (2 * good), n / (2 * (n - good))) if 0 < good < n else (1.0, 1.0)


class KTO(PolicyState):
    """Improves the adapter "policy", one batch of rollouts a step."""

    def __init__(self, context: RunContext, reward: Reward) -> None:
        from thumbwise.training.policy import trl_parts

        super().__init__(context, reward)
        self.kl = 0.0
        self.trainer = self._make_trainer()
        self.trainer.precompute_ref_logps = True  # ours come with each row
        trl_parts.at_temperature(self.backbone, context.temperature)

    def _make_trainer(self) -> Any:
        """TRL's trainer, with the KL that we measured instead of its own estimate."""
        import torch

        from thumbwise.training.policy import trl_parts

        trainer, config = trl_parts.load("KTOTrainer", "KTOConfig")
        algorithm = self

        class WithOurKL(trainer):  # type: ignore[misc, valid-type]
            def _compute_kl_logps(self, model: Any, batch: Mapping[str, Tensor]) -> Tensor:
                del model
                return torch.full((len(batch["label"]),), algorithm.kl)

        common = trl_parts.settings(self.context)
        common["per_device_train_batch_size"] = max(2, self.train.micro_batch)  # TRL's own KL would need two
        args = config(**common, beta=self.train.kto_beta, max_length=None)
        row = {"prompt": "a", "completion": "b", "label": True}
        return trl_parts.build(self.backbone, WithOurKL, row, args=args)

    def step(self, iteration: int) -> dict[str, float]:
        """One iteration: rollouts, scores, what is desirable, then the updates. Returns its metrics."""
        from thumbwise.training.policy import stepping

        start, train = time.monotonic(), self.train
        rolled = stepping.score_replies(self.context, self.reward, iteration, 1, self.ends)
        metrics = rolled.metrics
        # If a missing end costs something, an end is worth as much. So the score's 0 still divides the two kinds.
        worth = (rolled.score - rolled.penalty + rolled.penalty.mean()).tolist()
        known = rolled.known.tolist()
        rows = [
            {
                "prompt_ids": list(sample.prompt_ids), "completion_ids": list(sample.response_ids),
                "label": worth[n] > 0, "ref_logps": float(rolled.reference[n]), "ref_KL_logps": 0.0,
            }
            for n, sample in enumerate(rolled.samples) if known[n] and sample.response_ids
        ]  # fmt: skip
        desirable = [row["label"] for row in rows]
        self.kl = max(0.0, metrics["kl"])
        self.trainer.desirable_weight, self.trainer.undesirable_weight = balanced(desirable)
        rate = self.set_pace(iteration, metrics["kl_token"])
        metrics |= {"kto_loss": 0.0, "policy_grad_norm": 0.0}  # if no reply had a score
        metrics |= stepping.passes(len(rows), train, rolled.rng, lambda minibatch: self._update(rows, minibatch))
        metrics |= {"desirable": sum(desirable) / max(1, len(desirable))}
        return metrics | {"learning_rate": rate, "seconds": time.monotonic() - start}

    def _update(self, rows: Sequence[dict[str, Any]], minibatch: Sequence[slice]) -> dict[str, float]:
        """One optimizer step on the mean over replies of TRL's loss."""
        from thumbwise.training.policy import trl_parts

        def inputs(part: slice) -> Any:
            return self.trainer.data_collator(list(rows[part]))

        loss, norm = trl_parts.update(self, self.trainer, inputs, minibatch)
        return {"kto_loss": loss, "policy_grad_norm": norm}


@hookimpl
def register_policy_algorithms(register: Register) -> None:
    """As `kto`."""
    register("kto", KTO)

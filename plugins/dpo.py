"""DPO by TRL, online: the policy's own replies, paired by the reward. The loop, top to bottom.

Each iteration samples `replies` replies to a prompt. It pairs the best with the worst, the second best with the second
worst, and so on (Guo et al. 2024, arXiv 2402.04792, have one pair per prompt and an LLM that judges).

The loss is TRL's: -log sigmoid(beta (log ratio of the chosen - log ratio of the rejected)), ratios to the reference
(Rafailov et al. 2023, equation 7), here at the run's temperature. Beta limits how far the policy moves, and so does the
learning rate, which follows the KL (`Pace`). There is no value function and no advantage; only the order of scores
counts.

Left out: pairs that people voted on (their replies are seldom the policy's own, and the reward model has learned from
them already), and pairs of earlier iterations. Torch and TRL are imported in the methods that need them, so that
listing plugins stays cheap.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from thumbwise import hookimpl
from thumbwise.contracts import Register, Reward, RunContext, Sample
from thumbwise.training.policy.state import PolicyState

Pair = tuple[Sample, Sample]
"""Chosen and rejected."""


def pair_up(samples: Sequence[Sample], scores: Sequence[float], known: Sequence[bool], n: int) -> list[Pair]:
    """Pairs from every n in a row: best and worst, second best and second worst, …; never two with the same score.

    Replies without a score or without tokens are in no pair.
    """
    pairs = []
    for start in range(0, len(samples), n):
        group = [i for i in range(start, min(start + n, len(samples))) if known[i] and samples[i].response_ids]
        group.sort(key=lambda i: -scores[i])
        for place in range(len(group) // 2):
            best, worst = group[place], group[-1 - place]
            if scores[best] > scores[worst]:
                pairs.append((samples[best], samples[worst]))
    return pairs


class DPO(PolicyState):
    """Improves the adapter "policy", one batch of rollouts a step."""

    def __init__(self, context: RunContext, reward: Reward) -> None:
        from thumbwise.training.policy import trl_parts

        super().__init__(context, reward)
        trainer, config = trl_parts.load("DPOTrainer", "DPOConfig")
        args = config(**trl_parts.settings(context), beta=self.train.dpo_beta, max_length=None)
        row = {"prompt": "a", "chosen": "b", "rejected": "c"}
        self.trainer = trl_parts.build(self.backbone, trainer, row, args=args)
        trl_parts.at_temperature(self.backbone, context.temperature)

    def step(self, iteration: int) -> dict[str, float]:
        """One iteration: rollouts, scores, pairs, then the updates. Returns its metrics."""
        from thumbwise.training.policy import stepping, trl_parts

        start, train = time.monotonic(), self.train
        rolled = stepping.score_replies(self.context, self.reward, iteration, train.replies, self.ends)
        metrics = rolled.metrics
        pairs = pair_up(rolled.samples, (rolled.score - rolled.penalty).tolist(), rolled.known.tolist(), train.replies)
        rate = self.set_pace(iteration, metrics["kl_token"])
        metrics |= {"dpo_loss": 0.0, "dpo_accuracy": 0.5, "policy_grad_norm": 0.0}  # if there was no pair
        metrics |= stepping.passes(len(pairs), train, rolled.rng, lambda minibatch: self._update(pairs, minibatch))
        if pairs:
            metrics["dpo_accuracy"] = trl_parts.logged(self.trainer, "rewards/accuracies")
        return metrics | {"learning_rate": rate, "seconds": time.monotonic() - start}

    def _update(self, pairs: Sequence[Pair], minibatch: Sequence[slice]) -> dict[str, float]:
        """One optimizer step on the mean over pairs of TRL's loss."""
        from thumbwise.training.policy import trl_parts

        def inputs(part: slice) -> Any:
            rows = [
                {
                    "prompt_ids": list(chosen.prompt_ids),
                    "chosen_ids": list(chosen.response_ids),
                    "rejected_ids": list(rejected.response_ids),
                }
                for chosen, rejected in pairs[part]
            ]
            return self.trainer.data_collator(rows)

        loss, norm = trl_parts.update(self, self.trainer, inputs, minibatch)
        return {"dpo_loss": loss, "policy_grad_norm": norm}


@hookimpl
def register_policy_algorithms(register: Register) -> None:
    """As `dpo`."""
    register("dpo", DPO)

"""Best of n: sample several replies to a prompt, keep the best, and fine-tune on it. The loop, top to bottom.

This is rejection sampling as in RAFT (Dong et al. 2023, arXiv 2304.06767, algorithm 1, one reply kept per prompt). Each
iteration samples `best_of` replies to each prompt from the current policy, and raises the likelihood of the best one.
There is no value function, no advantage and no ratio, and only the order of the scores counts.

Fewer things can go wrong, but it learns from only one reply in `best_of`. Nothing in the loss pulls it back to the
reference. Only the learning rate limits it, which follows the KL (`Pace`).

Left out: a KL term in the score (RAFT's variant), keeping more than one reply per prompt, and replies of earlier
iterations. Torch is imported in the methods that need it, so that listing plugins stays cheap.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from thumbwise import hookimpl
from thumbwise.contracts import Register, Sample
from thumbwise.training.policy.state import PolicyState


def best_replies(scores: Sequence[float], known: Sequence[bool], n: int) -> list[int]:
    """Index of the best score of every n in a row: the first of equal ones, and none if no score is known."""
    kept = []
    for start in range(0, len(scores), n):
        candidates = [i for i in range(start, min(start + n, len(scores))) if known[i]]
        if candidates:
            kept.append(max(candidates, key=lambda i: scores[i]))
    return kept


class BestOfN(PolicyState):
    """Improves the adapter "policy", one batch of rollouts a step."""

    def step(self, iteration: int) -> dict[str, float]:
        """One iteration: rollouts, scores, the best of each prompt, then the updates. Returns its metrics."""
        from thumbwise.training.policy import stepping

        start, train = time.monotonic(), self.train
        rolled = stepping.score_replies(self.context, self.reward, iteration, train.best_of, self.ends)
        samples, score, metrics = rolled.samples, rolled.score, rolled.metrics
        # A reply without tokens (some backend's) never wins: it has no likelihood that could be raised.
        eligible = [bool(k) and len(s.response_ids) > 0 for k, s in zip(rolled.known.tolist(), samples, strict=True)]
        best = best_replies((score - rolled.penalty).tolist(), eligible, train.best_of)
        kept = [samples[i] for i in best]
        rate = self.set_pace(iteration, metrics["kl_token"])
        metrics |= {"best_reward": float(score[best].mean()) if best else 0.0}
        metrics |= {"sft_loss": 0.0, "policy_grad_norm": 0.0}  # if nothing was kept
        metrics |= stepping.passes(len(kept), train, rolled.rng, lambda minibatch: self._update(kept, minibatch))
        return metrics | {"learning_rate": rate, "seconds": time.monotonic() - start}

    def _update(self, kept: Sequence[Sample], minibatch: Sequence[slice]) -> dict[str, float]:
        """One optimizer step on the mean over tokens of -log policy(token).

        It is at the run's temperature, at which the replies were sampled. There the gradient of a reply's
        log-likelihood is 0 in expectation, so that only the choice among replies moves the policy. At temperature 1,
        replies drawn at 0.7 would teach the policy to be sharper whatever the reward says. With noise for a reward, a
        two-layer model's entropy went from 4.8 nats to 0 in 16 iterations (at the run's temperature: to 4.5).
        """
        from thumbwise.training.policy import stepping

        self.optimizer.zero_grad(set_to_none=True)
        loss = stepping.imitate(self.backbone, kept, minibatch, self.context.temperature)
        norm = stepping.descend(self.policy, self.optimizer, self.train.max_grad_norm)
        return {"sft_loss": loss, "policy_grad_norm": norm}


@hookimpl
def register_policy_algorithms(register: Register) -> None:
    """As `best_of_n`."""
    register("best_of_n", BestOfN)

"""PPO with a KL penalty, as in InstructGPT, on one frozen backbone: the loop, top to bottom.

- Rollouts come from the policy at the run's temperature.
- The reward is the score at the last response token, minus beta times the KL to the reference at every token.
- Advantages are by GAE, from a value function that starts as the reward model.
- The learning rate follows the KL (`Pace`).
- The penalty of replies that were cut off follows their number (`MissingEnd`).

The formulas are in `thumbwise.training.policy.losses`. What other algorithms do too is in
`thumbwise.training.policy.stepping`. The pretraining term (PPO-ptx) is in `thumbwise.training.policy.ptx`; `train.ptx`
= 0 switches it off.

Left out: rollouts older than one iteration. Torch is imported in the methods that need it, so that listing plugins
stays cheap.
"""

from __future__ import annotations

import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from thumbwise import hookimpl
from thumbwise.contracts import Register, Reward, RolloutBackend, RunContext, Sample
from thumbwise.training.policy.state import PolicyState

if TYPE_CHECKING:
    from torch import Tensor

    from thumbwise.training.policy.stepping import Parts


@dataclass
class Rollout:
    """One batch of N episodes; tensors [N, T] float32. `mask` is 0 for replies without a score too.

    `features` [N, T, layers, D] are the inputs of the linear value function, above the `line`. `weights` are the
    weights of tokens in the policy's loss. They differ from 1 if what sampled the tokens is not exactly the policy.
    """

    samples: list[Sample]
    features: Tensor
    line: Tensor
    mask: Tensor
    old_logp: Tensor
    weights: Tensor
    old_values: Tensor
    advantages: Tensor
    returns: Tensor


class PPO(PolicyState):
    """Improves the adapter "policy", one batch of rollouts a step."""

    def __init__(self, context: RunContext, reward: Reward) -> None:
        from thumbwise.training.policy.ptx import Pretraining
        from thumbwise.training.policy.value import ValueFunction

        super().__init__(context, reward)
        train = self.train
        self.value = ValueFunction(self.backbone, context.value, train.value_learning_rate)
        # A lambda below 1 relies on the values, and a value function that starts from nothing knows nothing.
        self.gae_lambda = train.gae_lambda if context.value is not None else 1.0
        self.pretraining = Pretraining(context) if train.ptx > 0 else None

    def step(self, iteration: int) -> dict[str, float]:
        """One iteration: rollouts, rewards, advantages, then the updates. Returns its metrics."""
        from thumbwise.training.policy import stepping

        start = time.monotonic()
        samples, rng = stepping.sample_rollouts(self.context, iteration, self.train.episodes)
        rollout, metrics = self._evaluate(samples)
        rate = self.set_pace(iteration, metrics["kl_token"])
        stepping.set_learning_rate(self.value.optimizer, self.train.value_learning_rate, self.train, iteration)
        metrics |= stepping.passes(
            len(samples),
            self.train,
            rng,
            lambda minibatch: self._policy_step(rollout, minibatch, rng) | self._value_step(rollout, minibatch),
        )
        self.ends.update(metrics["finish_rate"])
        return metrics | {"learning_rate": rate, "seconds": time.monotonic() - start}

    def _evaluate(self, samples: list[Sample]) -> tuple[Rollout, dict[str, float]]:
        """Score the rollouts, and recompute their log-probabilities with the trainer's own weights."""
        from thumbwise.training.policy import losses, stepping

        train = self.train
        score, penalty, known = stepping.shaped_scores(self.reward, samples, train.reward_clip, self.ends)
        parts = [part for minibatch in stepping.minibatches(len(samples), train) for part in minibatch]
        found = stepping.measure(self.backbone, samples, parts, self.context.temperature)
        mask = found.mask * known[:, None]
        kl = losses.kl_k1(found.logp, found.reference)
        rewards = losses.token_rewards(score - penalty, kl, mask, self.kl_price(samples))
        if train.whiten_rewards:
            rewards = losses.whiten(rewards, mask, keep_mean=True)
        features = self.value.features(samples, mask.shape[1])
        to_come = losses.gae(rewards, mask.new_zeros(mask.shape), mask, train.gamma, 1.0)[0]
        line = self.value.level(features, mask, to_come)
        values = self.value.values(features, line, mask).detach()
        advantages, returns = losses.gae(rewards, values, mask, train.gamma, self.gae_lambda)
        deviation = losses.masked_mean((advantages - losses.masked_mean(advantages, mask)) ** 2, mask).sqrt()
        weights = losses.sampling_weights(found.logp, stepping.rollout_logp(samples, found.logp))
        whitened = losses.whiten(advantages, mask)
        rollout = Rollout(samples, features, line, mask, found.logp, weights, values, whitened, returns)
        return rollout, stepping.rollout_metrics(samples, found, score, known, self.ends) | {
            "explained_variance": losses.explained_variance(values, to_come, mask),
            "advantage_std": float(deviation),
        }

    def _policy_step(self, rollout: Rollout, minibatch: Sequence[slice], rng: random.Random) -> dict[str, float]:
        """One optimizer step on the clipped objective and the pretraining term.

        The sum over micro-batches is divided by one token count.
        """
        from thumbwise.training.policy import losses, stepping

        count = sum(rollout.mask[part].sum() for part in minibatch).clamp(min=1)
        loss_sum = ratio_sum = clipped = ratio_max = 0.0
        self.optimizer.zero_grad(set_to_none=True)
        for part in minibatch:
            batch = self.backbone.batch(rollout.samples[part])
            width = batch.tokens.shape[1]
            old, advantages = rollout.old_logp[part, :width], rollout.advantages[part, :width]
            mask, weights = rollout.mask[part, :width], rollout.weights[part, :width]
            logp = self.backbone.logprobs(batch, "policy", self.context.temperature)
            loss = (losses.policy_loss(logp, old, advantages, self.train.clip) * weights * mask).sum() / count
            loss.backward()
            ratio = losses.ratio_of(logp.detach(), old)
            loss_sum += float(loss.detach())
            ratio_sum += float((ratio * mask).sum() / count)
            clipped += float((((ratio - 1).abs() > self.train.clip) * mask).sum() / count)
            ratio_max = max(ratio_max, float((ratio * mask).max()))
        ptx = self.pretraining.add_gradient(self.policy, self.pretraining.draw(rng)) if self.pretraining else {}
        norm = stepping.descend(self.policy, self.optimizer, self.train.max_grad_norm)
        return {
            "policy_loss": loss_sum, "ratio": ratio_sum, "clip_fraction": clipped, "ratio_max": ratio_max,
            "policy_grad_norm": norm, **ptx,
        }  # fmt: skip

    def _value_step(self, rollout: Rollout, minibatch: Sequence[slice]) -> dict[str, float]:
        """One optimizer step of the value function, which shares no weight with the policy."""
        from thumbwise.training.policy import losses, stepping

        count = sum(rollout.mask[part].sum() for part in minibatch).clamp(min=1)
        loss_sum = 0.0
        self.value.optimizer.zero_grad(set_to_none=True)
        for part in minibatch:
            old, returns, mask = (x[part] for x in (rollout.old_values, rollout.returns, rollout.mask))
            values = self.value.values(rollout.features[part], rollout.line[part], mask)
            loss = (losses.value_loss(values, old, returns, self.train.value_clip) * mask).sum() / count
            loss.backward()
            loss_sum += float(loss.detach())
        norm = stepping.descend(self.value.parameters(), self.value.optimizer, self.train.max_grad_norm)
        return {"value_loss": loss_sum, "value_grad_norm": norm}

    def parts(self) -> Parts:
        """The policy and the value function."""
        return {**super().parts(), "value": (self.value.parameters(), self.value.optimizer)}

    def state_dict(self) -> dict[str, Any]:
        """The state of every algorithm, and the norms of PPO-ptx."""
        return super().state_dict() | (self.pretraining.state_dict() if self.pretraining else {})

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        super().load_state_dict(state)
        if self.pretraining:
            self.pretraining.load_state_dict(state)


def in_process(context: RunContext) -> RolloutBackend:
    """The rollout backend that samples with the run's own backbone."""
    from thumbwise.training.policy.rollouts import InProcess

    return InProcess(context)


@hookimpl
def register_rollout_backends(register: Register) -> None:
    """As `in_process`."""
    register("in_process", in_process)


@hookimpl
def register_policy_algorithms(register: Register) -> None:
    """As `ppo`."""
    register("ppo", PPO)

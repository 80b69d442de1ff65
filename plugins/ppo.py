"""PPO with a KL penalty, as InstructGPT has it, on one frozen backbone: the loop, top to bottom.

Rollouts come from the policy at the run's temperature; the reward is the score at the last response token
less beta times the KL to the reference at every token; advantages by GAE from a value function that starts
as the reward model. The formulas are in `thumbwise.training.losses`. Left out: the pretraining term
(PPO-ptx), and rollouts older than one iteration. Torch is imported where a method needs it, so that
listing plugins stays cheap.
"""

from __future__ import annotations

import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from thumbwise import hookimpl
from thumbwise.contracts import Prompt, Register, Reward, RolloutBackend, RunContext, Sample
from thumbwise.training.replies import eos_penalties, finish_rate, mean_length, repetition

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class Rollout:
    """One batch of N episodes; tensors [N, T] float32. `mask` is 0 for replies without a score too."""

    samples: list[Sample]
    mask: Tensor
    old_logp: Tensor
    old_values: Tensor
    advantages: Tensor
    returns: Tensor


class PPO:
    """Improves the adapter "policy", one batch of rollouts a step."""

    def __init__(self, context: RunContext, reward: Reward) -> None:
        from thumbwise.training.losses import AdaptiveKL
        from thumbwise.training.models import POLICY
        from thumbwise.training.value import ValueFunction, adamw

        train = context.train
        if context.rollouts is None:
            raise ValueError("PPO needs a rollout backend in its context")
        self.context, self.train, self.backbone = context, train, context.backbone
        self.reward, self.rollouts = reward, context.rollouts
        self.iterations = train.iterations
        self.value = ValueFunction(
            self.backbone, context.value, train.value_rank, train.value_learning_rate, train.seed + 1
        )
        self.policy = self.backbone.parameters(POLICY)
        self.optimizer = adamw(list(self.policy.values()), train.learning_rate)
        self.kl = AdaptiveKL(train.kl_coefficient, train.kl_target, train.kl_horizon)

    def step(self, iteration: int) -> dict[str, float]:
        """One iteration: rollouts, rewards, advantages, then the updates. Returns its metrics."""
        from thumbwise.training.losses import warmup

        start = time.monotonic()
        rng = random.Random(f"{self.train.seed}:{iteration}")
        prompts = self._prompts(rng)
        samples = self.rollouts.sample(prompts, "policy", self.train.seed * 100_003 + iteration)
        rollout, metrics = self._evaluate(samples)
        factor = warmup(iteration, self.train.warmup)
        for optimizer, lr in (
            (self.optimizer, self.train.learning_rate),
            (self.value.optimizer, self.train.value_learning_rate),
        ):
            for group in optimizer.param_groups:
                group["lr"] = lr * factor
        metrics |= self._update(rollout, rng)
        self.kl.update(metrics["kl"], len(samples))
        return metrics | {
            "learning_rate": self.train.learning_rate * factor,
            "seconds": time.monotonic() - start,
        }

    def _prompts(self, rng: random.Random) -> list[Prompt]:
        """`episodes` prompts, `own_prompts` of them people's where there are any; no repeats before all came."""
        own, seeds = list(self.context.prompts), list(self.context.seed_prompts)
        wanted = self.train.episodes
        n_own = round(self.train.own_prompts * wanted) if own and seeds else (wanted if own else 0)
        drawn: list[Prompt] = []
        for prompts, upto in ((own, n_own), (seeds, wanted)):
            while len(drawn) < upto:
                drawn += rng.sample(prompts, min(len(prompts), upto - len(drawn)))
        rng.shuffle(drawn)  # minibatches are runs of neighbours
        return drawn

    def _minibatches(self, n: int) -> list[list[slice]]:
        """Minibatches of n replies, each cut into micro-batches; the same in every pass over them.

        So old and new log-probabilities are computed in the same shapes, and bfloat16 rounds them alike.
        """
        from thumbwise.training.batches import chunks

        size = -(-n // self.train.minibatches)
        return [
            [
                slice(whole.start + part.start, whole.start + part.stop)
                for part in chunks(whole.stop - whole.start, micro)
            ]
            for whole in chunks(n, size)
            for micro in [self.train.micro_batch]
        ]

    def _evaluate(self, samples: list[Sample]) -> tuple[Rollout, dict[str, float]]:
        """Score the rollouts, and recompute their log-probabilities with the trainer's own weights."""
        import torch

        from thumbwise.training import losses
        from thumbwise.training.batches import pad_rows

        train, temperature = self.train, self.context.temperature
        scores = self.reward(samples)
        known = torch.isfinite(torch.tensor(scores.value))
        score = torch.tensor(scores.value).nan_to_num(0.0).clamp(-train.reward_clip, train.reward_clip)
        score = score - torch.tensor(eos_penalties(samples, train.missing_eos_penalty))
        width = max(1, *(len(s.response_ids) for s in samples))
        parts: dict[str, list[Tensor]] = {"logp": [], "reference": [], "entropy": [], "mask": []}
        for part in (part for minibatch in self._minibatches(len(samples)) for part in minibatch):
            batch = self.backbone.batch(samples[part])
            logp, entropy = self.backbone.logprobs_and_entropy(batch, "policy", temperature)
            with torch.no_grad():
                reference = self.backbone.logprobs(batch, None, temperature)
            for name, rows in (("logp", logp), ("reference", reference), ("entropy", entropy), ("mask", batch.mask)):
                parts[name].append(rows)
        logp, reference, entropy, real = (pad_rows(rows, width) for rows in parts.values())
        mask = real * known[:, None]
        kl = losses.kl_k1(logp, reference)
        rewards = losses.token_rewards(score, kl, mask, self.kl.value)
        if train.whiten_rewards:
            rewards = losses.whiten(rewards, mask, keep_mean=True)
        values = self.value.predict(samples, width)
        advantages, returns = losses.gae(rewards, values, mask, train.gamma, train.gae_lambda)
        deviation = losses.masked_mean((advantages - losses.masked_mean(advantages, mask)) ** 2, mask).sqrt()
        rollout = Rollout(samples, mask, logp, values, losses.whiten(advantages, mask), returns)
        metrics = {
            "reward": float(score[known].mean()) if bool(known.any()) else 0.0,
            "reward_std": float(score[known].std(correction=0)) if bool(known.any()) else 0.0,
            "kl": float((kl * real).sum() / len(samples)),
            "kl_coefficient": self.kl.value,
            "explained_variance": losses.explained_variance(values, returns, mask),
            "advantage_std": float(deviation),
            "entropy": float(losses.masked_mean(entropy, real)),
            "length": mean_length(samples),
            "finish_rate": finish_rate(samples),
            "repetition": repetition(samples),
            "rollout_gap": _rollout_gap(samples, logp),
            "abstained": float((~known).sum()),
        }
        return rollout, metrics

    def _update(self, rollout: Rollout, rng: random.Random) -> dict[str, float]:
        """`epochs` passes in `minibatches` steps each, policy and value function apart."""
        totals: dict[str, list[float]] = {}
        minibatches = self._minibatches(len(rollout.samples))
        for _ in range(self.train.epochs):
            for minibatch in rng.sample(minibatches, len(minibatches)):
                for name, value in (
                    self._policy_step(rollout, minibatch) | self._value_step(rollout, minibatch)
                ).items():
                    totals.setdefault(name, []).append(value)
        return {
            name: max(values) if name == "ratio_max" else sum(values) / len(values) for name, values in totals.items()
        }

    def _policy_step(self, rollout: Rollout, minibatch: Sequence[slice]) -> dict[str, float]:
        """One optimizer step on the clipped objective; the sum over micro-batches is divided by one token count."""
        import torch

        from thumbwise.training import losses

        count = sum(rollout.mask[part].sum() for part in minibatch).clamp(min=1)
        loss_sum = ratio_sum = clipped = ratio_max = 0.0
        self.optimizer.zero_grad(set_to_none=True)
        for part in minibatch:
            batch = self.backbone.batch(rollout.samples[part])
            width = batch.tokens.shape[1]
            old, advantages, mask = (x[part, :width] for x in (rollout.old_logp, rollout.advantages, rollout.mask))
            logp = self.backbone.logprobs(batch, "policy", self.context.temperature)
            loss = (losses.policy_loss(logp, old, advantages, self.train.clip) * mask).sum() / count
            loss.backward()
            ratio = losses.ratio_of(logp.detach(), old)
            loss_sum += float(loss.detach())
            ratio_sum += float((ratio * mask).sum() / count)
            clipped += float((((ratio - 1).abs() > self.train.clip) * mask).sum() / count)
            ratio_max = max(ratio_max, float((ratio * mask).max()))
        norm = torch.nn.utils.clip_grad_norm_(list(self.policy.values()), self.train.max_grad_norm)
        self.optimizer.step()
        return {
            "policy_loss": loss_sum, "ratio": ratio_sum, "clip_fraction": clipped, "ratio_max": ratio_max,
            "policy_grad_norm": float(norm),
        }  # fmt: skip

    def _value_step(self, rollout: Rollout, minibatch: Sequence[slice]) -> dict[str, float]:
        """One optimizer step of the value function; no gradient reaches the policy."""
        import torch

        from thumbwise.training import losses

        count = sum(rollout.mask[part].sum() for part in minibatch).clamp(min=1)
        loss_sum = 0.0
        self.value.optimizer.zero_grad(set_to_none=True)
        for part in minibatch:
            batch = self.backbone.batch(rollout.samples[part])
            width = batch.tokens.shape[1]
            old, returns, mask = (x[part, :width] for x in (rollout.old_values, rollout.returns, rollout.mask))
            values = self.value.values(batch)
            loss = (losses.value_loss(values, old, returns, self.train.value_clip) * mask).sum() / count
            loss.backward()
            loss_sum += float(loss.detach())
        weights = list(self.value.parameters().values())
        norm = torch.nn.utils.clip_grad_norm_(weights, self.train.max_grad_norm)
        self.value.optimizer.step()
        return {"value_loss": loss_sum, "value_grad_norm": float(norm)}

    def state_dict(self) -> dict[str, Any]:
        """Policy, value function, both optimizers and the KL coefficient, copied."""
        import copy

        value = {name: weight.detach().clone() for name, weight in self.value.parameters().items()}
        return {
            "policy": {name: weight.detach().clone() for name, weight in self.policy.items()},
            "value": value,
            "policy_optimizer": copy.deepcopy(self.optimizer.state_dict()),
            "value_optimizer": copy.deepcopy(self.value.optimizer.state_dict()),
            "kl_coefficient": self.kl.value,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go back, or on, to what `state_dict` returned."""
        import copy

        import torch

        with torch.no_grad():
            for weights, kept in ((self.policy, state["policy"]), (self.value.parameters(), state["value"])):
                for name, weight in weights.items():
                    weight.copy_(kept[name])
        self.optimizer.load_state_dict(copy.deepcopy(state["policy_optimizer"]))
        self.value.optimizer.load_state_dict(copy.deepcopy(state["value_optimizer"]))
        self.kl.value = state["kl_coefficient"]


def _rollout_gap(samples: Sequence[Sample], logp: Tensor) -> float:
    """Mean |trainer - rollout log-probability| over response tokens; 0 where the backend reports none."""
    total, count = 0.0, 0
    for row, sample in enumerate(samples):
        given = sample.rollout_logprobs or ()
        total += sum(abs(a - b) for a, b in zip(logp[row].tolist(), given, strict=False))
        count += len(given)
    return total / max(count, 1)


def in_process(context: RunContext) -> RolloutBackend:
    """The rollout backend that samples with the run's own backbone."""
    from thumbwise.training.rollouts import InProcess

    return InProcess(context)


@hookimpl
def register_rollout_backends(register: Register) -> None:
    """As `in_process`."""
    register("in_process", in_process)


@hookimpl
def register_policy_algorithms(register: Register) -> None:
    """As `ppo`."""
    register("ppo", PPO)

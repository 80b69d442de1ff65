"""The formulas of PPO, as pure functions of float32 tensors.

Shapes: B replies, T response positions. `mask` [B, T] is 1 on real response tokens; it is made from lengths, never from
`ids != pad`. Losses are returned per element, unreduced. The caller divides by the count over the whole batch, so
micro-batches of unequal length do not change the gradient. The pretraining term is in `ptx.py`.

Left out: dual clipping.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

LOG_RATIO_LIMIT = 20.0
SAMPLING_WEIGHT = 2.0


# --- KL -------------------------------------------------------------------------


def kl_k1(logp: Tensor, ref_logp: Tensor) -> Tensor:
    """Per-token KL estimate log(pi / ref): unbiased, signed. The one for rewards (Schulman 2020)."""
    return logp - ref_logp


def kl_k2(logp: Tensor, ref_logp: Tensor) -> Tensor:
    """Per-token estimate (log(pi / ref))^2 / 2: biased, but with KL's gradient. The one for a loss term."""
    return 0.5 * (logp - ref_logp) ** 2


def kl_k3(logp: Tensor, ref_logp: Tensor) -> Tensor:
    """Per-token KL estimate ref/pi - 1 - log(ref/pi): unbiased, never negative. For monitoring from sampled tokens."""
    ratio = (ref_logp - logp).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    return ratio.exp() - 1 - ratio


# --- rewards and advantages ---------------------------------------------------------------------------


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of `values` where `mask` is 1: a scalar. It is 0 if the mask is 0 everywhere."""
    return (values * mask).sum() / mask.sum().clamp(min=1)


def token_rewards(score: Tensor, kl: Tensor, mask: Tensor, beta: float) -> Tensor:
    """Rewards [B, T]: -beta * kl at every response token, plus `score` [B] at the last one.

    A row without response tokens gets none of its score: no token could have earned it.
    """
    rewards = -beta * kl * mask
    last = (mask.sum(1).long() - 1).clamp(min=0)
    rows = torch.arange(mask.shape[0], device=mask.device)
    rewards[rows, last] += score * mask[rows, last]
    return rewards


def gae(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation on response tokens: (advantages, returns), both [B, T], 0 under pads.

    delta_t = r_t + gamma V_{t+1} - V_t, A_t = delta_t + gamma lam A_{t+1} (Schulman 2016). The value after the last
    response token is 0, whatever the pads contain.
    """
    rewards, values = rewards * mask, values * mask
    advantages = torch.zeros_like(rewards)
    carried = torch.zeros_like(rewards[:, 0])
    for t in reversed(range(rewards.shape[1])):
        after = values[:, t + 1] if t + 1 < rewards.shape[1] else torch.zeros_like(carried)
        carried = (rewards[:, t] + gamma * after - values[:, t] + gamma * lam * carried) * mask[:, t]
        advantages[:, t] = carried
    return advantages, (advantages + values) * mask


def whiten(values: Tensor, mask: Tensor, *, keep_mean: bool = False) -> Tensor:
    """Scale to deviation 1 (biased variance) over the mask; the mean goes to 0, or stays with `keep_mean`."""
    mean = masked_mean(values, mask)
    deviation = masked_mean((values - mean) ** 2, mask).add(1e-8).sqrt()
    return ((values - mean) / deviation + (mean if keep_mean else 0)) * mask


# --- PPO ----------------------------------------------------------------------------------------------


def ratio_of(logp: Tensor, old_logp: Tensor) -> Tensor:
    """pi / pi_old per token, with the log ratio clamped so that exp never overflows."""
    return (logp - old_logp).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp()


def sampling_weights(logp: Tensor, sampled_logp: Tensor) -> Tensor:
    """min(pi / mu, 2) per token, where mu is the policy that sampled it: truncated importance sampling (Ionides 2008).

    The policy that samples and the policy that is trained are the same, but in different arithmetic or in different
    programs. So verl (`rollout_is`) and TRL's GRPO (`vllm_importance_sampling_correction`) weight a token's loss. 2 is
    verl's threshold.
    """
    return ratio_of(logp, sampled_logp).clamp(max=SAMPLING_WEIGHT)


def policy_loss(logp: Tensor, old_logp: Tensor, advantages: Tensor, clip: float) -> Tensor:
    """PPO's clipped objective, negated, per token: max(-A r, -A clip(r, 1 - c, 1 + c)) (Schulman 2017)."""
    ratio = ratio_of(logp, old_logp)
    return torch.maximum(-advantages * ratio, -advantages * ratio.clamp(1 - clip, 1 + clip))


def value_loss(values: Tensor, old_values: Tensor, returns: Tensor, clip: float) -> Tensor:
    """Clipped squared error, per token: max((V - R)^2, (V_old + clip(V - V_old) - R)^2) / 2."""
    near = old_values + (values - old_values).clamp(-clip, clip)
    return 0.5 * torch.maximum((values - returns) ** 2, (near - returns) ** 2)


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> float:
    """1 - Var(R - V) / Var(R) over the mask: 1 is perfect, 0 no better than a constant."""

    def variance(x: Tensor) -> Tensor:
        return masked_mean((x - masked_mean(x, mask)) ** 2, mask)

    total = variance(returns)
    return float(1 - variance(returns - values) / total) if total > 0 else 0.0


def warmup(step: int, steps: int) -> float:
    """Learning-rate factor: linear from 0.1 at step 0 to 1 at `steps`, then 1 (InstructGPT, C.4)."""
    return 1.0 if steps <= 0 else min(1.0, 0.1 + 0.9 * step / steps)


def annealing(step: int, steps: int) -> float:
    """Learning-rate factor: linear from 1 at step 0 to 0.1 at the last of `steps`.

    OpenAI's lm-human-preferences does the same, down to 0 (Huang et al. 2024, The N implementation details of RLHF with
    PPO).
    """
    return 1 - 0.9 * step / max(1, steps - 1)


ENDS = 1.5
"""A policy that is to end in chat as often as the reference needs these odds of an end within a draft, times the
reference's.

Nothing keeps a policy near the reference after a draft's length. In five runs, drafts ended as often as the reference's
or less often, and then 9 to 25 points less of the chat replies than of stable's ended by themselves. If drafts ended
1.5 times as often, it was 2 to 12 points more (docs/experiments.md).
"""


def ends_wanted(usual: float, short: float = 1.0) -> float:
    """The target share of replies that end by themselves, if the share `usual` of the reference's replies does.

    `short` is the share of replies with a lower limit than chat's. The others keep the policy near the reference's
    share there. So the fewer replies are short, the nearer the target is to `usual`.
    """
    odds: float = ENDS**short
    return odds * usual / (odds * usual + 1 - usual)


@dataclass
class MissingEnd:
    """The penalty of a reply that was cut off, in deviations of the score. It is steered to the share `usual` of ends.

    How much votes like replies that are cut off differs. A fixed penalty that is too low for one reward model makes the
    next one's replies short, and nobody asked for that. `of` reacts to one batch at once, in proportion to the ends
    that it lacks. That alone would settle below `usual` if votes like longer replies, so `value` sums up what batches
    lacked. Without `usual` the penalty stays `value`.
    """

    value: float
    usual: float | None

    AT_ONCE = 6.0
    EACH_TIME = 3.0
    """How far the penalty rises if no reply ends and all should: AT_ONCE for that batch, EACH_TIME from then on."""
    MOST = 4.0
    """The sum goes no higher, so that it falls soon after a time in which the target could not be reached."""

    def of(self, rate: float) -> float:
        """The penalty in a batch of which the share `rate` ended by themselves; never below 0."""
        return max(0.0, self.value + self.AT_ONCE * self._lacking(rate))

    def update(self, rate: float) -> None:
        """Update the penalty after a batch of which the share `rate` ended by themselves."""
        self.value = min(max(0.0, self.value + self.EACH_TIME * self._lacking(rate)), max(self.MOST, self.value))

    def _lacking(self, rate: float) -> float:
        return 0.0 if self.usual is None else self.usual - rate


@dataclass
class Pace:
    """A factor on the policy's learning rate that brings its KL to `target` nats a token at the end of the schedule.

    KL grows as the square of the distance that the policy has moved. How far a learning rate moves the policy depends
    on how clear the reward is, and gets less as the policy nears what the reward likes. So it is measured over the last
    WINDOW iterations. The factor is the one that covers the remaining distance with the remaining learning rates. One
    iteration raises it by `gain` at most, and at most halves it, because a KL of few replies is noisy. A `gain` of 1
    leaves the rate alone.
    """

    target: float
    gain: float
    value: float = 1.0
    gone: float = 0.0
    marks: tuple[tuple[float, float], ...] = ()
    """The sum of rates used and the distance, at the last WINDOW updates. `gone` is the sum of rates until now."""

    WINDOW = 4
    CUT = 2.0
    LIMITS = (0.02, 4.0)

    def update(self, kl: float, ahead: Sequence[float], *, steer: bool = True) -> None:
        """Update the factor before an iteration whose policy is at `kl`.

        `ahead` are the rates of this iteration and of those after it, without the factor. If `steer` is False, the
        distance so far is noted and the factor stays.
        """
        way = math.sqrt(max(kl, 0.0))
        if steer and self.gain > 1 and self.marks:
            rates, went = self.gone - self.marks[0][0], way - self.marks[0][1]
            left = max(0.0, math.sqrt(self.target) - way)
            to_come = self.value * sum(ahead) * max(went, 0.0) / rates  # the distance, at this pace
            change = min(max(left / max(to_come, 1e-9), 1 / self.CUT), self.gain)
            self.value = min(max(self.value * change, self.LIMITS[0]), self.LIMITS[1])
        self.marks = (*self.marks, (self.gone, way))[-self.WINDOW :]
        self.gone += ahead[0] * self.value

"""What every policy algorithm's `step` has in common: draw prompts, sample, score, measure, cut into minibatches.

These are functions that an algorithm calls in the order it likes, not a base class with holes to fill in. So the loop
of each algorithm stays readable from top to bottom in its own file (`plugins/ppo.py`, `plugins/best_of_n.py`).

Left out: losses, and what is done with a score, because that is where algorithms differ.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from thumbwise.contracts import Backbone, Prompt, Reward, RunContext, Sample
from thumbwise.errors import ThumbwiseError
from thumbwise.settings.training import TrainSettings
from thumbwise.training.backbone.backbone import POLICY
from thumbwise.training.backbone.batches import chunks, pad_rows
from thumbwise.training.data.lengths import at_lengths
from thumbwise.training.evaluation.replies import eos_penalties, finish_rate, mean_length, repetition
from thumbwise.training.policy.losses import MissingEnd, annealing, kl_k3, masked_mean, warmup

Parts = Mapping[str, tuple[Mapping[str, Tensor], Any]]
"""What an algorithm trains, by name: the weights (by name too) and their optimizer."""


# --- rollouts and what they are worth -------------------------------------------------------------------


def sample_rollouts(
    context: RunContext, iteration: int, prompts: int, replies: int = 1
) -> tuple[list[Sample], random.Random]:
    """Replies of the policy to `prompts` prompts, `replies` in a row to each; and the iteration's random generator.

    The replies to one prompt share one limit, drawn from the lengths at which people judged, so that they can be
    compared. All of it depends only on the run's seed and the iteration's number. So a resumed run continues as if it
    had not stopped.
    """
    assert context.rollouts is not None
    rng = random.Random(f"{context.train.seed}:{iteration}")
    drawn = at_lengths(context, draw_prompts(context, prompts, rng), rng)
    asked = [prompt for prompt in drawn for _ in range(replies)]
    return context.rollouts.sample(asked, POLICY, context.train.seed * 100_003 + iteration), rng


def draw_prompts(context: RunContext, wanted: int, rng: random.Random) -> list[Prompt]:
    """`wanted` prompts, drawn as `by_group` does; `own_prompts` of them are people's, if there are any."""
    own, seeds = context.prompts, context.seed_prompts
    if not own and not seeds:
        raise ThumbwiseError("There is no prompt that rollouts could start from: all of them are held out.")
    n_own = round(context.train.own_prompts * wanted) if own and seeds else (wanted if own else 0)
    drawn = by_group(own, n_own, rng) + by_group(seeds, wanted - n_own, rng)
    rng.shuffle(drawn)  # a minibatch takes neighbours
    return drawn


def by_group(prompts: Sequence[Prompt], wanted: int, rng: random.Random) -> list[Prompt]:
    """`wanted` of `prompts`: no group (a conversation, or a topic) comes again before all groups had their turn.

    So a conversation of many turns counts as one. A prompt comes again only after all of its group.
    """
    groups: dict[str, list[Prompt]] = {}
    for prompt in prompts:
        groups.setdefault(prompt.group, []).append(prompt)
    for members in groups.values():
        rng.shuffle(members)
    drawn: list[Prompt] = []
    turn = 0
    while groups and len(drawn) < wanted:
        chosen = rng.sample(list(groups.values()), min(len(groups), wanted - len(drawn)))
        drawn += [members[turn % len(members)] for members in chosen]
        turn += 1
    return drawn


def missing_end(context: RunContext) -> MissingEnd:
    """The penalty of a run's replies that are cut off: `missing_eos_penalty` at first. 0 switches it off for good."""
    penalty = context.train.missing_eos_penalty
    return MissingEnd(penalty, context.finish_rate if penalty else None)


def shaped_scores(
    reward: Reward, samples: Sequence[Sample], limit: float, ends: MissingEnd
) -> tuple[Tensor, Tensor, Tensor]:
    """Scores [N] float32, clipped at `limit`; what `ends` subtracts, [N]; and whether there is a score, [N] bool.

    A score that is missing (NaN) or not finite is returned as 0: look at the third tensor first.
    """
    value = torch.tensor(reward(samples).value)
    penalty = torch.tensor(eos_penalties(samples, ends.of(finish_rate(samples))))
    return value.nan_to_num(0.0).clamp(-limit, limit), penalty, torch.isfinite(value)


@dataclass
class Measured:
    """Numbers of N replies by the trainer's own weights, [N, T] float32: see `Compared`. `mask` is 1 on real tokens."""

    logp: Tensor
    reference: Tensor
    entropy: Tensor
    kl: Tensor
    mask: Tensor


def measure(backbone: Backbone, samples: Sequence[Sample], parts: Sequence[slice], temperature: float) -> Measured:
    """Policy and reference on `samples` at `temperature`, computed in the micro-batches `parts`; no gradients."""
    width = max(1, *(len(s.response_ids) for s in samples))
    rows: list[list[Tensor]] = [[], [], [], [], []]
    for part in parts:
        batch = backbone.batch(samples[part])
        both = backbone.compared(batch, POLICY, temperature)
        for found, row in zip(rows, (both.logp, both.reference, both.entropy, both.kl, batch.mask), strict=True):
            found.append(row)
    return Measured(*(pad_rows(found, width) for found in rows))


def rollout_metrics(
    samples: Sequence[Sample], found: Measured, score: Tensor, known: Tensor, ends: MissingEnd
) -> dict[str, float]:
    """What every algorithm logs of its rollouts (`thumbwise.training.evaluation.metrics.GLOSSARY`); all of it finite.

    `score` and `known` are [N], as `shaped_scores` returns them. The logged reward is without the penalty for a missing
    end: the penalty is steered, so a reward minus it would fall while the policy gets better. `kl` is in nats a reply,
    `kl_token` in nats a token, over all N.
    """
    return {
        "reward": float(score[known].mean()) if bool(known.any()) else 0.0,
        "reward_std": float(score[known].std(correction=0)) if bool(known.any()) else 0.0,
        "kl": float(found.kl.sum() / len(samples)),
        "kl_token": float(masked_mean(found.kl, found.mask)),
        "entropy": float(masked_mean(found.entropy, found.mask)),
        "length": mean_length(samples),
        "finish_rate": finish_rate(samples),
        "end_penalty": ends.of(finish_rate(samples)),
        "repetition": repetition(samples),
        "rollout_kl": float(masked_mean(kl_k3(rollout_logp(samples, found.logp), found.logp), found.mask)),
        "abstained": float((~known).sum()),
    }


def rollout_logp(samples: Sequence[Sample], logp: Tensor) -> Tensor:
    """The backend's log-probabilities of the tokens, [N, T], or the trainer's own `logp` if it reports none."""
    given = logp.clone()
    for row, sample in enumerate(samples):
        if sample.rollout_logprobs is not None:
            given[row, : len(sample.rollout_logprobs)] = torch.tensor(sample.rollout_logprobs, dtype=given.dtype)
    return given


# --- updates --------------------------------------------------------------------------------------------


def minibatches(n: int, train: TrainSettings) -> list[list[slice]]:
    """At most `train.minibatches` of n replies, none empty, each cut into micro-batches; the same every time.

    So old and new log-probabilities are computed in the same shapes, and bfloat16 rounds them in the same way.
    """
    size = max(1, -(-n // train.minibatches))
    return [
        [
            slice(whole.start + part.start, whole.start + part.stop)
            for part in chunks(whole.stop - whole.start, train.micro_batch)
        ]
        for whole in chunks(n, size)
    ]


def passes(
    n: int, train: TrainSettings, rng: random.Random, update: Callable[[Sequence[slice]], Mapping[str, float]]
) -> dict[str, float]:
    """`update` on every minibatch of n replies, `epochs` times, each time in another order. Returns the metrics' means.

    Of a metric whose name ends in `_max` it returns the largest. Without replies nothing is called, and there are no
    metrics.
    """
    totals: dict[str, list[float]] = {}
    for _ in range(train.epochs):
        whole = minibatches(n, train)
        for minibatch in rng.sample(whole, len(whole)):
            for name, value in update(minibatch).items():
                totals.setdefault(name, []).append(value)
    return {
        name: max(values) if name.endswith("_max") else sum(values) / len(values) for name, values in totals.items()
    }


def schedule(train: TrainSettings, iteration: int) -> float:
    """Learning-rate factor of an iteration: warm-up, then annealing."""
    return warmup(iteration, train.warmup) * annealing(iteration, train.iterations)


def set_learning_rate(optimizer: Any, rate: float, train: TrainSettings, iteration: int) -> float:
    """Set `rate` on `optimizer`, after warm-up and annealing, and return it."""
    now = rate * schedule(train, iteration)
    for group in optimizer.param_groups:
        group["lr"] = now
    return now


@dataclass
class Scored:
    """N replies, the same number in a row to each prompt; what `shaped_scores` returns for them, [N] each; metrics.

    `reference` [N] is the sum of the reference's log-probabilities of each reply's tokens.
    """

    samples: list[Sample]
    score: Tensor
    penalty: Tensor
    known: Tensor
    reference: Tensor
    metrics: dict[str, float]
    rng: random.Random


def score_replies(context: RunContext, reward: Reward, iteration: int, replies: int, ends: MissingEnd) -> Scored:
    """About `episodes` rollouts, `replies` to each prompt, scored and measured. They update `ends`."""
    train = context.train
    samples, rng = sample_rollouts(context, iteration, max(1, train.episodes // replies), replies)
    score, penalty, known = shaped_scores(reward, samples, train.reward_clip, ends)
    found = measure(context.backbone, samples, list(chunks(len(samples), train.micro_batch)), context.temperature)
    metrics = rollout_metrics(samples, found, score, known, ends)
    ends.update(metrics["finish_rate"])
    return Scored(samples, score, penalty, known, (found.reference * found.mask).sum(1), metrics, rng)


def imitate(backbone: Backbone, samples: Sequence[Sample], parts: Sequence[slice], temperature: float) -> float:
    """Add the gradient of the mean over tokens of -log policy(token) to the policy's. Returns that mean.

    All micro-batches `parts` are divided by one token count, so how they are cut changes nothing.
    """
    count = max(1, sum(len(sample.response_ids) for part in parts for sample in samples[part]))
    total = 0.0
    for part in parts:
        loss = -backbone.logprobs(backbone.batch(samples[part]), POLICY, temperature).sum() / count
        loss.backward()
        total += float(loss.detach())
    return total


def descend(weights: Mapping[str, Tensor], optimizer: Any, max_norm: float) -> float:
    """One optimizer step with the current gradients, scaled down to `max_norm`. Returns their norm before that."""
    norm = torch.nn.utils.clip_grad_norm_(list(weights.values()), max_norm)
    optimizer.step()
    return float(norm)


# --- state ----------------------------------------------------------------------------------------------


def saved(parts: Parts) -> dict[str, Any]:
    """Copies of every part's weights, as `<name>`, and of its optimizer's state, as `<name>_optimizer`."""
    state: dict[str, Any] = {}
    for name, (weights, optimizer) in parts.items():
        state[name] = {key: weight.detach().clone() for key, weight in weights.items()}
        state[f"{name}_optimizer"] = copy.deepcopy(optimizer.state_dict())
    return state


def restore(parts: Parts, state: Mapping[str, Any]) -> None:
    """Set every part to what `saved` returned, in place. `state` is copied, so it can be used again."""
    for name, (weights, optimizer) in parts.items():
        with torch.no_grad():
            for key, weight in weights.items():
                weight.copy_(state[name][key])
        optimizer.load_state_dict(copy.deepcopy(state[f"{name}_optimizer"]))

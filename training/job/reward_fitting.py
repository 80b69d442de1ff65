"""The reward model's stage: it is fitted on all votes, then scaled on replies of the reference."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial

import numpy as np

from thumbwise.contracts import FitReport, RewardModel, RunContext, Sample
from thumbwise.errors import ThumbwiseError
from thumbwise.names import BASE
from thumbwise.training.data.lengths import at_lengths
from thumbwise.training.data.snapshot import Snapshot
from thumbwise.training.evaluation.evaluate import CHAT_TOKENS, Replies
from thumbwise.training.evaluation.replies import finish_rate, finish_rate_at
from thumbwise.training.policy.losses import ends_wanted
from thumbwise.training.reward.agreement import told
from thumbwise.training.reward.shaping import ShapedReward, check_fit, mend, naming
from thumbwise.training.run.folders import FIT, read_json, write_json
from thumbwise.training.run.work import Work, seed_all

CALIBRATION = 64
"""The number of the reference's replies on which the reward gets mean 0 and deviation 1."""


def fit_reward(work: Work, context: RunContext, snapshot: Snapshot) -> tuple[RewardModel, FitReport, float]:
    """Fit on all votes, then set mean and deviation on replies of the reference. fit.json marks the stage as done.

    The third result is the share of the reference's replies that end by themselves, at the lengths of rollouts. It
    counts these replies, and the reference's replies that people judged. The few replies alone would be mostly luck,
    and PPO is steered to this share. If the round begins from stable, it is the base's share: with stable's, the target
    would rise every round, and replies would become ever shorter.
    """
    work.progress.stage("reward model")
    name = work.settings.reward
    blamed = partial(naming, f"Reward model {name}", "--reward")
    with blamed():
        model: RewardModel = work.plugins.get("reward_models", name)(context)
    if (note := read_json(work.folder / FIT)) is not None:
        with blamed():
            model.load(work.folder)
        return model, FitReport(**note["fit"]), note["finish_rate"]
    seed_all(work.settings.train.seed, 0)
    with blamed():
        fit = model.fit(snapshot.labels, work.settings.train.seed)
        check_fit(name, fit)
        accuracy = told(fit)
    prompts = [*context.prompts, *context.seed_prompts]
    random.Random(work.settings.train.seed).shuffle(prompts)
    assert context.rollouts is not None
    seed = work.settings.train.seed * 10 + 1
    prompts = at_lengths(context, prompts[:CALIBRATION], random.Random(seed))
    usual = context.rollouts.sample(prompts, context.backbone.reference, seed)
    with blamed():
        model.normalise(usual)
        model.save(work.folder)
    _check_opinions(ShapedReward(name, model, work.plugins, context), usual)
    judged: list[Sample] = []
    if work.begun_from != BASE:
        usual = context.rollouts.sample(prompts, None, seed)
    if work.begun_from != BASE or context.backbone.reference is None:
        judged = snapshot.drafts(BASE, work.sampling)
    limited = [(prompt.max_tokens or context.max_tokens, reply) for prompt, reply in zip(prompts, usual, strict=True)]
    limited += [(work.sampling.limit(reply), reply) for reply in judged]
    ends = finish_rate_at(context.lengths or (context.max_tokens,), limited)
    write_json(work.folder / FIT, {"fit": asdict(fit), "finish_rate": ends})
    work.progress.say(accuracy)
    work.lease.check()
    return model, fit, ends


def _check_opinions(reward: ShapedReward, usual: Sequence[Sample]) -> None:
    """Raise ThumbwiseError if the reward has no score for most of the reference's replies."""
    known = int(np.isfinite(reward.plain(usual).value).sum())
    if 2 * known < len(usual):
        raise ThumbwiseError(
            f"Reward model {reward.name} has a score for only {known} of {len(usual)} usual replies; training needs at "
            f"least half of them: {mend('--reward')}"
        )


def ends_aimed_at(work: Work, context: RunContext, usual: float, stable: Replies) -> float:
    """The target share of rollouts that end by themselves, if the share `usual` of the reference's replies does."""
    chat, lengths = min(work.settings.chat_max_tokens, CHAT_TOKENS), context.lengths or (context.max_tokens,)
    short = sum(length < chat for length in lengths) / len(lengths)
    wanted = ends_wanted(usual, short)
    if work.given.stable != BASE or context.backbone.reference is not None:
        # Stable may end more often than the reference, and the gates compare the candidate with stable.
        # The target is a sixth of their margin below stable's rate; their interval takes most of the margin. With
        # stable's whole rate as the target, one round's luck would be the minimum of the next round.
        wanted = max(wanted, finish_rate(stable.drafts) - work.settings.gates.max_finish_loss / 6)
    whose = "reference" if work.begun_from == BASE else "base"
    work.progress.say(
        f"Of the {whose}'s replies {usual:.0%} end by themselves; of rollouts {wanted:.0%} should ({short:.0%} of "
        "them may not be as long as chat's replies)."
    )
    return wanted

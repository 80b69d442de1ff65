"""What the gates see: candidate and stable on the same held-out prompts, with the same sampling.

Left out: scores of replies at chat length, because votes on drafts say little about those.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from thumbwise.contracts import (
    Evidence,
    FitReport,
    Floats,
    Gate,
    GateReport,
    Prompt,
    RolloutBackend,
    RunContext,
    Sample,
    Scores,
)
from thumbwise.errors import ThumbwiseError
from thumbwise.settings.gates import GateSettings
from thumbwise.training.backbone.backbone import NO_ADAPTER, POLICY
from thumbwise.training.backbone.batches import chunks
from thumbwise.training.data.lengths import at_lengths
from thumbwise.training.evaluation.replies import finish_rate, mean_length, repetition

CHAT_TOKENS = 512
"""The most tokens of a chat reply that the gates look at."""
AS_LONG = 0.75
"""If this share of the judged replies is as long as in chat, no extra replies at chat length are needed."""


def kl_to_reference(context: RunContext, samples: Sequence[Sample], adapter: str) -> float:
    """Mean over replies of `adapter`'s KL from the reference, summed over tokens, at the run's temperature."""
    return kl_between(context, samples, adapter, context.backbone.reference)


def kl_between(context: RunContext, samples: Sequence[Sample], adapter: str, other: str | None) -> float:
    """The same KL, but from adapter `other` (None: the base) instead of the reference."""
    backbone, total = context.backbone, 0.0
    for part in chunks(len(samples), backbone.micro_batch):
        total += float(backbone.beside(backbone.batch(samples[part]), adapter, other, context.temperature).kl.sum())
        backbone.told("replies compared", min(part.stop, len(samples)), len(samples))
    return total / max(1, len(samples))


def kl_of_a_token(evidence: Evidence) -> float:
    """The candidate's KL to the reference in nats a token, because long replies may have more of it."""
    return evidence.kl / max(mean_length(evidence.candidate), 1)


def wins(evidence: Evidence) -> Floats:
    """1 if the candidate's reply scores above stable's, 0 if below, 0.5 if equal or not scored; f[N]."""
    difference = evidence.candidate_scores - evidence.stable_scores
    won: Floats = np.where(np.isnan(difference), 0.5, (np.sign(difference) + 1) / 2)
    return won


@dataclass(frozen=True)
class Replies:
    """What one version said: drafts, and replies as long as in chat."""

    drafts: tuple[Sample, ...]
    chat: tuple[Sample, ...]


@dataclass(frozen=True)
class Interview:
    """Held-out prompts, asked of every version with the same sampling; `longer` samples at chat length."""

    rollouts: RolloutBackend
    longer: RolloutBackend
    drafts: tuple[Prompt, ...]
    chat: tuple[Prompt, ...]
    seed: int

    def ask(self, adapter: str | None) -> Replies:
        """The replies of `adapter` (None: the base), the same each time."""
        drafts = self.rollouts.sample(self.drafts, adapter, self.seed * 10 + 2)
        chat = self.longer.sample(self.chat, adapter, self.seed * 10 + 4) if self.chat else []
        return Replies(tuple(drafts), tuple(chat))


def interview(
    context: RunContext, backend: Callable[[RunContext], RolloutBackend], held_out: tuple[Prompt, ...],
    limits: GateSettings, chat_tokens: int,
) -> Interview:  # fmt: skip
    """Asks each of `held_out` several times at the lengths that people voted at, and some of them again at chat length.

    Chat length is chat's token limit, but at most CHAT_TOKENS, because a gate need not read a novel. The chat questions
    are left out if AS_LONG of the other lengths are already that long. The lengths are drawn once, so that every
    version is asked the same.
    """
    tokens = min(chat_tokens, CHAT_TOKENS)
    drafts = at_lengths(context, held_out * limits.samples, random.Random(f"gates:{context.train.seed}"))
    lengths = context.lengths or (context.max_tokens,)
    longer = sum(length >= tokens for length in lengths) < AS_LONG * len(lengths)
    chat = held_out[: limits.chat_prompts] * limits.chat_samples if longer else ()
    backends = backend(context), backend(replace(context, max_tokens=tokens, lengths=()))
    return Interview(*backends, tuple(drafts), chat, context.train.seed)


def gather_evidence(
    context: RunContext,
    questions: Interview,
    score: Callable[[Sequence[Sample]], Scores],
    fit: FitReport,
    stable: Replies,
    limits: GateSettings,
) -> Evidence:
    """Ask `questions` of the candidate (adapter "policy"), as they were asked of `stable`."""
    found = questions.ask(POLICY)
    candidate, chat, reference = found.drafts, found.chat, context.backbone.reference
    return Evidence(
        rm_accuracy=fit.accuracy,
        rm_votes=fit.n,
        candidate=candidate,
        stable=stable.drafts,
        candidate_scores=score(candidate).value,
        stable_scores=score(stable.drafts).value,
        kl=kl_to_reference(context, candidate, POLICY),
        limits=limits,
        rm_error=fit.error,
        chat=chat,
        stable_chat=stable.chat,
        base_kl=None if reference is NO_ADAPTER else kl_between(context, candidate, POLICY, NO_ADAPTER),
        groups=tuple(prompt.group for prompt in questions.drafts),
        chat_groups=tuple(prompt.group for prompt in questions.chat),
        chat_kl=kl_to_reference(context, chat, POLICY) if chat else None,
        foretold=fit.foretold,
        foretold_votes=fit.foretold_votes,
        foretold_error=fit.foretold_error,
    )


def figures(evidence: Evidence) -> dict[str, Any]:
    """What a candidate's manifest keeps of its evidence. It leaves out what was not measured."""
    found = {
        "rm_accuracy": evidence.rm_accuracy,
        "rm_votes": evidence.rm_votes,
        "reward": float(np.nanmean(evidence.candidate_scores)),
        "stable_reward": float(np.nanmean(evidence.stable_scores)),
        "win_rate_proxy": float(wins(evidence).mean()),
        "kl": evidence.kl,
        "kl_token": kl_of_a_token(evidence),
        "length": mean_length(evidence.candidate),
        "finish_rate": finish_rate(evidence.candidate),
        "stable_finish_rate": finish_rate(evidence.stable),
        "repetition": repetition(evidence.candidate),
        "stable_repetition": repetition(evidence.stable),
    }
    if evidence.foretold is not None:
        found |= {"foretold": evidence.foretold, "foretold_votes": evidence.foretold_votes}
    if evidence.base_kl is not None:
        found["base_kl"] = evidence.base_kl
    if not evidence.chat:
        return found
    if evidence.chat_kl is not None:
        found |= {"chat_kl": evidence.chat_kl, "chat_kl_token": evidence.chat_kl / max(mean_length(evidence.chat), 1)}
    return found | {
        "chat_length": mean_length(evidence.chat),
        "stable_chat_length": mean_length(evidence.stable_chat),
        "chat_finish_rate": finish_rate(evidence.chat),
        "stable_chat_finish_rate": finish_rate(evidence.stable_chat),
        "chat_repetition": repetition(evidence.chat),
        "stable_chat_repetition": repetition(evidence.stable_chat),
    }


def run_gates(gates: Mapping[str, Gate], evidence: Evidence, brought_by: Mapping[str, str]) -> list[GateReport]:
    """Every gate's report. A gate that raises has failed. `brought_by` names each gate's plugin.

    Raises ThumbwiseError if a gate returns no report: then nobody knows whether the policy may take traffic.
    """
    reports = []
    for name, gate in gates.items():
        plugin = f"the plugin {brought_by[name]}" if name in brought_by else "the plugin that brings it"
        try:
            report = gate(evidence)
        except ThumbwiseError as error:
            report = GateReport(name, False, 0.0, 0.0, str(error))
        except Exception as error:
            detail = f"The gate {name} itself failed ({type(error).__name__}: {error}): fix {plugin}."
            report = GateReport(name, False, 0.0, 0.0, detail)
        reports.append(_checked(name, report, plugin))
    if not reports:
        raise ThumbwiseError(
            "No gate is loaded, and nothing is promoted without one: look at `thumbwise plugins list`."
        )
    return reports


def _checked(name: str, report: object, plugin: str) -> GateReport:
    """`report` with plain types, as JSON needs them. Raises ThumbwiseError if it is no report."""
    wrong = f"{report!r:.200}"
    if isinstance(report, GateReport):
        try:
            value, limit = float(report.value), float(report.limit)
        except (TypeError, ValueError, OverflowError):
            value = limit = math.nan
        unknown = math.isnan(value) or math.isnan(limit)
        if isinstance(report.passed, bool | np.bool_) and not (report.passed and unknown):
            return GateReport(str(report.name), bool(report.passed), value, limit, str(report.detail))
    raise ThumbwiseError(
        f"The gate {name} returned {wrong} instead of a GateReport whose `passed` is True or False and whose value and "
        f"limit are numbers: fix {plugin}, then `thumbwise train --resume` continues from here."
    )

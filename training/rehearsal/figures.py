"""A rehearsal's figures: a candidate compared with start by the judge, and its reward model with what it was told.

Everything is measured on replies of the length at which people voted.

Left out: figures by topic.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from thumbwise.contracts import Sample
from thumbwise.training.evaluation.replies import finish_rate, mean_length, repetition
from thumbwise.training.rehearsal.win_rates import Scored, Wanted, best_of, by_prompt, pair_accuracy, win_rate


@dataclass(frozen=True)
class Judged:
    """Replies to the held-out prompts, in the prompts' order, with the judge's scores: one row per prompt."""

    samples: Sequence[Sample]
    scores: Scored


def beside_start(candidate: Judged, start: Judged, wanted: Wanted) -> dict[str, Any]:
    """Win rate, and statistics of the replies; of start as many replies to a prompt as the candidate has."""
    rate = win_rate(candidate.scores, start.scores)
    rows = by_prompt(wanted.start(), start.samples)
    beside = [sample for row in rows for sample in row[: wanted.samples]]
    return {
        "win_rate": rate.rate, "win_rate_low": rate.low, "win_rate_high": rate.high, "n_eval": rate.n,
        "finish_rate": finish_rate(candidate.samples), "start_finish_rate": finish_rate(beside),
        "repetition": repetition(candidate.samples), "start_repetition": repetition(beside),
        "length": mean_length(candidate.samples), "start_length": mean_length(beside),
        "score": mean(candidate.scores), "start_score": mean(start.scores),
    }  # fmt: skip


def best_by_reward(start: Scored, rewards: Scored, wanted: Wanted) -> dict[str, Any]:
    """What picking one of several replies by the reward model would win."""
    best = best_of(start, rewards, wanted.best_of)
    return {
        "best_of_16_win_rate": best.rate, "best_of_16_low": best.low, "best_of_16_high": best.high,
        "best_of_16_draws": best.n,
    }  # fmt: skip


def reward_model(fit: dict[str, Any], wrong: float, start: Scored, rewards: Scored) -> dict[str, Any]:
    """The accuracy that the run gave of its reward model, cleaned of wrong votes, and its accuracy on clean pairs.

    `fit` is the report in the run's fit.json. `wrong` is the share of votes that were flipped. A model that is right on
    a share c of clean votes agrees with c (1 - wrong) + (1 - c) wrong of the noisy ones. That holds for thumbs too,
    where an up and a down of one person are compared, each flipped with that probability, if both are equally common.
    The rarer one of them is, the more the cleaned figure is too near to a half. The clean pairs are of start's replies
    to one prompt, as people saw them and as training samples them.
    """
    clean = pair_accuracy(start, rewards)
    found: dict[str, Any] = {"rm_accuracy": clean.rate, "rm_error": clean.error, "rm_pairs": clean.pairs}
    told, n = float(fit["accuracy"]), int(fit["n"])
    error = math.sqrt(told * (1 - told) / max(n, 1)) if fit["error"] is None else float(fit["error"])
    found |= {"rm_reported": told, "rm_reported_error": error, "rm_votes": n}
    if n and wrong < 0.5:
        cleaned, error = (told - wrong) / (1 - 2 * wrong), error / (1 - 2 * wrong)
        found |= {"rm_cleaned": cleaned, "rm_cleaned_error": error}
        found |= {"rm_off": cleaned - clean.rate, "rm_off_error": math.hypot(error, clean.error)}
    return found | {"rm_by": fit["details"].get("by", [])}


def mean(rows: Scored) -> float:
    """Mean over prompts, each with the mean of its replies: prompts have different numbers of replies."""
    return sum(sum(row) / len(row) for row in rows) / len(rows)


def rounded(figures: dict[str, Any]) -> dict[str, Any]:
    """Four digits after the point. None for what could not be measured, because JSON has no NaN."""

    def short(value: Any) -> Any:
        if not isinstance(value, float):
            return value
        return round(value, 4) if math.isfinite(value) else None

    return {name: short(value) for name, value in figures.items()}

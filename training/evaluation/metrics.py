"""The metrics that policy algorithms log in every iteration: meaning, mean over what, healthy range.

A metric over tokens is a mean over the response tokens' mask, so pads never count. Limits are for spotting trouble, not
for judging a candidate (gates do that). Each limit has a sentence on what is probably wrong and what to change.
`thumbwise.training.evaluation.diagnostics` compares a run with the limits.

Left out: limits that depend on the model's size.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from thumbwise.home import write_durably


@dataclass(frozen=True)
class Watch:
    """Limits of a metric's mean over a run's last quarter, and a diagnosis for either side.

    `of` says what is limited: the mean itself, its change from the first quarter, or its ratio to the first quarter.
    """

    of: Literal["value", "change", "share"]
    low: float = -math.inf
    high: float = math.inf
    below: str = ""
    above: str = ""

    @property
    def range(self) -> str:
        """The limits in words."""
        if self.low == self.high:
            text = f"{self.low:g}"
        elif math.isinf(self.high):
            text = f"at least {self.low:g}"
        else:
            text = f"at most {self.high:g}" if math.isinf(self.low) else f"{self.low:g} to {self.high:g}"
        return {"value": "{}", "change": "change {}", "share": "{} times the start"}[self.of].format(text)


@dataclass(frozen=True)
class Metric:
    """`meaning` holds the formula; `over` is what it is a mean over; `trend` is what a good run looks like."""

    meaning: str
    over: str
    trend: str
    watch: Watch | None = None

    @property
    def healthy(self) -> str:
        """Trend and limits in words."""
        return "; ".join(text for text in (self.trend, self.watch.range if self.watch else "") if text)


_MORE_VOTES = "The reward model is being exploited: collect more votes, or lower train.kl_target."
_TOO_FAST = "Updates are too large: lower train.learning_rate."

GLOSSARY: dict[str, Metric] = {
    "reward": Metric(
        "score after shaping, clipped, without the missing-end penalty; without shaping the reference has mean 0 and "
        "deviation 1, minus train.std_penalty deviations of the heads",
        "replies", "rises",
        Watch("change", low=0.2, below="The policy did not learn what the reward model likes: raise "
              "train.iterations or train.learning_rate. If kl rose nevertheless, it only drifted."),
    ),
    "reward_std": Metric(
        "standard deviation of those scores", "replies", "near 1",
        Watch("value", low=0.3, below="The replies have become similar to each other: raise train.kl_coefficient."),
    ),
    "best_reward": Metric("score of the replies that were kept (best_of_n)", "replies", "above reward by reward_std"),
    "kl": Metric(
        "KL of the policy to the reference over all next tokens, summed over a reply's tokens", "replies",
        "rises",
    ),
    "kl_token": Metric(
        "that KL per token; the learning rate is steered by it", "tokens", "rises to train.kl_target",
        Watch("value", 0.007, 0.23, "The policy hardly changed: raise train.learning_rate or train.iterations.",
              "The policy is far from the reference: raise train.kl_coefficient or lower train.learning_rate."),
    ),
    "ratio": Metric(
        "policy / old policy", "tokens", "1",
        Watch("value", 0.98, 1.02, "Old and new log-probabilities do not match.", _TOO_FAST),
    ),
    "ratio_max": Metric("the largest of those ratios", "run", "", Watch("value", high=10.0, above=_TOO_FAST)),
    "clip_fraction": Metric(
        "share of tokens whose ratio is outside the clip range (rloo: of "
        "replies where the clip is active)", "tokens", "",
        Watch("value", high=0.3, above=_TOO_FAST)
    ),
    "policy_loss": Metric(
        "max(-A r, -A clip(r, 1 - c, 1 + c)), A: advantage, r: ratio, c: train.clip (rloo: of a reply)", "tokens",
        "near 0, mostly negative",
    ),
    "dpo_loss": Metric(
        "-log sigmoid(beta (log ratio of the chosen reply - log ratio of the rejected one))", "pairs", "falls",
    ),
    "dpo_accuracy": Metric("share of pairs where that difference is positive, before the update", "pairs", "above 0.5"),
    "kto_loss": Metric(
        "1 - sigmoid(beta (log ratio - kl)) of desirable replies, 1 - "
        "sigmoid(beta (kl - log ratio)) of the others", "replies", "falls"
    ),
    "desirable": Metric("share of replies that score above the reference's mean (kto)", "replies", "rises"),
    "sft_loss": Metric("-log policy of the kept replies (best_of_n)", "tokens", "falls slowly, like entropy"),
    "ptx_loss": Metric("-log policy of the pretraining texts at temperature 1", "tokens", "steady"),
    "ptx_gamma": Metric("weight of the pretraining gradient relative to PPO's", "updates", "steady"),
    "value_loss": Metric("half of the clipped squared error of the values", "tokens", "falls"),
    "explained_variance": Metric(
        "1 - Var(rewards to come - value) / Var(rewards to come), before the update", "tokens", "rises",
        Watch("value", low=0.0, below="The value function is worse than a constant, so advantages are noise: raise "
              "train.value_learning_rate."),
    ),
    "advantage_std": Metric("standard deviation of the advantages, before whitening", "tokens", "0.2 to 2"),
    "entropy": Metric(
        "entropy of the next-token distribution, in nats", "tokens", "falls slowly",
        Watch("share", 0.5, 1.5, "The policy's entropy collapses: raise train.kl_coefficient.",
              "The policy is becoming random: lower train.learning_rate."),
    ),
    "length": Metric(
        "number of response tokens", "replies", "steady",
        Watch("share", 0.6, 1.6, "Replies are getting short: do people want that? " + _MORE_VOTES,
              "Replies are getting long: do people want that? " + _MORE_VOTES),
    ),
    "finish_rate": Metric(
        "share of replies that ended by themselves", "replies", "steady or rising",
        Watch("change", low=-0.1, below="Fewer replies end by themselves, although the penalty for that rises "
              "(end_penalty). Do people want that? Raise max_tokens, so that people see whole replies."),
    ),
    "end_penalty": Metric(
        "penalty of a reply that was cut off; steers the finish rate to "
        "somewhat above the reference's, not far below stable's",
        "run", "settles",
    ),
    "repetition": Metric(
        "share of all 4-grams that recur within their reply", "replies", "steady",
        Watch("change", high=0.05, above=_MORE_VOTES),
    ),
    "rollout_kl": Metric(
        "KL of the sampling policy to the trained policy, estimated from the sampled tokens", "tokens", "",
        Watch("value", high=0.01, above="The sampler and the trainer do not hold the same policy: try train.dtype "
              "float32, or another rollout backend."),
    ),
    "abstained": Metric(
        "number of replies without a score", "run", "",
        Watch("value", high=0.0, above="A reward plugin gave no score: look at `thumbwise plugins list`."),
    ),
    "policy_grad_norm": Metric(
        "norm of the policy's gradient, before clipping", "updates", "",
        Watch("value", high=10.0, above=_TOO_FAST),
    ),
    "value_grad_norm": Metric("norm of the value function's gradient, before clipping", "updates", "0.05 to 20"),
    "learning_rate": Metric(
        "learning rate of the policy in this iteration", "run", "0.02 to 4 times the setting, falls to a tenth",
    ),
    "seconds": Metric("wall time of the iteration", "run", "steady"),
}  # fmt: skip

# Metrics that a whole run has once, at its end: they are in the health panel, not in the metrics file.
AT_THE_END: dict[str, Metric] = {
    "rm_accuracy": Metric(
        "accuracy of the reward model in cross-validation; the gate `rm_accuracy` tests the prequential accuracy if "
        "there is one", "votes", "",
        Watch("value", low=0.55, below="The reward model is little better than chance: collect more votes before "
              "you trust this policy."),
    ),
    "proxy_excess": Metric(
        "win rate over stable by the reward model, minus rm_accuracy", "replies", "",
        Watch("value", high=0.25, above="The reward model likes the candidate more than its own accuracy allows: ask "
              "people to compare the two versions before you trust it."),
    ),
    "doubted": Metric(
        "people whose votes have less than a quarter of their weight, because "
        "others' votes contradict them", "people", "",
        Watch("value", high=0.0, above="Somebody votes against the others: look at what they vote for."),
    ),
}  # fmt: skip


class MetricsLog:
    """metrics.jsonl in a run's folder: one JSON object an iteration."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "metrics.jsonl"

    def cut(self, iterations: int) -> None:
        """Keep only the lines of the iterations below `iterations`: a resumed run writes the others again."""
        if self.path.exists():
            kept = [row for row in self.rows() if row["iteration"] < iterations]
            write_durably(self.path, "".join(json.dumps(row) + "\n" for row in kept).encode())

    def write(self, iteration: int, metrics: Mapping[str, float]) -> None:
        """Append one line, with the iteration's number."""
        row = {"iteration": iteration, **{key: float(f"{value:.6g}") for key, value in metrics.items()}}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def rows(self) -> list[dict[str, Any]]:
        """Every whole line so far; none if there is no file. A power cut may leave half a line at the end."""
        found: list[dict[str, Any]] = []
        for line in self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else ():
            with suppress(ValueError):
                found.append(json.loads(line))
        return found


def glossary_table() -> str:
    """The glossary as a Markdown table, as the room's README.md shows it."""
    rows = [
        f"| `{name}` | {metric.meaning} | {metric.over} | {metric.healthy} |"
        for name, metric in (GLOSSARY | AT_THE_END).items()
    ]
    return "\n".join(["| metric | what it is | mean over | healthy |", "|---|---|---|---|", *rows])

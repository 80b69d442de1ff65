"""What policy algorithms log every iteration: each metric's meaning and healthy range, and the file they go to.

Means are over the response tokens' mask where a metric is per token, so pads never count.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

GLOSSARY: dict[str, tuple[str, str]] = {
    "reward": ("mean score of the replies after shaping (the reference has mean 0, deviation 1)", "rises"),
    "reward_std": ("deviation of those scores", "0.5 to 1.5; near 0 means that the replies have become alike"),
    "best_reward": ("mean score of the replies that were kept (best_of_n)", "above reward, by about reward_std"),
    "kl": (
        "mean over replies of the sum over tokens of log(policy / reference)",
        "rises to kl_target, under kl_budget",
    ),
    "kl_coefficient": ("reward given up per nat; steered so that kl meets kl_target", "0.01 to 0.5"),
    "ratio": ("mean of policy / old policy in the update", "0.99 to 1.01"),
    "ratio_max": ("largest of those ratios", "under 10"),
    "clip_fraction": ("share of tokens whose ratio was clipped", "0.01 to 0.3"),
    "policy_loss": ("mean of max(-A r, -A clip(r, 1 - c, 1 + c))", "near 0, mostly negative"),
    "sft_loss": ("mean negative log-likelihood per token of the kept replies (best_of_n)", "falls slowly, as entropy"),
    "value_loss": ("mean clipped squared error of the values, halved", "falls"),
    "explained_variance": ("1 - Var(return - value) / Var(return), before the update", "0.2 to 1; under 0 hurts"),
    "advantage_std": ("deviation of the advantages before they are whitened", "0.2 to 2"),
    "entropy": ("mean entropy of the next-token distribution, in nats", "falls slowly; not to 0"),
    "length": ("mean number of response tokens", "steady"),
    "finish_rate": ("share of replies that ended by themselves", "steady or rising"),
    "repetition": ("share of 4-grams that recur within a reply", "under 0.1"),
    "rollout_gap": ("mean |trainer - rollout log-probability| per token", "under 0.1 in bfloat16"),
    "abstained": ("replies that the reward had no opinion on", "0"),
    "policy_grad_norm": ("norm of the policy's gradient before it is scaled down", "0.05 to 5"),
    "value_grad_norm": ("norm of the value function's gradient before it is scaled down", "0.05 to 20"),
    "learning_rate": ("of the policy in this iteration", "the setting, after warm-up"),
    "seconds": ("wall time of the iteration", "steady"),
}


class MetricsLog:
    """metrics.jsonl: one JSON object an iteration."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def cut(self, iterations: int) -> None:
        """Keep the lines of the first `iterations` only: a resumed run writes the others again."""
        if self.path.exists():
            lines = self.path.read_text(encoding="utf-8").split("\n")[:iterations]
            self.path.write_text("".join(f"{line}\n" for line in lines if line), encoding="utf-8")

    def write(self, iteration: int, metrics: Mapping[str, float]) -> None:
        """Append one line, with the iteration's number."""
        row = {"iteration": iteration, **{key: round(float(value), 6) for key, value in metrics.items()}}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def glossary_table() -> str:
    """The glossary as a Markdown table, as training/README.md shows it."""
    rows = [f"| `{name}` | {meaning} | {healthy} |" for name, (meaning, healthy) in GLOSSARY.items()]
    return "\n".join(["| metric | what it is | healthy |", "|---|---|---|", *rows])

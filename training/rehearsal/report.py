"""What a rehearsal leaves to read: report.md with a table and sample replies, and curves.png.

The sample replies are the first ones to twenty evenly spaced held-out prompts, whatever they say.

Left out: HTML.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from thumbwise.contracts import Sample
from thumbwise.training.evaluation.metrics import MetricsLog
from thumbwise.training.rehearsal.measure import kept
from thumbwise.training.rehearsal.raters import mean_scores
from thumbwise.training.rehearsal.win_rates import Wanted, by_prompt
from thumbwise.training.run.folders import read_json

SAMPLES = 20
ROWS = {
    "votes": "votes", "tokens": "tokens of a judged reply, at most",
    "rm_reported": "reward model by its own report, on noisy votes", "rm_cleaned": "the same, cleaned of the noise",
    "rm_accuracy": "reward model on clean pairs of start's replies", "win_rate": "win rate over start",
    "best_of_16_win_rate": "best of 16 by the same reward model", "begun_from": "begun from",
    "kl": "KL to the base, nats a reply", "kl_token": "the same, nats a token",
    "kl_begun": "KL to what it began from, nats a reply", "kl_begun_token": "the same, nats a token",
    "length": "tokens of a reply, mean", "start_length": "the same, start",
    "score": "judge's mean score", "start_score": "judge's mean score, start",
    "finish_rate": "replies that end by themselves", "start_finish_rate": "the same, start",
    "repetition": "recurring 4-grams", "start_repetition": "recurring 4-grams, start",
    "promoted": "promoted", "train_seconds": "training, seconds",
}  # fmt: skip

ERRORS = {"rm_reported": "rm_reported_error", "rm_cleaned": "rm_cleaned_error", "rm_accuracy": "rm_error"}


def table(rounds: Sequence[dict[str, Any]]) -> str:
    """A Markdown table, one column a round."""
    lines = ["| | " + " | ".join(f"round {row['round']}" for row in rounds) + " |", "|---|" + "---|" * len(rounds)]
    for key, label in ROWS.items():
        lines.append(f"| {label} | " + " | ".join(_cell(key, row) for row in rounds) + " |")
    return "\n".join(lines)


def _cell(key: str, row: dict[str, Any]) -> str:
    value = row.get(key)
    if value is None:
        return "not measured"
    if key == "win_rate":
        return f"{value:.3f} ({row['win_rate_low']:.3f} to {row['win_rate_high']:.3f}, {row['n_eval']} replies)"
    if key == "best_of_16_win_rate":
        return f"{value:.3f} ({row['best_of_16_low']:.3f} to {row['best_of_16_high']:.3f})"
    if key in ERRORS:
        return f"{value:.3f} (standard error {row[ERRORS[key]]:.3f})"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def write_report(folder: Path, report: dict[str, Any], wanted: Wanted) -> Path:
    """Write report.md and curves.png into the rehearsal's folder. Returns the path of report.md."""
    plan, swap = read_json(folder / "plan.json"), report["swap"]
    voting = plan["voting"]
    parts = [
        f"# Rehearsal with the judge {plan['judge']}",
        f"{voting['votes']} votes a round of kind {voting['kind']} by {voting['raters']} raters, of whom "
        f"{voting['adversarial']:.0%} vote against the judge; {voting['noise']:.0%} of the comparisons are flipped. "
        f"Drafts have at most {plan['max_tokens']} tokens, replies in chat, on which thumbs are given, "
        f"{plan['chat_tokens']}. Algorithm {plan['algorithm']}, seed {voting['seed']}, {plan['prompts']} prompts to "
        f"vote on, {plan['held_out']} held out. It took {report['seconds'] / 60:.1f} minutes.",
        table(report["rounds"]),
        *(f"Round {row['round']} was not promoted: {row['reason']}" for row in report["rounds"] if not row["promoted"]),
        f"Across the swaps {swap['streams']} replies or more were open; {swap['dropped']} were dropped, "
        f"{swap['mixed']} mixed two versions.",
        "![reward and KL by iteration, the judge's score by vote](curves.png)",
    ]
    last = folder / f"round-{len(report['rounds'])}"
    parts += _samples(kept(folder / "start-replies.jsonl"), kept(last / "replies.jsonl"), wanted)
    path = folder / "report.md"
    path.write_text("\n\n".join(parts) + "\n")
    draw_curves(folder, report["rounds"])
    return path


def _samples(start: list[Sample], replies: list[Sample], wanted: Wanted) -> list[str]:
    """Replies before and after, on evenly spaced prompts."""
    before, after = by_prompt(wanted.start(), start), by_prompt([wanted.samples] * wanted.prompts, replies)
    count = min(SAMPLES, wanted.prompts)
    parts = ["## Replies before and after"]
    for number in range(count):
        row = number * wanted.prompts // count
        question = before[row][0].prompt[-1]["content"]
        said = [
            f"- {name}: {' '.join(rows[row][0].response.split())}"
            for name, rows in (("before", before), ("after", after))
        ]
        parts.append(f"**{' '.join(question.split())}**\n\n" + "\n".join(said))
    return parts


def draw_curves(folder: Path, rounds: Sequence[dict[str, Any]]) -> None:
    """curves.png: reward and KL of each iteration, and the judge's score of what raters saw (mean of 20 votes)."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.6), layout="constrained")
    reward, kl, score = figure.subplots(1, 3)
    for row in rounds:
        name, own = f"round {row['round']}", folder / f"round-{row['round']}"
        metrics = MetricsLog(folder / "home" / "runs" / read_json(own / "train.json")["run_id"]).rows()
        reward.plot([m["reward"] for m in metrics], label=name)
        kl.plot([m["kl"] for m in metrics], label=name)
        scores = mean_scores(own / "votes.jsonl")
        windows = [scores[at : at + 20] for at in range(0, len(scores), 20)]
        score.plot([20 * n for n in range(len(windows))], [sum(w) / len(w) for w in windows], label=name)
    for axes, title, x in (
        (reward, "reward", "iteration"), (kl, "KL, nats a reply", "iteration"), (score, "judge's score", "vote"),
    ):  # fmt: skip
        axes.set(title=title, xlabel=x)
        axes.legend()
    figure.savefig(folder / "curves.png", dpi=110)

"""Which algorithm a number of votes can carry: the data tiers of `train --algorithm auto`.

Under about 2,000 comparisons a reward model is weak (Gao et al. 2022, arXiv 2210.10760, section 3.3), and best-of-n
gets more out of a reward model for each nat of KL than reinforcement learning does (same paper). The limits are
settings, because they hang on how noisy people are. Left out: tiers above PPO.
"""

from __future__ import annotations

from collections.abc import Mapping

from thumbwise.errors import ThumbwiseError
from thumbwise.settings import Settings
from thumbwise.training.config import TrainSettings
from thumbwise.training.data import Snapshot

AUTO = "auto"
NAMED = 5
"""People who are named in a sentence."""


def too_little(snapshot: Snapshot, train: TrainSettings) -> str:
    """Why there is too little to train on, or nothing."""
    votes = snapshot.telling(train)
    if votes >= train.min_votes:
        return ""
    said = (
        f"There are {votes} votes that say which reply is better, and training begins at {train.min_votes} "
        "(setting train.min_votes): collect more votes."
    )
    if not snapshot.aside:
        return said
    return (
        f"{said} {told_aside(snapshot.aside)} Get other people to vote, give a program that you trust a key "
        "(`thumbwise keys create`), or set train.rm_rater_cap to 1, which hears all votes."
    )


def told_aside(aside: Mapping[str, int]) -> str:
    """Whose votes were set aside, in a sentence."""
    return f"Votes set aside, over one person's part: {_whose(aside)}."


def told_untaught(corrections: int) -> str:
    """How many corrected replies were set aside, in a sentence."""
    return f"Corrected replies set aside, over one person's part: {corrections}."


def told_doubted(doubted: Mapping[str, int]) -> str:
    """Whose votes the reward model doubts, in a sentence."""
    return f"Votes that hardly count, for those of others contradict them: {_whose(doubted)}."


def _whose(votes: Mapping[str, int]) -> str:
    whose = ", ".join(f"{count} of {person}" for person, count in list(votes.items())[:NAMED])
    return f"{whose} and of {len(votes) - NAMED} more" if len(votes) > NAMED else whose


def check_rank(settings: Settings) -> None:
    """Raise ThumbwiseError where the assistant would refuse the adapter after the whole round."""
    rank, most = settings.train.lora_rank, settings.engine.max_lora_rank
    if rank > most:
        raise ThumbwiseError(
            f"Adapters of rank {rank} (train.lora_rank) cannot be served, for vLLM takes {most} at most "
            "(engine.max_lora_rank): lower the one, or raise the other, for the assistant too, and restart it."
        )


def choose(asked: str, snapshot: Snapshot, train: TrainSettings) -> tuple[str, str]:
    """The algorithm to train with, and why in a sentence."""
    votes = snapshot.telling(train)
    if asked != AUTO:
        return asked, f"{asked} was asked for by name, with {votes} votes."
    if votes < train.ppo_votes:
        return "best_of_n", (
            f"{votes} votes are in the tier of best_of_n: PPO begins at {train.ppo_votes} (setting train.ppo_votes)."
        )
    return "ppo", f"{votes} votes are in the tier of PPO, which begins at {train.ppo_votes} (setting train.ppo_votes)."

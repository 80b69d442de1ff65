"""Whether there are votes enough to train on, with which algorithm, and what a run says of them in sentences.

`auto` is PPO, however few votes there are: on the same 300 votes it won 70.3% over start, best-of-n fine-tuning 53.6%
(training/README.md). Left out: an algorithm for more votes than anybody has given yet.
"""

from __future__ import annotations

from collections.abc import Mapping

from thumbwise.errors import ThumbwiseError
from thumbwise.settings import Settings
from thumbwise.training.config import TrainSettings
from thumbwise.training.data import Snapshot

AUTO, BEST = "auto", "ppo"
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


def choose(asked: str, votes: int) -> tuple[str, str]:
    """The algorithm to train with, and in a sentence what is trained on `votes` that tell."""
    name = BEST if asked == AUTO else asked
    return name, f"{votes} votes say which reply is better: enough for {name} to learn from."

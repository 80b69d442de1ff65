"""Are there enough votes to train, with which algorithm, and the sentences about votes that do not count.

`auto` is PPO, however few votes there are: on the same 300 votes PPO won 70.3% over start, best-of-n fine-tuning 53.6%
(training/README.md).

Left out: an algorithm for more votes than anybody has given yet.
"""

from __future__ import annotations

from collections.abc import Mapping

from thumbwise.errors import ThumbwiseError
from thumbwise.settings import Settings
from thumbwise.settings.training import TrainSettings
from thumbwise.training.data.snapshot import Snapshot
from thumbwise.training.data.votes import Sampling

AUTO, DEFAULT_ALGORITHM = "auto", "ppo"
NAMED = 5
"""People who are named in a sentence."""


def too_few_votes(snapshot: Snapshot, train: TrainSettings, sampling: Sampling) -> str:
    """A sentence if there are too few votes to train on; else an empty one."""
    votes = snapshot.telling(train, sampling)
    if votes >= train.min_votes:
        return ""
    otherwise = snapshot.otherwise(train, sampling)
    of = "on replies sampled as training samples " if any(otherwise) else ""
    said = (
        f"There are {votes} votes {of}that say which reply is better, and training begins at {train.min_votes} "
        "(setting train.min_votes): collect more votes."
    )
    if any(otherwise):
        said += f" {other_votes_sentence(otherwise, sampling)}"
    if not snapshot.aside:
        return said
    return (
        f"{said} {set_aside_sentence(snapshot.aside)} Get other people to vote, give a program that you trust a key "
        "(`thumbwise keys create`), or set train.rm_rater_cap to 1, which counts all votes."
    )


def other_votes_sentence(otherwise: tuple[int, int], sampling: Sampling) -> str:
    """How many votes are on replies that were sampled differently from the run's, and what to do, in sentences."""
    settings, too_long = otherwise
    said = []
    if settings:
        said.append(
            f"Votes on replies sampled with another temperature than {sampling.temperature:g}, with top_p or stop: "
            f"{settings}. Training uses them only if they help; they do not count for train.min_votes. Leave these "
            "fields out of programs' requests, or set temperature to theirs."
        )
    if too_long:
        said.append(
            f"Votes on replies of more than {sampling.longest} tokens (train.max_reply_tokens): {too_long}. "
            "Training uses them only if they help; they do not count for train.min_votes. Raise the setting: training "
            "then samples longer replies."
        )
    return " ".join(said)


def set_aside_sentence(aside: Mapping[str, int]) -> str:
    """Whose votes were set aside, in a sentence."""
    return f"Votes set aside, over one person's part: {_whose(aside)}."


def corrections_aside_sentence(corrections: int) -> str:
    """How many corrected replies were set aside, in a sentence."""
    return f"Corrected replies set aside, over one person's part: {corrections}."


def doubted_sentence(doubted: Mapping[str, int]) -> str:
    """Whose votes the reward model doubts, in a sentence."""
    return f"These votes hardly count, because other people's votes contradict them: {_whose(doubted)}."


def _whose(votes: Mapping[str, int]) -> str:
    whose = ", ".join(f"{count} of {person}" for person, count in list(votes.items())[:NAMED])
    return f"{whose} and of {len(votes) - NAMED} more" if len(votes) > NAMED else whose


def check_rank(settings: Settings) -> None:
    """Raise ThumbwiseError if the assistant would refuse the adapter after the whole round."""
    rank, most = settings.train.lora_rank, settings.engine.max_lora_rank
    if rank > most:
        raise ThumbwiseError(
            f"Adapters of rank {rank} (train.lora_rank) cannot be served, because vLLM takes at most {most} "
            "(engine.max_lora_rank): lower the first, or raise the second, also for the assistant, and restart it."
        )


def choose_algorithm(asked: str, votes: int) -> tuple[str, str]:
    """The algorithm to train with, and a sentence about what it learns from; `votes` is the number of telling votes."""
    name = DEFAULT_ALGORITHM if asked == AUTO else asked
    return name, f"{votes} votes say which reply is better: enough for {name} to learn from."

"""The built-in gates: is the reward model better than chance, the candidate better than stable, and sane?

All of them must pass before a version takes traffic. They see votes, the reward model and samples. Left
out: people's own verdict on the candidate (side-by-side votes after a canary), which is the only real one;
the win rate here is a proxy by the same reward model that the policy was trained on.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from thumbwise import hookimpl
from thumbwise.contracts import Evidence, GateReport, Register, Sample
from thumbwise.training.evaluate import kl_of_a_token, wins
from thumbwise.training.intervals import clustered_mean
from thumbwise.training.replies import finish_rate, mean_length, repetition


def rm_accuracy(evidence: Evidence) -> GateReport:
    """Cross-validated accuracy on untied votes, folds by prompt, surely above chance."""
    limits, share, votes = evidence.limits, evidence.rm_accuracy, evidence.rm_votes
    error = evidence.rm_error if evidence.rm_error is not None else math.sqrt(share * (1 - share) / max(1, votes))
    low = share - limits.standard_errors * error if votes else 0.0
    detail = (
        f"The reward model agrees with {share:.1%} of {votes} votes it had not seen (every pair of a ranking is one), "
        f"at least {low:.1%} with {limits.standard_errors} standard errors taken off; over {limits.min_accuracy:.0%} "
        "is needed."
        if votes
        else "No vote could be held against a reward model that had not seen its conversation: collect votes in at "
        "least two conversations."
    )
    return GateReport("rm_accuracy", low > limits.min_accuracy, low, limits.min_accuracy, detail)


def win_rate(evidence: Evidence) -> GateReport:
    """Win over stable on held-out prompts, ties half, by the reward model: a proxy for people.

    Several replies to one prompt are not independent, so the standard error is over prompts.
    """
    limits, won = evidence.limits, wins(evidence)
    prompts = [repr(sample.prompt) for sample in evidence.candidate]
    share, error = clustered_mean(won.tolist(), prompts) if prompts else (0.0, 0.5)
    low = share - limits.standard_errors * error
    detail = (
        f"By the reward model (a proxy for people), the candidate wins {share:.1%} of {len(won)} replies to "
        f"{len(set(prompts))} held-out prompts over stable, at least {low:.1%} with {limits.standard_errors} standard "
        f"errors taken off; over {limits.min_win_rate:.0%} is needed."
    )
    return GateReport("win_rate_proxy", low > limits.min_win_rate, low, limits.min_win_rate, detail)


def kl(evidence: Evidence) -> GateReport:
    """Not too far from the reference."""
    limit, nats = evidence.limits.max_kl, kl_of_a_token(evidence)
    detail = (
        f"The candidate is {nats:.2f} nats a token ({evidence.kl:.1f} a reply) from the reference; at most {limit:g} "
        "a token are allowed."
    )
    return GateReport("kl", nats <= limit, nats, limit, detail)


def base_kl(evidence: Evidence) -> GateReport:
    """Not too far from the base either: many rounds, or a few people's corrections, must not lead away from it.

    Passes where the base is the reference: the round did not begin from stable, and there was no SFT.
    """
    limit = evidence.limits.max_base_kl
    if evidence.base_kl is None:
        return GateReport("base_kl", True, 0.0, limit, "The reference is the base.")
    nats = evidence.base_kl / max(mean_length(evidence.candidate), 1)
    detail = (
        f"With what it began from, the candidate is {nats:.2f} nats a token from the base; at most {limit:g} are "
        "allowed. Raise gates.max_base_kl, or lead less far: set train.begin to base, or train.sft_epochs lower."
    )
    return GateReport("base_kl", nats <= limit, nats, limit, detail)


def length(evidence: Evidence) -> GateReport:
    """Replies neither collapse nor swell (the commonest way to please a reward model)."""
    limits = evidence.limits
    share = mean_length(evidence.candidate) / max(mean_length(evidence.stable), 1e-9)
    limit = limits.min_length if share < limits.min_length else limits.max_length
    detail = (
        f"Replies are {share:.2f} times as long as stable's; {limits.min_length:g} to {limits.max_length:g} is allowed."
    )
    return GateReport("length", limits.min_length <= share <= limits.max_length, share, limit, detail)


def finish(evidence: Evidence) -> GateReport:
    """Replies still end by themselves."""
    return _ends("finish_rate", "replies", evidence.candidate, evidence.stable, evidence.limits.max_finish_loss)


def chat_finish(evidence: Evidence) -> GateReport:
    """Chat replies do too: training sees a draft's length, and nothing holds a policy to what it said after that.

    Passes where none was asked for at that length.
    """
    return _ends(
        "chat_finish_rate", "chat replies", evidence.chat, evidence.stable_chat, evidence.limits.max_chat_finish_loss
    )


def _ends(name: str, what: str, candidate: Sequence[Sample], stable: Sequence[Sample], margin: float) -> GateReport:
    rate, limit = finish_rate(candidate), finish_rate(stable) - margin
    detail = (
        f"{rate:.0%} of {len(candidate)} {what} end by themselves; at least {max(limit, 0):.0%} is needed (stable's "
        "rate less a margin)."
    )
    return GateReport(name, rate >= limit, rate, limit, detail)


def recurrence(evidence: Evidence) -> GateReport:
    """Replies do not go round in circles."""
    rate = repetition(evidence.candidate)
    limit = repetition(evidence.stable) + evidence.limits.max_repetition_gain
    detail = f"{rate:.1%} of the 4-grams recur within a reply; at most {limit:.1%} is allowed (stable's and a margin)."
    return GateReport("repetition", rate <= limit, rate, limit, detail)


@hookimpl
def register_gates(register: Register) -> None:
    """All eight."""
    register("rm_accuracy", rm_accuracy)
    register("win_rate_proxy", win_rate)
    register("kl", kl)
    register("base_kl", base_kl)
    register("length", length)
    register("finish_rate", finish)
    register("chat_finish_rate", chat_finish)
    register("repetition", recurrence)

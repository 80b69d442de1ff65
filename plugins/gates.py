"""The built-in gates: is the reward model better than chance, is the candidate better than stable, and is it sane?

All of them must pass before a version takes traffic. They see votes, the reward model and samples. A gate passes if a
confidence limit is within the gate's limit; training/evaluation/README.md explains the level.

Left out: people's own verdict on the candidate (side-by-side votes after a canary), which is the only real one. The win
rate here is a proxy: it is by the same reward model that the policy was trained on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from thumbwise import hookimpl
from thumbwise.contracts import Evidence, GateReport, Register, Sample
from thumbwise.settings.gates import GateSettings
from thumbwise.training.evaluation.evaluate import kl_of_a_token, wins
from thumbwise.training.evaluation.intervals import Array, clustered_error, clustered_mean, ever, once, ratio
from thumbwise.training.evaluation.replies import grams, mean_length
from thumbwise.training.evaluation.selection import TRIES

MOST = 1000.0
"""A ratio to stable's length above which the exact ratio does not matter."""


def rm_accuracy(evidence: Evidence) -> GateReport:
    """The reward model predicts votes better than chance, at a level that holds for all rounds of a home together.

    The gate tests the prequential accuracy (`Evidence.foretold`) if the reward model gives one, and else the accuracy
    in cross-validation. The error of the latter is up to sqrt(2) times what its votes say, because what two votes have
    in common counts in the fold of each.
    """
    limits = evidence.limits
    if evidence.foretold is not None:
        how = "each by a model of the votes before it"
        share, votes = evidence.foretold, evidence.foretold_votes
        error: float | None = evidence.foretold_error
    else:
        how = "in cross-validation"
        share, votes, error = evidence.rm_accuracy, evidence.rm_votes, evidence.rm_error
    if not votes:
        detail = (
            "No vote could be compared with a reward model that had not seen its conversation: collect votes in more "
            "conversations."
        )
        return GateReport("rm_accuracy", not limits.min_accuracy, 0.0, limits.min_accuracy, detail)
    coins = 0.5 / math.sqrt(votes)
    error = coins if error is None else max(error, coins / 2)  # a few votes, all predicted rightly, prove nothing
    error *= 1 if evidence.foretold is not None else math.sqrt(2)
    low = max(share - ever(limits.level, min(0.25 / error**2, votes)) * error, 0.0)
    detail = (
        f"The reward model predicted {share:.1%} of {votes} votes, {how} (each pair of a ranking is a vote). Lower "
        f"confidence limit: {low:.1%} (level {limits.level:g} over the life of a home); it must be above "
        f"{limits.min_accuracy:.0%}."
    )
    passed = low > limits.min_accuracy or not limits.min_accuracy
    if not passed and share > limits.min_accuracy:
        detail += " More votes narrow the interval."
    return GateReport("rm_accuracy", passed, low, limits.min_accuracy, detail)


def win_rate(evidence: Evidence) -> GateReport:
    """Win rate over stable on held-out prompts by the reward model, a proxy for people; ties count half.

    Replies in one conversation are not independent, so the error is over conversations. All policies of a round that
    the gates may judge share the level.
    """
    limits, won = evidence.limits, wins(evidence)
    groups = _groups(evidence.groups, evidence.candidate)
    share, error = clustered_mean(won.tolist(), groups) if groups else (0.0, 0.5)
    low = max(share - once(limits.level / TRIES) * error, 0.0)
    detail = (
        f"By the reward model (a proxy for people), the candidate wins {share:.1%} of {len(won)} held-out replies in "
        f"{len(set(groups))} conversations over stable. Lower confidence limit: {low:.1%} (level {limits.level:g} over "
        f"the {TRIES} policies that a round may try); it must be above {limits.min_win_rate:.0%}."
    )
    passed = low > limits.min_win_rate or not limits.min_win_rate
    return GateReport("win_rate_proxy", passed, low, limits.min_win_rate, detail)


def kl(evidence: Evidence) -> GateReport:
    """Not too far from the reference."""
    return _near("kl", "The candidate", kl_of_a_token(evidence), evidence.kl, evidence.limits.max_kl)


def chat_kl(evidence: Evidence) -> GateReport:
    """The same for long chat replies: training may not have seen how they end."""
    nats, limit = evidence.chat_kl, evidence.limits.max_kl
    if nats is None:
        return _not_asked("chat_kl", limit)
    return _near("chat_kl", "In chat replies the candidate", nats / max(mean_length(evidence.chat), 1), nats, limit)


def _near(name: str, who: str, of_a_token: float, of_a_reply: float, limit: float) -> GateReport:
    detail = (
        f"{who} is {of_a_token:.2f} nats a token ({of_a_reply:.1f} a reply) from the reference; at most {limit:g} "
        "a token are allowed."
    )
    return GateReport(name, of_a_token <= limit, of_a_token, limit, detail)


def base_kl(evidence: Evidence) -> GateReport:
    """Not too far from the base: neither many rounds nor a few people's corrections may lead far away from it.

    It passes if the base is the reference: the round did not begin from stable, and there was no SFT.
    """
    limit = evidence.limits.max_base_kl
    if evidence.base_kl is None:
        return GateReport("base_kl", True, 0.0, limit, "The reference is the base.")
    nats = evidence.base_kl / max(mean_length(evidence.candidate), 1)
    detail = (
        f"Together with what it began from, the candidate is {nats:.2f} nats a token from the base; at most {limit:g} "
        "are allowed. Raise gates.max_base_kl, or set train.begin to base, or lower train.sft_epochs."
    )
    return GateReport("base_kl", nats <= limit, nats, limit, detail)


@dataclass(frozen=True)
class Two:
    """The replies of two versions in the same conversations. `more` names the settings that ask for more replies."""

    candidate: tuple[Sample, ...]
    stable: tuple[Sample, ...]
    groups: list[str]
    limits: GateSettings
    what: str
    more: str

    def ratios(self, tops: Callable[[Sample], float], bottoms: Callable[[Sample], float]) -> list[tuple[float, Array]]:
        """A ratio for each version, the candidate's first, and how far each reply pulls it."""
        sides = self.candidate, self.stable
        return [ratio(*(np.array([of(reply) for reply in side], float) for of in (tops, bottoms))) for side in sides]

    def width(self, parts: Array) -> float:
        """How far from its estimate a difference may be; `parts` are how far each reply pulls the estimate."""
        return once(self.limits.level) * clustered_error(parts, self.groups)

    def unsure(self, within: bool) -> str:
        """What to do if an estimate is within its limits but its confidence limit is not."""
        return f" These replies are too few to tell: more {self.more} narrow the interval." if within else ""


def _drafts(evidence: Evidence) -> Two:
    groups = _groups(evidence.groups, evidence.candidate)
    more = "gates.prompts or gates.samples"
    return Two(evidence.candidate, evidence.stable, groups, evidence.limits, "replies", more)


def _chat(evidence: Evidence) -> Two:
    groups = _groups(evidence.chat_groups, evidence.chat)
    more = "gates.chat_prompts or gates.chat_samples"
    return Two(evidence.chat, evidence.stable_chat, groups, evidence.limits, "chat replies", more)


def _groups(groups: Sequence[str], replies: Sequence[Sample]) -> list[str]:
    """The conversation of each reply. If that is not known, it is the reply's prompt."""
    return list(groups) if len(groups) == len(replies) else [repr(reply.prompt) for reply in replies]


def _not_asked(name: str, limit: float) -> GateReport:
    said = "No replies at chat length were needed: the other replies are as long, or gates.chat_prompts is 0."
    return GateReport(name, True, 0.0, limit, said)


def _length(name: str, two: Two) -> GateReport:
    shortest, longest = two.limits.min_length, two.limits.max_length
    if not two.candidate:
        return _not_asked(name, longest)
    (length, of_candidate), (before, of_stable) = two.ratios(lambda reply: len(reply.response_ids), lambda _: 1)
    share = length / max(before, 1e-9)
    width = min(two.width(of_candidate / max(length, 1e-9) - of_stable / max(before, 1e-9)), math.log(MOST))
    low, high = share * math.exp(-width), min(share * math.exp(width), MOST)
    passed = shortest <= low and high <= longest
    value, limit = (low, shortest) if low < shortest else (high, longest)
    detail = (
        f"{len(two.candidate)} {two.what} have {length:.0f} tokens on average, stable's {before:.0f}. Confidence "
        f"interval of the ratio: {low:.2f} to {high:.2f} (level {two.limits.level:g}); {shortest:g} to {longest:g} is "
        "allowed."
    ) + two.unsure(not passed and shortest <= share <= longest)
    return GateReport(name, passed, value, limit, detail)


def _ends(name: str, two: Two) -> GateReport:
    margin = two.limits.max_finish_loss
    if not two.candidate:
        return _not_asked(name, -margin)
    (rate, of_candidate), (before, of_stable) = two.ratios(lambda reply: reply.finish_reason == "stop", lambda _: 1)
    low = max(rate - before - two.width(of_candidate - of_stable), -1.0)
    detail = (
        f"{rate:.1%} of {len(two.candidate)} {two.what} end by themselves, {before:.1%} of stable's. Confidence "
        f"limit of the difference: {low:+.1%} (level {two.limits.level:g}); {-margin:+.0%} is allowed."
    ) + two.unsure(low < -margin <= rate - before)
    return GateReport(name, low >= -margin, low, -margin, detail)


def _recurs(name: str, two: Two) -> GateReport:
    margin = two.limits.max_repetition_gain
    if not two.candidate:
        return _not_asked(name, margin)
    (rate, of_candidate), (before, of_stable) = two.ratios(
        lambda reply: grams(reply)[0], lambda reply: grams(reply)[1]
    )  # fmt: skip
    high = min(rate - before + two.width(of_candidate - of_stable), 1.0)
    detail = (
        f"{rate:.1%} of the 4-grams of {len(two.candidate)} {two.what} recur within a reply, {before:.1%} of stable's. "
        f"Confidence limit of the difference: {high:+.1%} (level {two.limits.level:g}); {margin:+.0%} is allowed."
    ) + two.unsure(high > margin >= rate - before)
    return GateReport(name, high <= margin, high, margin, detail)


def length(evidence: Evidence) -> GateReport:
    """Replies get neither much shorter nor much longer (the commonest way to please a reward model)."""
    return _length("length", _drafts(evidence))


def chat_length(evidence: Evidence) -> GateReport:
    """The same for chat replies: training may see only short replies, and nothing controls what follows after them."""
    return _length("chat_length", _chat(evidence))


def finish(evidence: Evidence) -> GateReport:
    """Replies still end by themselves."""
    return _ends("finish_rate", _drafts(evidence))


def chat_finish(evidence: Evidence) -> GateReport:
    """The same for chat replies. All chat gates pass if no replies at chat length were needed."""
    return _ends("chat_finish_rate", _chat(evidence))


def recurrence(evidence: Evidence) -> GateReport:
    """Replies do not repeat themselves."""
    return _recurs("repetition", _drafts(evidence))


def chat_recurrence(evidence: Evidence) -> GateReport:
    """The same for chat replies, which have more room for it."""
    return _recurs("chat_repetition", _chat(evidence))


@hookimpl
def register_gates(register: Register) -> None:
    """All eleven."""
    register("rm_accuracy", rm_accuracy)
    register("win_rate_proxy", win_rate)
    register("kl", kl)
    register("chat_kl", chat_kl)
    register("base_kl", base_kl)
    register("length", length)
    register("chat_length", chat_length)
    register("finish_rate", finish)
    register("chat_finish_rate", chat_finish)
    register("repetition", recurrence)
    register("chat_repetition", chat_recurrence)

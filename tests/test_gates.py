"""The built-in gates at and around their limits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from thumbwise.contracts import Evidence, GateReport, Message, Prompt, RunContext, Sample
from thumbwise.plugins import gates
from thumbwise.training.config import GateSettings, TrainSettings
from thumbwise.training.evaluate import CHAT_TOKENS, figures, interview
from thumbwise.training.intervals import widening
from thumbwise.training.replies import eos_penalties, finish_rate, mean_length, repetition


def sample(ids: tuple[int, ...], reason: str = "stop", prompt: int = 0) -> Sample:
    return Sample((Message(role="user", content=str(prompt)),), "", (1,), ids, reason, "policy-0000")


def replies(n: int, prompts: int = 10**6) -> tuple[Sample, ...]:
    """n replies without recurring 4-grams, to `prompts` prompts in turn."""
    return tuple(sample((10 + k, 11, 12, 13, 14, 15), prompt=k % prompts) for k in range(n))


def evidence(**changes: object) -> Evidence:
    fine = Evidence(
        rm_accuracy=0.65,
        rm_votes=200,
        candidate=replies(40),
        stable=replies(40),
        candidate_scores=np.ones(40, np.float32),
        stable_scores=np.zeros(40, np.float32),
        kl=1.5,
        limits=GateSettings(),
    )
    return replace(fine, **changes)  # type: ignore[arg-type]


def test_a_good_candidate_passes_every_gate() -> None:
    found: dict[str, object] = {}
    gates.register_gates(lambda name, gate: found.update({name: gate(evidence())}))
    assert set(found) == {
        "rm_accuracy", "win_rate_proxy", "kl", "base_kl", "length", "finish_rate", "chat_finish_rate", "repetition",
    }  # fmt: skip
    assert all(isinstance(report, GateReport) and report.passed for report in found.values())


@pytest.mark.parametrize(("accuracy", "votes", "passes"), [(0.55, 162, False), (0.55, 163, True), (0.9, 0, False)])
def test_accuracy_must_clear_chance_by_its_standard_errors(accuracy: float, votes: int, passes: bool) -> None:
    report = gates.rm_accuracy(evidence(rm_accuracy=accuracy, rm_votes=votes))
    assert report.passed is passes
    assert report.limit == 0.5


@pytest.mark.parametrize(("error", "passes"), [(0.03, True), (0.05, False)])
def test_accuracy_is_as_sure_as_the_reward_model_says(error: float, passes: bool) -> None:
    report = gates.rm_accuracy(evidence(rm_accuracy=0.56, rm_votes=1000, rm_error=error))
    assert report.passed is passes
    assert report.value == pytest.approx(0.56 - 1.28 * error)


def test_where_all_votes_are_of_one_conversation_the_sentence_says_what_to_do() -> None:
    report = gates.rm_accuracy(evidence(rm_accuracy=0.5, rm_votes=0))
    assert not report.passed
    assert "least two conversations" in report.detail


def test_ties_and_missing_opinions_count_half() -> None:
    scores = np.array([1, 1, 0, np.nan], np.float32)
    report = gates.win_rate(evidence(candidate=replies(4), candidate_scores=scores, stable_scores=scores * 0))
    results = np.array([1, 1, 0.5, 0.5])
    assert report.value == pytest.approx(0.75 - 1.28 * widening(4) * results.std(ddof=1) / 2)
    assert figures(evidence(candidate_scores=scores, stable_scores=scores * 0))["win_rate_proxy"] == 0.75
    assert "proxy" in report.name
    assert "proxy" in report.detail


@pytest.mark.parametrize(("wins", "passes"), [(23, False), (25, True)])
def test_the_win_must_clear_a_half_by_its_standard_errors(wins: int, passes: bool) -> None:
    scores = np.array([1.0] * wins + [-1.0] * (40 - wins), np.float32)
    report = gates.win_rate(evidence(candidate_scores=scores, stable_scores=np.zeros(40, np.float32)))
    assert report.passed is passes


def test_many_replies_to_few_prompts_are_not_many_independent_wins() -> None:
    scores = np.tile(np.array([1.0, 1.0, 1.0, -1.0, -1.0], np.float32), 40)
    changes = {"candidate_scores": scores, "stable_scores": np.zeros(200, np.float32)}
    assert gates.win_rate(evidence(candidate=replies(200), **changes)).passed
    assert not gates.win_rate(evidence(candidate=replies(200, prompts=5), **changes)).passed
    assert not gates.win_rate(evidence(candidate=replies(200, prompts=1), **changes)).passed


@pytest.mark.parametrize(("kl", "passes"), [(2.0, True), (2.2, False), (float("nan"), False)])
def test_kl_has_a_ceiling_for_each_of_a_replys_tokens(kl: float, passes: bool) -> None:
    report = gates.kl(evidence(kl=kl))  # six tokens a reply
    assert report.passed is passes
    assert f"{kl / 6:.2f} nats a token ({kl:.1f} a reply)" in report.detail
    assert gates.kl(evidence(kl=2 * kl, candidate=tuple(sample(tuple(range(12))) for _ in range(40)))).passed is passes
    assert figures(evidence(kl=kl))["kl_token"] == pytest.approx(kl / 6, nan_ok=True)


@pytest.mark.parametrize(("kl", "passes"), [(None, True), (4.1, True), (4.3, False), (float("nan"), False)])
def test_where_sft_moved_the_reference_the_base_is_not_far_either(kl: float | None, passes: bool) -> None:
    report = gates.base_kl(evidence(base_kl=kl))
    assert report.passed is passes
    assert passes or "gates.max_base_kl" in report.detail
    assert ("base_kl" in figures(evidence(base_kl=kl))) is (kl is not None)


@pytest.mark.parametrize(("tokens", "passes"), [(2, False), (3, True), (20, True), (21, False)])
def test_length_may_neither_collapse_nor_swell(tokens: int, passes: bool) -> None:
    ten = (sample(tuple(range(10))),)
    assert gates.length(evidence(stable=ten, candidate=(sample(tuple(range(tokens))),))).passed is passes


def test_a_reward_that_is_length_is_caught() -> None:
    stable = tuple(sample(tuple(range(n % 7 + 4))) for n in range(40))
    long = tuple(sample(tuple(range(48)), "length", n) for n in range(40))
    lengths = np.full(40, 48, np.float32)
    given = evidence(stable=stable, candidate=long, candidate_scores=lengths, stable_scores=lengths * 0)
    assert gates.win_rate(given).passed
    assert not gates.length(given).passed
    assert not gates.finish(given).passed


@pytest.mark.parametrize(("stops", "passes"), [(75, True), (74, False)])
def test_finish_rate_may_fall_by_its_margin_only(stops: int, passes: bool) -> None:
    stable = tuple(sample((1, 2), "stop" if n < 80 else "length") for n in range(100))
    candidate = tuple(sample((1, 2), "stop" if n < stops else "length") for n in range(100))
    assert gates.finish(evidence(stable=stable, candidate=candidate)).passed is passes


@pytest.mark.parametrize(("stops", "passes"), [(40, True), (39, False)])
def test_chat_replies_that_run_on_are_caught_though_drafts_are_as_before(stops: int, passes: bool) -> None:
    stable = tuple(sample((1, 2), "stop" if n < 45 else "length") for n in range(50))
    candidate = tuple(sample((1, 2), "stop" if n < stops else "length") for n in range(50))
    given = evidence(stable_chat=stable, chat=candidate)
    assert gates.chat_finish(given).passed is passes
    assert gates.finish(given).passed
    assert "50 chat replies" in gates.chat_finish(given).detail


@pytest.mark.parametrize(
    ("draft", "chat", "asked", "tokens"), [(48, 512, 2, 512), (48, 4096, 2, CHAT_TOKENS), (48, 48, 0, 48), (8, 9, 2, 9)]
)
def test_some_prompts_are_answered_at_chat_length_where_that_is_more_than_a_drafts(
    draft: int, chat: int, asked: int, tokens: int
) -> None:
    class Backend:
        def __init__(self, context: RunContext) -> None:
            self.longest = context.max_tokens

        def sample(self, prompts: Sequence[Prompt], adapter: str | None, seed: int) -> list[Sample]:
            return [sample(tuple(range(self.longest)), "length", int(p.messages[0]["content"])) for p in prompts]

    held_out = tuple(Prompt((Message(role="user", content=str(n)),), "") for n in range(3))
    context = RunContext(None, TrainSettings(), 0.7, draft, (), (), Path())  # type: ignore[arg-type]
    replies = interview(context, Backend, held_out, GateSettings(samples=2, chat_prompts=2), chat).ask("policy")
    assert [reply.prompt[0]["content"] for reply in replies.drafts] == ["0", "1", "2", "0", "1", "2"]
    assert {len(reply.response_ids) for reply in replies.drafts} == {draft}
    assert [len(reply.response_ids) for reply in replies.chat] == [tokens] * asked


def test_where_no_reply_is_as_long_as_in_chat_nothing_speaks_against_the_candidate() -> None:
    assert gates.chat_finish(evidence()).passed


def test_going_round_in_circles_is_caught() -> None:
    round_and_round = tuple(sample((1, 2, 3, 4) * 4) for _ in range(10))
    assert repetition(round_and_round) == pytest.approx(9 / 13)
    assert not gates.recurrence(evidence(candidate=round_and_round)).passed


def test_statistics_of_replies() -> None:
    replies = [sample((1, 2, 3)), sample((1,), "length"), sample((), "length")]
    assert mean_length(replies) == pytest.approx(4 / 3)
    assert finish_rate(replies) == pytest.approx(1 / 3)
    assert repetition(replies) == 0.0
    assert repetition([]) == mean_length([]) == finish_rate([]) == 0.0


def test_only_replies_cut_off_by_their_limit_pay_the_penalty() -> None:
    custom_stop = sample((1, 2, 77))
    assert eos_penalties([custom_stop, sample((1, 2), "length")], 1.5) == [0.0, 1.5]

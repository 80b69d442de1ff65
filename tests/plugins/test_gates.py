"""The built-in gates at and around their limits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from thumbwise.contracts import Evidence, GateReport, Message, Prompt, RunContext, Sample
from thumbwise.errors import ThumbwiseError
from thumbwise.plugins import gates
from thumbwise.settings.gates import GateSettings
from thumbwise.settings.training import TrainSettings
from thumbwise.training.evaluation.evaluate import CHAT_TOKENS, figures, interview, run_gates
from thumbwise.training.evaluation.intervals import ever, once, widening
from thumbwise.training.evaluation.replies import eos_penalties, finish_rate, mean_length, repetition
from thumbwise.training.reward.prequential import prequential_accuracy, prequential_splits


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
        "rm_accuracy", "win_rate_proxy", "kl", "chat_kl", "base_kl", "length", "chat_length", "finish_rate",
        "chat_finish_rate", "repetition", "chat_repetition",
    }  # fmt: skip
    assert all(isinstance(report, GateReport) and report.passed for report in found.values())


def test_the_level_over_a_life_is_robbins_mixture() -> None:
    # By hand: n = rho = 60, level 0.1: sqrt(2 * 2 * ln(5 sqrt(2) + 1)); and wider than a single look everywhere.
    assert ever(0.1, 60) == pytest.approx(np.sqrt(4 * np.log(5 * 2**0.5 + 1)))
    assert min(ever(0.1, votes) for votes in range(1, 5000)) > once(0.1) + 1


@pytest.mark.parametrize(("share", "passes"), [(0.569, False), (0.573, True)])
def test_votes_must_be_foretold_so_often_that_luck_does_it_in_a_tenth_of_homes_ever(share: float, passes: bool) -> None:
    given = evidence(foretold=share, foretold_votes=320, foretold_error=0.028, rm_accuracy=0.9, rm_votes=1000)
    report = gates.rm_accuracy(given)
    assert report.passed is passes
    assert report.value == pytest.approx(share - ever(0.1, 0.25 / 0.028**2) * 0.028, abs=1e-4)
    assert passes or "More votes narrow the interval" in report.detail


def test_a_model_that_has_only_its_cross_validation_needs_more_for_its_folds_know_of_each_other() -> None:
    foretold = gates.rm_accuracy(evidence(foretold=0.6, foretold_votes=400, foretold_error=0.03))
    crossed = gates.rm_accuracy(evidence(rm_accuracy=0.6, rm_votes=400, rm_error=0.03))
    assert foretold.value == pytest.approx(0.6 - ever(0.1, 0.25 / 0.03**2) * 0.03)
    assert crossed.value == pytest.approx(0.6 - ever(0.1, 0.25 / 0.0018) * 0.0018**0.5)


def test_a_handful_of_votes_that_are_all_foretold_is_no_proof() -> None:
    assert not gates.rm_accuracy(evidence(foretold=1.0, foretold_votes=6, foretold_error=0.0)).passed
    assert gates.rm_accuracy(evidence(foretold=1.0, foretold_votes=60, foretold_error=0.0)).passed


def test_who_looks_at_a_coin_every_night_sees_it_pass_in_at_most_a_tenth_of_homes() -> None:
    draws, homes, nights = np.random.default_rng(0), 300, range(100, 1000, 10)
    right = (draws.random((homes, 990)) < 0.5).cumsum(1)

    def passes(home: int, votes: int) -> bool:
        share = float(right[home, votes - 1] / votes)
        error = (share * (1 - share) / votes) ** 0.5
        given = evidence(foretold=share, foretold_votes=votes, foretold_error=error, rm_accuracy=share, rm_votes=votes)
        return gates.rm_accuracy(given).passed

    fooled = sum(any(passes(home, votes) for votes in nights) for home in range(homes))
    assert 0 < fooled <= 0.1 * homes  # a fresh test each night was fooled in 38%


def test_votes_are_foretold_from_those_before_in_other_conversations_and_later_ones_change_nothing() -> None:
    when = [f"vote-{n:03d}" for n in range(60)]
    groups = [n // 2 for n in range(60)]
    order = np.random.default_rng(0).permutation(60)
    parts = list(prequential_splits([when[n] for n in order], [groups[n] for n in order]))
    for fitted, asked in parts:
        assert max(order[fitted]) < min(order[asked])
        assert not {groups[n] for n in order[fitted]} & {groups[n] for n in order[asked]}
    assert sorted(n for _, asked in parts for n in order[asked]) == list(range(20, 60))  # each once
    fewer = list(prequential_splits(when[:50], groups[:50]))
    for (fitted, asked), (less, some) in zip(prequential_splits(when, groups), fewer, strict=False):
        assert (fitted[:50] == less).all()
        assert (asked[:50] == some).all()
    assert list(prequential_splits(when[:20], groups[:20])) == []


def test_a_foretold_vote_counts_as_far_as_the_model_was_sure_of_it() -> None:
    right, said = np.array([1.0, 0.0, 1.0, 0.0]), np.array([-2.0, 0.5, 9.0, 0.5])
    share, votes, error = prequential_accuracy(right, said, ["a", "b", "c", "d"])
    assert (share, votes) == (0.8, 4)
    pulls = np.array([2 * 0.2, -0.5 * 0.8, 2 * 0.2, -0.5 * 0.8]) / 5
    assert error == pytest.approx(widening(4) * np.sqrt(4 / 3 * (pulls**2).sum()))
    assert prequential_accuracy(np.ones(4), said, ["a", "b", "c", "d"])[2] == pytest.approx(
        0.4 * 8.5**0.5 / 5
    )  # a coin's
    assert prequential_accuracy(np.zeros(0), np.zeros(0), []) == (0.5, 0, 0.5)
    assert prequential_accuracy(right, said, ["a"] * 4)[2] == 0.5


def test_where_all_votes_are_of_one_conversation_the_sentence_says_what_to_do() -> None:
    report = gates.rm_accuracy(evidence(rm_accuracy=0.5, rm_votes=0))
    assert not report.passed
    assert "in more conversations" in report.detail


def test_ties_and_missing_opinions_count_half() -> None:
    scores = np.array([1, 1, 0, np.nan], np.float32)
    report = gates.win_rate(evidence(candidate=replies(4), candidate_scores=scores, stable_scores=scores * 0))
    results = np.array([1, 1, 0.5, 0.5])
    assert report.value == pytest.approx(0.75 - once(0.1 / 3) * widening(4) * results.std(ddof=1) / 2)
    assert figures(evidence(candidate_scores=scores, stable_scores=scores * 0))["win_rate_proxy"] == 0.75
    assert "proxy" in report.name
    assert "proxy" in report.detail


@pytest.mark.parametrize(("wins", "passes"), [(25, False), (27, True)])
def test_the_win_must_clear_a_half_at_a_level_that_a_rounds_three_policies_share(wins: int, passes: bool) -> None:
    scores = np.array([1.0] * wins + [-1.0] * (40 - wins), np.float32)
    report = gates.win_rate(evidence(candidate_scores=scores, stable_scores=np.zeros(40, np.float32)))
    assert report.passed is passes


def test_turns_of_one_conversation_are_not_many_independent_wins() -> None:
    scores = np.tile(np.array([1.0, 1.0, 1.0, -1.0, -1.0], np.float32), 40)
    given = {"candidate": replies(200), "candidate_scores": scores, "stable_scores": np.zeros(200, np.float32)}
    assert gates.win_rate(evidence(**given)).passed
    assert gates.win_rate(evidence(**given, groups=tuple(str(n // 5) for n in range(200)))).passed
    assert not gates.win_rate(evidence(**given, groups=tuple(str(n % 5) for n in range(200)))).passed


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


SPREAD = (4, 7, 10, 13, 16)


def lengths(factor: float, count: int = 200, spread: Sequence[int] = SPREAD) -> tuple[Sample, ...]:
    """Replies of 10 tokens times `factor` on average, to a prompt each."""
    return tuple(sample(tuple(range(round(factor * spread[n % len(spread)]))), prompt=n) for n in range(count))


@pytest.mark.parametrize("side", ["", "chat"])
@pytest.mark.parametrize(("factor", "passes"), [(0.1, False), (0.5, True), (1.0, True), (1.4, True), (2.0, False)])
def test_length_may_neither_collapse_nor_swell(side: str, factor: float, passes: bool) -> None:
    versions = {"candidate": lengths(factor), "stable": lengths(1)}
    if side:
        versions = {"chat": versions["candidate"], "stable_chat": versions["stable"]}
    report = (gates.chat_length if side else gates.length)(evidence(**versions))
    assert report.passed is passes
    assert report.limit == (0.15 if factor < 0.15 else 1.5)


def test_a_mean_length_is_only_as_sure_as_its_replies_are_many() -> None:
    longer = {"stable": lengths(1, 10, (1, 19)), "candidate": lengths(1.2, 10, (19, 1))}
    few = gates.length(evidence(**longer))
    assert not few.passed
    assert "too few to tell: more gates.prompts or gates.samples narrow the interval" in few.detail
    longer = {"stable": lengths(1, 400, (1, 19)), "candidate": lengths(1.2, 400, (19, 1))}
    assert gates.length(evidence(**longer)).passed
    alone = gates.length(evidence(candidate=lengths(1, 1), stable=lengths(1, 1)))
    assert not alone.passed
    assert alone.value == gates.MOST or alone.value < 0.15


def test_a_reward_that_is_length_is_caught() -> None:
    stable = tuple(sample(tuple(range(n % 7 + 4)), prompt=n) for n in range(40))
    long = tuple(sample(tuple(range(48)), "length", n) for n in range(40))
    lengths = np.full(40, 48, np.float32)
    given = evidence(stable=stable, candidate=long, candidate_scores=lengths, stable_scores=lengths * 0)
    assert gates.win_rate(given).passed
    assert not gates.length(given).passed
    assert not gates.finish(given).passed


def ending(rate: float, count: int = 200) -> tuple[Sample, ...]:
    """Replies of which so many end by themselves, to a prompt each; who ends is drawn by the rate."""
    ends = np.random.default_rng(round(rate * 100)).permutation(count) < rate * count
    return tuple(sample((1, 2), "stop" if end else "length", n) for n, end in enumerate(ends))


@pytest.mark.parametrize("side", ["", "chat"])
@pytest.mark.parametrize(("rate", "passes"), [(0.85, True), (0.77, True), (0.71, False), (0.6, False)])
def test_replies_must_surely_end_within_the_margin_as_often_as_stables(side: str, rate: float, passes: bool) -> None:
    versions = {"stable": ending(0.83), "candidate": ending(rate)}
    if side:
        versions = {"stable_chat": versions["stable"], "chat": versions["candidate"]}
    gate, other = (gates.chat_finish, gates.finish) if side else (gates.finish, gates.chat_finish)
    report = gate(evidence(**versions))
    assert report.passed is passes
    assert other(evidence(**versions)).passed
    assert f"200 {side + ' ' if side else ''}replies" in report.detail
    assert ("gates.chat_samples" in report.detail) is (side == "chat" and rate == 0.71)


def test_a_difference_is_of_what_both_said_in_one_conversation() -> None:
    stable = tuple(
        sample((1, 2), "stop" if n % 2 else "length", n) for n in range(40)
    )  # all that differs is the prompt
    report = gates.finish(evidence(stable=stable, candidate=stable))
    assert report.value == 0.0
    groups = tuple(str(n // 20) for n in range(40))
    worse = tuple(sample((1, 2), "stop" if n % 2 and n > 3 else "length", n) for n in range(40))
    alone = gates.finish(evidence(stable=stable, candidate=worse))
    together = gates.finish(evidence(stable=stable, candidate=worse, groups=groups))
    assert alone.passed
    assert together.value < alone.value - 0.05
    assert "too few to tell" in gates.finish(evidence(stable=stable, candidate=worse, groups=("a",) * 40)).detail


@pytest.mark.parametrize("rate", [0.83, 0.67])
def test_equal_policies_are_seldom_refused_and_those_that_end_far_less_often_seldom_pass(rate: float) -> None:
    """Of as many chat replies as the gates ask for by default."""
    draws, rounds, limits = np.random.default_rng(0), 150, GateSettings()

    def said(ends: float) -> tuple[Sample, ...]:
        drawn = draws.random(limits.chat_prompts * limits.chat_samples) < ends
        return tuple(
            sample(tuple(range(10)) if end else tuple(range(20)), "stop" if end else "length", n // limits.chat_samples)
            for n, end in enumerate(drawn)
        )

    def passes(less: float) -> bool:
        given = evidence(stable_chat=said(rate), chat=said(rate - less))
        return all(gate(given).passed for gate in (gates.chat_finish, gates.chat_length, gates.chat_recurrence))

    assert sum(passes(0.0) for _ in range(rounds)) >= 0.92 * rounds
    assert sum(passes(0.15) for _ in range(rounds)) <= 0.15 * rounds  # the level is 10%: see bench/training/gates.py


@pytest.mark.parametrize(
    ("draft", "chat", "lengths", "asked", "tokens"),
    [
        (48, 512, (), 4, 512), (48, 4096, (), 4, CHAT_TOKENS), (48, 48, (), 0, 48), (8, 9, (), 4, 9),
        (48, 512, (512, 512, 512, 48), 0, 512), (48, 512, (512, 512, 48, 48), 4, 512), (512, 512, (48, 48), 4, 512),
    ],
)  # fmt: skip
def test_prompts_are_answered_at_the_lengths_that_people_voted_at_and_some_at_chats_where_that_is_more(
    draft: int, chat: int, lengths: tuple[int, ...], asked: int, tokens: int
) -> None:
    class Backend:
        def __init__(self, context: RunContext) -> None:
            self.longest = context.max_tokens

        def sample(self, prompts: Sequence[Prompt], adapter: str | None, seed: int) -> list[Sample]:
            return [
                sample(tuple(range(p.max_tokens or self.longest)), "length", int(p.messages[0]["content"]))
                for p in prompts
            ]

    held_out = tuple(Prompt((Message(role="user", content=str(n)),), f"talk {n}") for n in range(9))
    context = RunContext(
        None, TrainSettings(), 0.7, draft, (), (), Path(), lengths=lengths  # type: ignore[arg-type]
    )  # fmt: skip
    limits = GateSettings(samples=4, chat_prompts=2, chat_samples=2)
    questions = interview(context, Backend, held_out, limits, chat)
    said = questions.ask("policy")
    assert [reply.prompt[0]["content"] for reply in said.drafts] == [str(n) for n in range(9)] * 4
    assert {len(reply.response_ids) for reply in said.drafts} == set(lengths or (draft,))
    assert [len(reply.response_ids) for reply in said.chat] == [tokens] * asked
    assert [reply.prompt[0]["content"] for reply in said.chat] == ["0", "1", "0", "1"][:asked]
    assert interview(context, Backend, held_out, limits, chat).drafts == questions.drafts  # the same limits each time


def test_where_no_reply_is_as_long_as_in_chat_nothing_speaks_against_the_candidate() -> None:
    for gate in (gates.chat_finish, gates.chat_length, gates.chat_recurrence, gates.chat_kl):
        report = gate(evidence())
        assert report.passed
        assert "No replies at chat length were needed" in report.detail


@pytest.mark.parametrize(("kl", "passes"), [(3.4, True), (3.6, False), (float("nan"), False)])
def test_chat_replies_are_not_too_far_from_the_reference_either(kl: float, passes: bool) -> None:
    given = evidence(chat=lengths(1), stable_chat=lengths(1), chat_kl=kl)
    assert gates.chat_kl(given).passed is passes
    assert gates.kl(given).passed
    assert figures(given)["chat_kl_token"] == pytest.approx(kl / 10, nan_ok=True)


@pytest.mark.parametrize("side", ["", "chat"])
def test_going_round_in_circles_is_caught(side: str) -> None:
    round_and_round = tuple(sample((1, 2, 3, 4) * 4, prompt=n) for n in range(40))
    assert repetition(round_and_round) == pytest.approx(9 / 13)
    given = {"chat": round_and_round, "stable_chat": replies(40)} if side else {"candidate": round_and_round}
    report = (gates.chat_recurrence if side else gates.recurrence)(evidence(**given))
    assert not report.passed
    assert report.value == pytest.approx(9 / 13)
    if side:
        assert figures(evidence(**given))["chat_repetition"] == pytest.approx(9 / 13)


@pytest.mark.parametrize(
    ("returned", "says"),
    [
        (None, "returned None instead"), (True, "returned True instead"),
        (GateReport("odd", "no", 1.0, 1.0, "?"), "passed='no'"),  # type: ignore[arg-type]
        (GateReport("odd", 1, 1.0, 1.0, "?"), "passed=1"),  # type: ignore[arg-type]
        (GateReport("odd", True, float("nan"), 1.0, "?"), "value=nan"),
        (GateReport("odd", True, None, 1.0, "?"), "value=None"),  # type: ignore[arg-type]
    ],
)  # fmt: skip
def test_a_gate_without_a_report_ends_the_run_with_its_plugins_name(returned: object, says: str) -> None:
    with pytest.raises(ThumbwiseError, match="fix the plugin mine, then `thumbwise train --resume`") as raised:
        run_gates({"odd": lambda _: returned}, evidence(), {"odd": "mine"})  # type: ignore[dict-item, return-value]
    assert "The gate odd returned" in str(raised.value)
    assert says in str(raised.value)


def test_a_gate_that_fails_refuses_the_version_and_names_its_plugin() -> None:
    (report,) = run_gates({"odd": lambda _: 1 / 0}, evidence(), {"odd": "mine"})  # type: ignore[dict-item, return-value]
    assert not report.passed
    assert "fix the plugin mine" in report.detail
    numpys = GateReport("odd", np.bool_(True), np.float32(1), 1, "Fine.")  # type: ignore[arg-type]
    assert run_gates({"odd": lambda _: numpys}, evidence(), {}) == [GateReport("odd", True, 1.0, 1.0, "Fine.")]


def test_statistics_of_replies() -> None:
    replies = [sample((1, 2, 3)), sample((1,), "length"), sample((), "length")]
    assert mean_length(replies) == pytest.approx(4 / 3)
    assert finish_rate(replies) == pytest.approx(1 / 3)
    assert repetition(replies) == 0.0
    assert repetition([]) == mean_length([]) == finish_rate([]) == 0.0


def test_only_replies_cut_off_by_their_limit_pay_the_penalty() -> None:
    custom_stop = sample((1, 2, 77))
    assert eos_penalties([custom_stop, sample((1, 2), "length")], 1.5) == [0.0, 1.5]

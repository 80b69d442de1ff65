"""Votes on replies sampled as a run samples, and others: what counts, what is sampled, what others may weigh."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny_model import make_tiny_model
from training_world import FakeAssistant, make_snapshot, train

from thumbwise.contracts import Comparison, FitReport, Labels, Prompt, Ranking, RunContext, Sample, Thumb
from thumbwise.plugins.bradley_terry import BradleyTerry
from thumbwise.settings.training import TrainSettings
from thumbwise.training.backbone.backbone import Backbone
from thumbwise.training.data.snapshot import Snapshot
from thumbwise.training.data.votes import Sampling
from thumbwise.training.evaluation.replies import finish_rate_at
from thumbwise.training.policy.losses import ends_wanted
from thumbwise.training.policy.rollouts import InProcess
from thumbwise.training.reward.agreement import told

TRAIN = TrainSettings(dtype="float32", rm_heads=2, rm_folds=3, max_reply_tokens=12)
SAMPLING = Sampling(temperature=0.7, max_tokens=8, longest=12)

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def context(model: Path, tmp_path_factory: pytest.TempPathFactory) -> RunContext:
    return RunContext(Backbone(model, TRAIN), TRAIN, 0.7, 8, (), (), tmp_path_factory.mktemp("run"))


def reply(name: str, share: float = 0.5, length: int = 8, **sampling: Any) -> Sample:
    """Random ids, `share` of them under 70."""
    rng = random.Random(name)
    ids = [rng.randrange(5, 70) if rng.random() < share else rng.randrange(70, 300) for _ in range(length)]
    asked = {"temperature": 0.7, "max_tokens": 8, "top_p": 1.0, "stop": [], "seed": 5} | sampling
    return Sample((), "", (1, 9, 20), tuple(ids), "length", "policy-0000", meta={"id": name, "sampling": asked})


def pair(name: str, left: Sample, right: Sample, choice: Any = "left") -> Comparison:
    return Comparison(name, f"u{len(name) % 3}", f"group of {name}", left, right, choice)


def pairs(name: str, count: int, better: float = 0.9, wrong: float = 0.0, **asked: Any) -> tuple[Comparison, ...]:
    """Votes for the reply with many ids under 70, or with few, where `better` is small."""
    rng, made = random.Random(name), []
    for n in range(count):
        left = rng.random() < 0.5
        shares = (better, 1 - better) if left != (rng.random() < wrong) else (1 - better, better)
        drafts = [reply(f"{name} {n} {side}", share, **asked) for side, share in enumerate(shares)]
        made.append(pair(f"{name} {n // 2}", *drafts, "left" if left else "right"))
    return tuple(made)


# --- what counts ----------------------------------------------------------------------------------------


def test_a_vote_is_alike_where_all_its_replies_were_sampled_as_the_run_samples() -> None:
    good, long = reply("a"), reply("long", length=13, max_tokens=40)
    votes = (
        pair("1", good, reply("b", max_tokens=40, length=12)), pair("2", good, reply("c", temperature=1.0)),
        pair("3", good, reply("d", top_p=0.9)), pair("4", reply("e", stop=["."]), good), pair("5", good, long),
        pair("6", good, replace(good, meta={"id": "unnamed"})), pair("7", good, reply("f"), "tie"),
    )  # fmt: skip
    ranking = Ranking("r", "u", "g", (good, reply("h"), reply("i", temperature=0.9)), (0, 1, 2))
    thumbs = tuple(Thumb(f"t{n}", "u", "g", sample, n % 2 == 0) for n, sample in enumerate((good, reply("k"), long)))
    snapshot = Snapshot(Labels(votes, thumbs, (ranking,)), ())
    assert snapshot.telling(TRAIN, SAMPLING) == 4  # votes 1 and 6, and two thumbs
    assert snapshot.otherwise(TRAIN, SAMPLING) == (4, 2)  # votes 2 to 4 and the ranking; vote 5 and a thumb
    assert sorted(snapshot.lengths(TRAIN, SAMPLING)) == [8, 8, 8, 12]  # a, k, unnamed; b, at most the longest
    assert snapshot.lengths(TRAIN, replace(SAMPLING, temperature=1.5)) == ()


@pytest.mark.slow
def test_the_accuracy_is_of_votes_sampled_alike_and_told_apart_by_kind_and_length(context: RunContext) -> None:
    """On these the score cannot be told; those on longer replies, which are many, would show 90%."""
    coin = tuple(replace(c, choice=random.Random(c.left.response_ids[0]).choice(["left", "right"]))
                 for c in pairs("coin", 40))  # fmt: skip
    thumbs = [Thumb(f"t{n}", "u", f"t{n}", reply(f"t{n}", 0.9 * (n % 2), length=12), n % 2 == 1) for n in range(40)]
    long = pairs("long", 120, length=40, max_tokens=40)
    report = BradleyTerry(context).fit(Labels((*coin, *long), tuple(thumbs)), seed=0)
    by = {part["kind"]: part for part in report.details["by"]}
    assert (report.n, by["pair"]["votes"], by["thumb"]["votes"]) == (80, 40, 40)
    assert by["pair"]["tokens"] == by["thumb"]["tokens"] == [1, 64]
    assert abs(by["pair"]["accuracy"] - 0.5) < 0.24  # three standard errors
    assert by["thumb"]["accuracy"] > 0.8
    assert report.details["others"] == 120
    assert 0 < by["pair"]["error"] < 0.2


@pytest.mark.slow
def test_a_judge_of_long_replies_does_not_pass_for_one_of_drafts(context: RunContext) -> None:
    """100 thumbs that go by the last sentence of long replies, and coins thrown on drafts: the gate must not pass."""
    rng = random.Random(4)
    thumbs = []
    for n in range(100):
        up = n % 2 == 1
        body, end = reply(f"body {n}", 0.5, 30, max_tokens=60), reply(f"end {n}", 0.95 if up else 0.05, 10)
        long = replace(body, response_ids=body.response_ids + end.response_ids)
        thumbs.append(Thumb(f"t{n}", "u", f"t{n}", long, up))
    coins = tuple(replace(c, choice=rng.choice(["left", "right"])) for c in pairs("coins", 60))
    report = BradleyTerry(context).fit(Labels(coins, tuple(thumbs)), seed=0)
    assert (report.n, report.details["others"]) == (60, 100)
    assert abs(report.accuracy - 0.5) < 0.2
    alone = BradleyTerry(context).fit(Labels((), tuple(thumbs)), seed=0)
    assert (alone.n, alone.accuracy) == (0, 0.5)


def test_a_run_with_votes_on_long_replies_only_has_too_little_data(tmp_path: Path, model: Path) -> None:
    assistant = FakeAssistant(make_snapshot(40))
    result = train(tmp_path, model, assistant, max_reply_tokens=7)
    assert result.outcome == "too_little_data"
    assert "on replies of more than 7 tokens (train.max_reply_tokens): " in result.reason


@pytest.mark.parametrize(("others_like", "weigh"), [("the same", 1.0), ("the opposite", 0.0)])
@pytest.mark.slow
def test_votes_sampled_otherwise_weigh_what_helps_with_those_that_are_alike(
    context: RunContext, others_like: str, weigh: float
) -> None:
    alike = pairs("alike", 40, wrong=0.1)
    hot = pairs("hot", 120, better=0.9 if others_like == "the same" else 0.1, temperature=1.5)
    model = BradleyTerry(context)
    report = model.fit(Labels((*alike, *hot)), seed=0)
    assert report.n == 40
    assert report.details["others_weigh"] == weigh if weigh == 0 else report.details["others_weigh"] > 0
    good, bad = (model.score([reply(f"new {n}", share) for n in range(60)]).value for share in (0.8, 0.2))
    assert (good > bad).mean() > 0.8
    assert report.accuracy > 0.6


def test_where_all_votes_are_alike_nothing_more_is_fitted(context: RunContext, monkeypatch: pytest.MonkeyPatch) -> None:
    from thumbwise.training.reward import heads

    fits, fit = list[Any](), heads.fit_head
    monkeypatch.setattr(heads, "fit_head", lambda *given: fits.append(given) or fit(*given))
    counts = []
    for hot in ((), pairs("hot", 10, temperature=1.5)):
        fits.clear()
        report = BradleyTerry(context).fit(Labels((*pairs("alike", 30), *hot)), seed=0)
        counts.append(len(fits))
    assert counts[0] < counts[1] <= 2.5 * counts[0]
    assert "others_weigh" in report.details


# --- what is sampled ------------------------------------------------------------------------------------


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str | None, list[Prompt]]]:
    """Of every batch that is sampled the adapter and the prompts."""
    found, sample = list[tuple[str | None, list[Prompt]]](), InProcess.sample

    def spy(self: InProcess, prompts: Any, adapter: str | None, seed: int) -> list[Sample]:
        found.append((adapter, list(prompts)))
        return sample(self, prompts, adapter, seed)

    monkeypatch.setattr(InProcess, "sample", spy)
    return found


def test_what_a_round_samples_is_as_long_as_what_was_judged(
    tmp_path: Path, model: Path, asked: list[tuple[str | None, list[Prompt]]]
) -> None:
    longer = make_snapshot(40).replace(b'"max_tokens":8', b'"max_tokens":14', 40)
    result = train(tmp_path, model, FakeAssistant(longer), max_reply_tokens=12)
    assert result.outcome in ("promoted", "rejected")
    (_, calibration), (_, of_stable) = asked[:2]
    of_policy = [batch for adapter, batch in asked if adapter == "policy"]
    for batch in (calibration, [*of_policy[0], *of_policy[1]], of_stable):  # rollouts are the second
        assert {prompt.max_tokens for prompt in batch} == {8, 12}
    assert of_stable in of_policy  # the gates' questions


# --- ends -----------------------------------------------------------------------------------------------


def test_more_ends_are_wanted_only_of_replies_that_are_shorter_than_chats() -> None:
    assert ends_wanted(0.12) == ends_wanted(0.12, 1.0) == pytest.approx(0.17, abs=0.001)
    assert ends_wanted(0.8, 0.0) == pytest.approx(0.8)
    assert 0.12 < ends_wanted(0.12, 0.5) < ends_wanted(0.12)


def test_the_rate_of_ends_is_that_of_the_lengths_asked_for() -> None:
    ended, cut = replace(reply("a"), finish_reason="stop"), reply("b")
    found = [(8, cut), (8, cut), (8, ended), (8, cut), (40, ended)]
    assert finish_rate_at((8, 40), found) == pytest.approx((0.25 + 1) / 2)
    assert finish_rate_at((8, 8, 8, 40), found) == pytest.approx((3 * 0.25 + 1) / 4)
    assert finish_rate_at((8, 99), found) == pytest.approx(0.25)


# --- what is said ---------------------------------------------------------------------------------------


def test_the_accuracy_is_told_with_its_parts_and_what_is_few() -> None:
    part = {"kind": "pair", "tokens": [1, 64], "votes": 40, "accuracy": 0.65, "error": 0.07}
    both = [part, part | {"kind": "thumb", "tokens": [257, None], "votes": 60, "accuracy": 0.55}]
    assert told(FitReport(0.59, 100, {"by": both}, 0.05)) == (
        "Reward model: 59.0% of 100 votes in cross-validation (65.0% of 40 pairs at 1 to 64 tokens, 55.0% of 60 thumbs "
        "at over 256 tokens)."
    )
    few = told(FitReport(0.65, 40, {"by": [part]}, 0.07))
    assert few.startswith("Reward model: 65.0% of 40 votes in cross-validation. That is few")
    assert "no vote" in told(FitReport(0.5, 0))

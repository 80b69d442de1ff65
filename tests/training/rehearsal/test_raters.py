"""The people of a rehearsal, and how their judge's verdicts become figures: worked out by hand."""

from __future__ import annotations

import json
import math
import random
import statistics
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from thumbwise.contracts import Message, Prompt
from thumbwise.errors import ThumbwiseError
from thumbwise.home import Home
from thumbwise.training.evaluation.intervals import clustered_mean, widening
from thumbwise.training.rehearsal.home import _wait_ready
from thumbwise.training.rehearsal.raters import Bar, Crowd, Voting, bar, choose, judge_scores, make_raters, tiers
from thumbwise.training.rehearsal.steps import Rehearsal
from thumbwise.training.rehearsal.win_rates import Agreement, Wanted, best_of, by_prompt, pair_accuracy, win_rate

PROMPTS = [Prompt((Message(role="user", content=f"Question {n}?"),), f"g{n}") for n in range(7)]


class FakeApi:
    """Draws drafts from `texts` and remembers votes; `dies_after` votes it breaks."""

    def __init__(self, texts: list[str], dies_after: int | None = None) -> None:
        self.texts, self.dies_after = texts, dies_after
        self.rng = random.Random(0)
        self.compared = 0
        self.votes: dict[str, dict[str, Any]] = {}

    async def ask(self, messages: Any, user: str) -> tuple[str, str]:
        return f"msg_{len(self.votes)}", self.rng.choice(self.texts)

    async def compare(self, messages: Any, user: str, k: int) -> tuple[str, list[tuple[str, str]]]:
        self.compared += 1
        return f"cmp_{self.compared}", [(f"d{self.compared}_{n}", self.rng.choice(self.texts)) for n in range(k)]

    async def vote(self, key: str, body: dict[str, Any]) -> str:
        if self.dies_after is not None and len(self.votes) >= self.dies_after:
            raise ThumbwiseError("The assistant does not answer.")
        assert self.votes.setdefault(key, body) == body
        return key


def longer(prompt: Prompt, responses: Any) -> list[float]:
    return [float(len(response)) for response in responses]


def crowd(api: FakeApi, notes: Path, threshold: Bar | None = None, **voting: Any) -> Crowd:
    return Crowd(api, Voting(**voting), longer, PROMPTS, 1, notes, threshold)  # type: ignore[arg-type]


def done_notes(path: Path) -> list[dict[str, Any]]:
    notes = [json.loads(line) for line in path.read_text().splitlines() if line]
    return [note for note in notes if note["done"]]


# --- people ---------------------------------------------------------------------------------------------


def test_a_vote_follows_the_judge_or_is_turned_round_and_equal_scores_tie() -> None:
    assert [choose((2, 1), False), choose((1, 2), False), choose((2, 1), True)] == ["left", "right", "right"]
    assert choose((1, 1), True) == "tie"


def test_a_ranking_is_sorted_and_neighbours_that_tie_share_a_tier() -> None:
    assert tiers([1.0, 3.0, 2.0, 3.0], lambda: False) == [[1, 3], [2], [0]]
    assert tiers([1.0, 3.0, 2.0], lambda: True) == [[0], [2], [1]]
    flips = iter([True, False, False, False, False, False])
    assert tiers([2.0, 1.0], lambda: next(flips)) == [[1], [0]]


def test_raters_have_ids_of_their_own_a_share_of_them_adversaries_and_thresholds_that_differ() -> None:
    raters = make_raters(Voting(raters=40, adversarial=0.2, seed=3))
    assert len({rater.id for rater in raters}) == 40
    assert sum(rater.adversary for rater in raters) == 8
    assert 0.3 < statistics.pstdev(rater.offset for rater in raters) < 0.7  # half a deviation
    assert raters == make_raters(Voting(raters=40, adversarial=0.2, seed=3))
    assert raters != make_raters(Voting(raters=40, adversarial=0.2, seed=4))


async def test_noise_flips_its_share_of_votes_and_adversaries_all_of_theirs(tmp_path: Path) -> None:
    api = FakeApi(["a", "bbb", "ccccc"])
    votes = 400
    assert await crowd(api, tmp_path / "n", votes=votes, noise=0.25, adversarial=0.5).vote() == votes
    notes = done_notes(tmp_path / "n")
    adversaries = {rater.id for rater in make_raters(Voting(adversarial=0.5)) if rater.adversary}
    wrong = {side: [n["wrong"] for n in notes if (n["body"]["user"] in adversaries) == side] for side in (True, False)}
    assert all(wrong[True])
    assert abs(statistics.mean(wrong[False]) - 0.25) < 4 * math.sqrt(0.25 * 0.75 / len(wrong[False]))
    for note in notes:
        better = "left" if note["scores"][0] > note["scores"][1] else "right"
        choice = note["body"]["value"]["choice"]
        assert choice == "tie" or (choice == better) != note["wrong"]


async def test_equal_scores_are_drawn_again_three_times_and_then_tie(tmp_path: Path) -> None:
    api = FakeApi(["same"])
    await crowd(api, tmp_path / "n", votes=5).vote()
    assert [vote["value"] for vote in api.votes.values()] == [{"choice": "tie"}] * 5
    assert api.compared == 5 * 4


async def test_a_thumb_is_up_above_the_raters_threshold(tmp_path: Path) -> None:
    api = FakeApi(["a" * n for n in range(1, 20)])
    voting: dict[str, Any] = {"kind": "thumb", "votes": 200, "seed": 1}
    threshold = bar([float(n) for n in range(1, 20)])
    assert threshold == Bar(10.0, statistics.pstdev(range(1, 20)))
    await crowd(api, tmp_path / "n", threshold, **voting).vote()
    offset = {rater.id: rater.offset for rater in make_raters(Voting(**voting))}
    for note in done_notes(tmp_path / "n"):
        limit = threshold.median + offset[note["body"]["user"]] * threshold.deviation
        assert note["body"]["value"] == ("up" if note["scores"][0] > limit else "down")
    assert set(Counter(vote["value"] for vote in api.votes.values())) == {"up", "down"}


async def test_a_ranking_names_every_draft(tmp_path: Path) -> None:
    api = FakeApi(["a", "bb", "ccc"])
    await crowd(api, tmp_path / "n", kind="rank", rank_k=5, votes=20).vote()
    for vote in api.votes.values():
        assert sorted(len(draft) > 0 for tier in vote["value"]["tiers"] for draft in tier) == [True] * 5


async def test_a_crowd_that_was_cut_off_goes_on_and_doubles_nothing(tmp_path: Path) -> None:
    api = FakeApi(["a", "bbb", "ccccc"], dies_after=17)
    with pytest.raises(BaseExceptionGroup, match="unhandled errors"):
        await crowd(api, tmp_path / "n", votes=60).vote()
    assert len(api.votes) == 17
    with (tmp_path / "n").open("a") as file:
        file.write('{"n": 59, "bo')  # the line that was being written
    api.dies_after = None
    assert await crowd(api, tmp_path / "n", votes=60).vote() == 60
    assert sorted(api.votes, key=lambda key: int(key.rpartition("-")[2])) == [f"round-1-vote-{n}" for n in range(60)]
    before = dict(api.votes)
    assert await crowd(api, tmp_path / "n", votes=60).vote() == 60
    assert api.votes == before


@pytest.mark.parametrize(
    ("judge", "says"),
    [
        (lambda prompt, responses: 1 / 0, "The judge mine failed (ZeroDivisionError: division by zero)"),
        (lambda prompt, responses: [1.0], "must return one finite number for each of 2 responses"),
        (lambda prompt, responses: [1.0, math.nan], "must return one finite number"),
        (lambda prompt, responses: ["good", "bad"], "The judge mine failed (ValueError"),
    ],
)
def test_a_judge_that_fails_is_one_sentence_that_names_it(judge: Any, says: str) -> None:
    with pytest.raises(ThumbwiseError) as caught:
        judge_scores("mine", judge, PROMPTS[0], ["a", "b"])
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


# --- figures --------------------------------------------------------------------------------------------


def test_a_win_rate_counts_ties_half_and_its_interval_is_clustered_by_prompt() -> None:
    rate = win_rate([[1, 1], [0, 2]], [[0, 1], [1]])  # prompts: 3/4 of each of two replies; 0 and 1
    assert (rate.rate, rate.n) == (0.625, 4)
    error = math.sqrt(2 / 1 * ((1.5 - 1.25) ** 2 + (1 - 1.25) ** 2)) / 4
    assert rate.high - rate.rate == pytest.approx(1.96 * widening(2) * error)
    assert rate.rate - rate.low == pytest.approx(1.96 * widening(2) * error)


def test_each_reply_is_held_against_all_of_the_other_side_so_their_order_does_not_matter() -> None:
    ours, theirs = [[3.0, 1.0, 2.0], [1.0]], [[2.0, 0.0], [0.0, 1.0, 2.0, 3.0]]
    assert win_rate(ours, theirs) == win_rate([row[::-1] for row in ours], [row[::-1] for row in theirs])
    assert win_rate(ours, theirs).rate == pytest.approx((1 + 1 / 2 + 3 / 4 + 1.5 / 4) / 4)


def test_replies_to_one_prompt_that_agree_widen_the_interval() -> None:
    ours = [[1.0] * 4 if n % 2 else [0.0] * 4 for n in range(10)]
    clustered = win_rate(ours, [[0.5] * 4] * 10)
    apart = win_rate([[score] for row in ours for score in row], [[0.5]] * 40)
    assert clustered.rate == apart.rate == 0.5
    assert clustered.high - 0.5 == pytest.approx(
        (apart.high - 0.5) * math.sqrt(4 * (39 / 9) * 9 / 39 / 1) * widening(10) / widening(40), rel=0.1
    )


def test_terms_of_one_cluster_do_not_make_a_mean_surer() -> None:
    values = [1.0, 0.0, 1.0, 0.0]
    mean, apart = clustered_mean(values, ["a", "b", "c", "d"])
    assert mean == 0.5
    assert apart == pytest.approx(widening(4) * 0.5 / math.sqrt(3))  # that of four independent ones
    assert clustered_mean(values * 9, ["a", "b", "c", "d"] * 9) == pytest.approx((0.5, apart))
    assert clustered_mean(values, ["a"] * 4) == (0.5, 0.5)


def test_few_clusters_widen_the_interval_as_students_t_does() -> None:
    for clusters, t in [(5, 2.776), (11, 2.228), (101, 1.984)]:  # 97.5% quantiles for one degree of freedom less
        assert widening(clusters) == pytest.approx(t / 1.96, rel=0.01)
    assert widening(2) > 12.706 / 1.96


def test_the_best_of_n_by_the_reward_is_held_against_each_reply_that_is_not_among_them() -> None:
    judge, reward = [[5, 1, 3], [0, 0, 9], [7, 8]], [[1, 2, 0], [1, 0, 2], [0, 1]]
    first = [0.0, 1.0, 0.0]  # the 1 against the 5, the 5 against the 1, the 1 against the 3
    second = [1.0, 1.0, 0.0]  # the 9 against each 0, and a 0 against the 9; the third has too few replies
    best = best_of(judge, reward, 2)
    assert (best.rate, best.n) == (pytest.approx(statistics.mean([*first, *second])), 6)
    assert best.high - best.rate == pytest.approx(1.96 * widening(2) * abs(statistics.mean(first) - best.rate))
    assert math.isnan(best_of([[1, 2]], [[1, 2]], 2).rate)


def test_the_best_of_n_by_the_judge_itself_loses_only_to_the_best_of_all() -> None:
    scores = [[float(n) for n in range(17)]] * 3
    assert best_of(scores, scores, 16).rate == pytest.approx(16 / 17)
    assert best_of([[float(n) for n in range(40)]], [[0.0] * 40], 16).rate == pytest.approx(39 / 40)  # the next one


def test_accuracy_is_of_all_pairs_to_one_prompt_with_unequal_scores() -> None:
    found = pair_accuracy([[1, 2, 2], [5]], [[0, 1, -1], [9]])
    assert (found.rate, found.pairs) == (0.5, 2)
    found = pair_accuracy([[1, 2, 3]], [[1, 3, 2]])
    assert (found.rate, found.pairs) == (pytest.approx(2 / 3), 3)
    assert pair_accuracy([[1, 2]], [[3, 3]]) == Agreement(0.5, 0.5, 1)
    assert math.isnan(pair_accuracy([[1, 1]], [[0, 1]]).rate)


def test_a_prompt_with_many_replies_does_not_stand_for_the_others_in_accuracy() -> None:
    many, few = [float(n) for n in range(20)], [1.0, 2.0]
    found = pair_accuracy([many, *[few] * 10], [many, *[few[::-1]] * 10])  # right of the one, wrong of ten
    assert (found.rate, found.pairs) == (0.5, 190 + 10)
    assert found.error > 0.3  # half of the replies are one prompt's


@pytest.mark.parametrize("prompts", [10, 30, 80, 200])
def test_there_are_enough_replies_of_start_whatever_the_number_of_prompts(prompts: int) -> None:
    wanted = Wanted(prompts)
    counts = wanted.start()
    assert len(counts) == prompts
    assert wanted.samples * prompts >= 200
    assert min(counts) >= wanted.samples
    assert sum(count // 17 for count in counts) >= 60


def test_of_longer_replies_fewer_are_asked_for_and_still_as_many_for_the_win_rate() -> None:
    assert Wanted.at(80, 48) == Wanted.at(80, 8) == Wanted(80)
    short, chat = Wanted.at(80, 48), Wanted.at(80, 192)
    assert chat.samples == short.samples
    assert sum(count // 17 for count in chat.start()) == Wanted.at(80, 512).draws == 20
    assert sum(chat.start()) < sum(short.start()) / 2


def test_rows_are_split_as_they_were_joined() -> None:
    assert by_prompt([2, 0, 1], ["a", "b", "c"]) == [["a", "b"], [], ["c"]]


def test_a_rehearsal_shows_how_far_the_jobs_stages_are(tmp_path: Path) -> None:
    said = "[    0 s] gates\n[   21 s] gates, replies written: 48/144  about 0.7 minutes left\n"
    said += "[   60 s] ppo: 3/20  KL 1.50\n"
    shown: list[tuple[Any, ...]] = []
    progress = SimpleNamespace(
        update=lambda *given: shown.append(("update", *given)),
        part=lambda *given: shown.append(("part", *given)),
        say=lambda *given: shown.append(("say", *given)),
    )
    clock = SimpleNamespace(tick=lambda: 0.0)
    rehearsal: Any = SimpleNamespace(progress=progress, clock=clock)
    job: Any = SimpleNamespace(stderr=said.splitlines(keepends=True))
    watch: Any = SimpleNamespace(watching=False)
    Rehearsal._follow(rehearsal, job, watch, tmp_path / "train.log", clock)  # type: ignore[arg-type]
    assert shown == [
        ("say", "gates"), ("part", "gates, replies written", 48, 144), ("update", 3, 20, {"kl": 1.5}),
    ]  # fmt: skip
    assert (tmp_path / "train.log").read_text() == said


def test_what_an_assistant_is_about_is_told_while_a_rehearsal_waits_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    details = iter(["vLLM is starting.\nINFO 1", "vLLM is starting.\nINFO 2", "The model is being read."])

    def get(url: str, **given: Any) -> httpx.Response:
        detail = next(details, "")
        return httpx.Response(503 if detail else 200, json={"detail": detail})

    monkeypatch.setattr("thumbwise.training.rehearsal.home.httpx.get", get)
    monkeypatch.setattr("thumbwise.training.rehearsal.home.running_url", lambda home: "http://assistant")
    monkeypatch.setattr("thumbwise.training.rehearsal.home.time.sleep", lambda seconds: None)
    said: list[str] = []
    process: Any = SimpleNamespace(poll=lambda: None)
    assert _wait_ready(Home.find(tmp_path), process, tmp_path / "log", 60, said.append) == "http://assistant"
    assert said == ["vLLM is starting.", "The model is being read."]

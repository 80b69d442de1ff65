"""A rehearsal measures what people judged: its lengths, and the reward model's report beside the truth."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from thumbwise.contracts import Message, Prompt
from thumbwise.home import Home
from thumbwise.training import rehearsal_figures
from thumbwise.training.judged import Wanted
from thumbwise.training.raters import Bar, Crowd, Voting
from thumbwise.training.rehearsal import Plan, Rehearsal, begun_from
from thumbwise.training.rehearsal_home import environment
from thumbwise.training.rehearsal_report import table
from thumbwise.training.served import Api

PROMPTS = tuple(Prompt((Message(role="user", content=f"Question {n}?"),), f"g{n}") for n in range(12))


def plan(**changes: Any) -> Plan:
    voting = Voting(kind=changes.pop("kind", "thumb"), votes=2, seed=1)
    return Plan(judge="concise", voting=voting, voters=PROMPTS, held_out=PROMPTS, wanted=Wanted(12), **changes)


async def test_thumbs_are_given_on_replies_as_long_as_in_chat_and_comparisons_on_drafts(tmp_path: Path) -> None:
    asked: list[tuple[str, int]] = []

    def answer(request: httpx.Request) -> httpx.Response:
        body, path = json.loads(request.content), request.url.path
        if path == "/v1/feedback":
            return httpx.Response(201, json={"feedback_id": "f"})
        asked.append((path, body["max_tokens"]))
        if path == "/v1/comparisons":
            drafts = [{"draft_id": str(n), "text": "a" * (n + 1)} for n in range(body["k"])]
            return httpx.Response(201, json={"comparison_id": "c", "drafts": drafts})
        said = {"choices": [{"message": {"content": "a"}}], "thumbwise": {"message_id": "m"}}
        return httpx.Response(200, json=said)

    kinds: dict[str, Any] = {"thumb": ("/v1/chat/completions", 192), "pair": ("/v1/comparisons", 48)}
    for kind, expected in kinds.items():
        asked.clear()
        async with Api("http://assistant", 48, 192) as api:
            api.http = httpx.AsyncClient(base_url=api.url, transport=httpx.MockTransport(answer))
            voting = Voting(kind=kind, votes=3)  # type: ignore[arg-type]
            judge = lambda prompt, replies: [float(len(reply)) for reply in replies]  # noqa: E731
            assert await Crowd(api, voting, judge, PROMPTS, 1, tmp_path / kind, Bar(0.5, 1.0)).vote() == 3
        assert asked == [expected] * 3


def test_what_is_judged_is_as_long_as_what_people_voted_on(tmp_path: Path) -> None:
    assert plan(max_tokens=48, chat_tokens=192).tokens == 192
    assert plan(kind="pair", max_tokens=48, chat_tokens=192).tokens == 48
    asked: dict[str, set[int | None]] = {}

    def sample(prompts: list[Prompt], version: str, seed: int, done: Any) -> list[Any]:
        asked[version] = {prompt.max_tokens for prompt in prompts}
        return []

    rehearsal = Rehearsal(Home.find(tmp_path), plan(chat_tokens=192), SimpleNamespace(stage=lambda *_: None))  # type: ignore[arg-type]
    rehearsal._measure = lambda: SimpleNamespace(sample=sample)  # type: ignore[assignment,method-assign,return-value]
    rehearsal._start_replies()
    assert asked == {"policy-0000": {192}}
    assert rehearsal.settings.chat_max_tokens == 192
    assert rehearsal.env["THUMBWISE_CHAT_MAX_TOKENS"] == "192"
    assert environment(rehearsal.home, 48, 192, 0)["THUMBWISE_MAX_TOKENS"] == "48"


@pytest.mark.parametrize("right", [0.55, 0.8])
def test_a_reported_accuracy_cleaned_of_the_noise_is_the_accuracy_on_clean_votes(right: float) -> None:
    rng, wrong = random.Random(3), Voting(noise=0.1, adversarial=0.1).wrong
    assert wrong == pytest.approx(0.19)
    agreed = [(rng.random() < right) == (rng.random() >= wrong) for _ in range(20_000)]
    told = sum(agreed) / len(agreed)
    fit = {"accuracy": told, "n": len(agreed), "error": 0.004, "details": {}}
    found = rehearsal_figures.reward_model(fit, wrong, [[1, 2]] * 4, [[0, 1], [0, 1], [0, 1], [1, 0]])
    assert found["rm_cleaned"] == pytest.approx(right, abs=0.02)
    assert found["rm_cleaned_error"] == pytest.approx(0.004 / 0.62)
    assert (found["rm_accuracy"], found["rm_pairs"]) == (0.75, 4)
    assert found["rm_off"] == found["rm_cleaned"] - 0.75
    assert found["rm_off_error"] == math.hypot(0.004 / 0.62, found["rm_error"])


def test_nothing_is_cleaned_where_half_of_the_votes_are_wrong_or_none_were_alike() -> None:
    for fit, wrong in [({"n": 60}, 0.5), ({"n": 0}, 0.1)]:
        fit |= {"accuracy": 0.5, "error": None, "details": {"by": []}}
        assert "rm_cleaned" not in rehearsal_figures.reward_model(fit, wrong, [[1, 2]], [[0, 1]])


def test_a_round_that_begins_from_stable_is_told_from_one_that_begins_from_the_base() -> None:
    assert begun_from({"parent": "policy-0001-aa", "config": {"begin": "stable"}}) == "policy-0001-aa"
    assert begun_from({"parent": "policy-0001-aa", "config": {"begin": "base"}}) == "policy-0000"
    assert begun_from({"parent": "policy-0001-aa", "config": {}}) == "policy-0000"  # of an older build


def test_the_table_says_what_was_not_measured() -> None:
    rows = [{"round": 1, "rm_cleaned": None, "rm_accuracy": 0.7, "rm_error": 0.02, "promoted": True}]
    lines = table(rows).splitlines()
    assert "| the same, cleaned of the noise | not measured |" in lines
    assert "| reward model on clean pairs of start's replies | 0.700 (standard error 0.020) |" in lines

"""A rehearsal measures what people judged: its lengths, and the reward model's report beside the truth."""

from __future__ import annotations

import json
import math
import random
import sys
from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from tiny_model import ROUND
from training_world import CHAT, FakeAssistant, train

from thumbwise.contracts import Message, Prompt
from thumbwise.home import Home
from thumbwise.names import BASE
from thumbwise.training.rehearsal import figures as rehearsal_figures
from thumbwise.training.rehearsal.api_client import Api
from thumbwise.training.rehearsal.home import environment
from thumbwise.training.rehearsal.measure import Measure
from thumbwise.training.rehearsal.raters import Bar, Crowd, Voting
from thumbwise.training.rehearsal.report import table
from thumbwise.training.rehearsal.steps import Plan, Rehearsal
from thumbwise.training.rehearsal.win_rates import Wanted
from thumbwise.training.run.folders import write_json

PROMPTS = tuple(Prompt((Message(role="user", content=f"Question {n}?"),), f"g{n}") for n in range(12))


def plan(**changes: Any) -> Plan:
    voting = Voting(kind=changes.pop("kind", "thumb"), votes=2, seed=1)
    return Plan(
        judge="concise",
        voting=voting,
        voters=PROMPTS,
        held_out=PROMPTS,
        wanted=Wanted(12, replies=24, draws=12, best_of=4),
        **changes,
    )


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


def test_the_table_says_what_was_not_measured() -> None:
    rows = [{"round": 1, "rm_cleaned": None, "rm_accuracy": 0.7, "rm_error": 0.02, "promoted": True}]
    lines = table(rows).splitlines()
    assert "| the same, cleaned of the noise | not measured |" in lines
    assert "| reward model on clean pairs of start's replies | 0.700 (standard error 0.020) |" in lines


# --- a whole round, without an engine --------------------------------------------------------------------------------


def thumbs(measure: Measure) -> bytes:
    """Thumbs on replies in chat, up where there are many letters "e"."""
    asked = [replace(prompt, max_tokens=CHAT) for prompt in PROMPTS for _ in range(5)]
    lines = []
    for n, sample in enumerate(measure.sample(asked, BASE, 5)):
        reply = {
            "id": f"r{n}", "text": sample.response, "prompt_ids": sample.prompt_ids, "policy_version": BASE,
            "response_ids": sample.response_ids, "finish_reason": sample.finish_reason,
            "sampling": {"temperature": 0.7, "max_tokens": CHAT},
        }  # fmt: skip
        common = {"user": f"u{n % 4}", "group": f"g{n // 5}", "prompt": sample.prompt}
        lines.append({"type": "thumb", "id": f"t{n}", "up": sample.response.count("e") > 2, "reply": reply, **common})
        lines.append({"type": "prompt", **common})
    return "".join(json.dumps(line) + "\n" for line in lines).encode()


@pytest.fixture(scope="module")
def rehearsal(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Rehearsal:
    """A rehearsal whose only round is over; the stand-in for the assistant has heard its votes."""
    operator = Home.find(tmp_path_factory.mktemp("operator"))
    operator.config.write_text(f'model = "{tiny_model}"\n[train]\ndtype = "float32"\nlora_rank = 8\n')
    shown: Any = SimpleNamespace(stage=lambda *_: None, update=lambda *_: None, part=lambda *_: None)
    made = Rehearsal(operator, plan(max_tokens=8, chat_tokens=CHAT), shown)
    assistant = FakeAssistant(thumbs(made._measure()))
    result = train(made.folder, tiny_model, assistant)
    assert result.version is not None, result.reason
    for version, files in assistant.policies.items():
        folder = made.home.policies / version
        folder.mkdir()
        for name, data in files.items():
            (folder / name).write_bytes(data)
    folder, start = made.folder / "round-1", made._start_replies()
    folder.mkdir()
    write_json(folder / "train.json", result.as_json())
    write_json(folder / "figures.json", {"round": 1, "votes": 60, **made._figures(result.as_json(), start, folder)})
    return made


def figures(rehearsal: Rehearsal) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((rehearsal.folder / "round-1" / "figures.json").read_text())
    return found


def test_a_rounds_figures_are_of_replies_as_long_as_those_that_people_voted_on(rehearsal: Rehearsal) -> None:
    found = figures(rehearsal)
    fit = json.loads((rehearsal.home.runs / "run-1" / "fit.json").read_text())["fit"]
    assert found["tokens"] == CHAT
    assert 8 < found["start_length"] <= CHAT
    assert found["rm_reported"] == round(fit["accuracy"], 4)
    assert found["rm_votes"] == fit["n"]
    assert found["rm_error"] > 0
    assert found["kl"] > 0
    assert found["kl_token"] == pytest.approx(found["kl"] / found["length"], abs=1e-3)
    assert (found["begun_from"], found["kl_begun"]) == ("policy-0000", found["kl"])
    assert found["best_of_16_low"] <= found["best_of_16_win_rate"] <= found["best_of_16_high"]
    assert "| KL to what it began from, nats a reply |" in table([found])


def test_the_kl_to_what_a_round_began_from_is_not_that_to_the_base(rehearsal: Rehearsal) -> None:
    version, measure = figures(rehearsal)["version"], rehearsal._measure()
    measure.load("other", rehearsal.home.policies / version)
    samples = measure.sample(rehearsal.held_out, version, 1)
    found = measure.distances(samples, version, "other")
    assert found["kl_begun"] == pytest.approx(0.0, abs=1e-4)  # the same weights
    assert found["kl"] > found["kl_begun"]


@pytest.mark.slow
def test_an_older_build_is_trained_on_the_same_votes_and_judged_alike(rehearsal: Rehearsal, tmp_path: Path) -> None:
    bench = Path(__file__).parents[2] / "bench"
    sys.path[:0] = [str(bench), str(bench / "training")]
    import build_at
    import same_votes

    builds, small = tmp_path / "builds", ROUND.replace("iterations = 4", "iterations = 2\nepisodes = 8\nrm_heads = 2")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(same_votes, "build_at", lambda ref: build_at.build_at(ref, builds))
        patch.setattr(same_votes, "ROUND", small)
        args = Namespace(before="HEAD", quick=True)
        found = same_votes.measure(args, rehearsal.folder)
        again = same_votes.measure(args, rehearsal.folder)
    before = found["figures"]["before"]
    assert before["tokens"] == CHAT
    assert before["start_length"] == figures(rehearsal)["start_length"]  # against the same replies of start
    assert before["rm_pairs"] == figures(rehearsal)["rm_pairs"]
    assert {"low", "rate", "high"} <= set(found["figures"]["now over before"])
    assert again["figures"] == found["figures"]

"""Which prompts rollouts start from, how long they may be, and who samples them."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from tiny_model import make_tiny_model
from training_world import FakeAssistant, make_snapshot, train

from thumbwise.contracts import Message, Prompt, RunContext, Sample
from thumbwise.errors import ThumbwiseError
from thumbwise.feedback.records import sha256
from thumbwise.home import Home
from thumbwise.plugin_host.manager import PluginManager
from thumbwise.settings import Settings
from thumbwise.settings.training import TrainSettings
from thumbwise.training.data.prompts import KEPT, check_prompts, keep_prompts, our_prompts, seed_prompts
from thumbwise.training.job.dry_run import dry_run
from thumbwise.training.policy.ptx import general_chat
from thumbwise.training.policy.stepping import by_group, draw_prompts, sample_rollouts


class Backend:
    """Samples nothing: one token a reply, and what it was asked and at which temperature is kept."""

    asked: list[tuple[float, tuple[Prompt, ...]]] = []

    def __init__(self, context: RunContext) -> None:
        self.context = context

    def sample(self, prompts: Sequence[Prompt], adapter: str | None, seed: int) -> list[Sample]:
        Backend.asked.append((self.context.temperature, tuple(prompts)))
        return [Sample(p.messages, "", (1,), (2,), "stop", adapter or "base") for p in prompts]


class Base:
    reference = None


def prompts(n: int, group: str = "") -> tuple[Prompt, ...]:
    return tuple(Prompt((Message(role="user", content=f"{group} {i}"),), group or str(i)) for i in range(n))


def context(own: Sequence[Prompt], seeds: Sequence[Prompt], lengths: tuple[int, ...] = ()) -> RunContext:
    made = RunContext(
        Base(), TrainSettings(), 0.7, 48, tuple(own), tuple(seeds), Path(), lengths=lengths,  # type: ignore[arg-type]
    )  # fmt: skip
    Backend.asked.clear()
    return made.with_rollouts(Backend)


def said(drawn: Sequence[Prompt]) -> list[str]:
    return [prompt.messages[0]["content"] for prompt in drawn]


def test_peoples_prompts_and_ours_are_mixed_without_repeats() -> None:
    drawn = draw_prompts(context(prompts(5), prompts(50, "s")), 12, random.Random(0))
    assert len(drawn) == 12
    assert len({text for text in said(drawn) if text.startswith("s")}) == 6
    assert sum(prompt.group == "s" for prompt in drawn) == 6


def test_the_prompts_of_one_long_conversation_count_as_one() -> None:
    """Of 41 prompts 40 are turns of one conversation: drawn by prompt, they would be nearly all of people's half."""
    own = prompts(40, "long") + prompts(1, "short") + prompts(1, "other")
    drawn = Counter(
        prompt.group for n in range(50) for prompt in draw_prompts(context(own, prompts(30)), 12, random.Random(n))
    )
    assert drawn["long"] == drawn["short"] == drawn["other"] == 100


def test_no_group_has_a_second_turn_before_all_had_one_and_no_prompt_before_all_of_its_group() -> None:
    three = prompts(3, "a") + prompts(2, "b") + prompts(1, "c")
    drawn = by_group(three, 9, random.Random(0))
    assert [sorted({prompt.group for prompt in drawn[n : n + 3]}) for n in (0, 3, 6)] == [["a", "b", "c"]] * 3
    assert len(set(said(drawn))) == 6
    assert by_group((), 3, random.Random(0)) == []
    assert drawn == by_group(three, 9, random.Random(0))


def test_rollouts_have_the_lengths_that_people_judged_and_replies_to_one_prompt_share_theirs() -> None:
    made = context((), prompts(60), (48, 200, 200, 200))
    _, _ = sample_rollouts(made, 0, 60, replies=4)
    ((temperature, asked),) = Backend.asked
    assert temperature == 0.7
    limits = [prompt.max_tokens for prompt in asked]
    assert all(len(set(limits[n : n + 4])) == 1 for n in range(0, 240, 4))
    assert 30 <= Counter(limits[::4])[200] <= 55
    assert set(limits) == {48, 200}


def test_without_votes_that_say_how_long_they_have_the_runs_length() -> None:
    sample_rollouts(context((), prompts(3)), 0, 3)
    assert {prompt.max_tokens for prompt in Backend.asked[0][1]} == {48}


def test_general_chat_comes_from_the_runs_own_backend_at_temperature_1_and_at_peoples_lengths() -> None:
    made = context((), prompts(40), (30, 90))
    texts = general_chat(made, 20, "ptx")
    ((temperature, asked),) = Backend.asked
    assert temperature == 1.0
    assert {prompt.max_tokens for prompt in asked} == {30, 90}
    assert len(texts) == len({text.prompt[0]["content"] for text in texts}) == 20
    assert {text.policy_version for text in texts} == {"base"}


# --- the operator's own prompts -------------------------------------------------------------------------


def write(path: Path, n: int, **more: Any) -> Path:
    path.write_text("".join(json.dumps({"prompt": f"Ours {i}", **more}) + "\n" for i in range(n)))
    return path


def test_the_operators_prompts_join_those_that_ship(tmp_path: Path) -> None:
    settings = TrainSettings(prompts_file=str(write(tmp_path / "mine.jsonl", 3, group="x")))
    keep_prompts(settings, tmp_path)
    found = our_prompts(settings, tmp_path)
    assert said(found)[:3] == ["Ours 0", "Ours 1", "Ours 2"]
    assert found[3:] == seed_prompts()
    assert {prompt.group for prompt in found[:3]} == {"file:x"}


def test_the_operators_prompts_replace_those_that_ship(tmp_path: Path) -> None:
    settings = TrainSettings(prompts_file=str(write(tmp_path / "mine.jsonl", 40)), packaged_prompts=False)
    keep_prompts(settings, tmp_path)
    found = our_prompts(settings, tmp_path)
    assert len(found) == len({prompt.group for prompt in found}) == 40
    assert all(text.startswith("Ours") for text in said(found))
    assert our_prompts(TrainSettings(packaged_prompts=False), tmp_path) == ()


def test_one_that_ships_too_is_not_there_twice(tmp_path: Path) -> None:
    shipped = said(seed_prompts())
    path = tmp_path / "mine.jsonl"
    path.write_text(json.dumps({"prompt": shipped[5]}) + "\n")
    settings = TrainSettings(prompts_file=str(path))
    keep_prompts(settings, tmp_path)
    assert sorted(said(our_prompts(settings, tmp_path))) == sorted(shipped)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "There is no file"),
        ("", "is empty"),
        ("not JSON\n", "Line 1 of"),
        ('{"prompt": "a", "topic": "b"}\n', 'unknown key "topic"'),
        ('{"prompt": "a"}\n', "write at least 40, or set train.packaged_prompts"),
    ],
)
def test_a_file_that_is_wrong_is_one_sentence_before_a_run_is_registered(
    tmp_path: Path, text: str | None, says: str
) -> None:
    path = tmp_path / "mine.jsonl"
    if text is not None:
        path.write_text(text)
    settings = TrainSettings(prompts_file=str(path), packaged_prompts=False)
    with pytest.raises(ThumbwiseError) as found:
        check_prompts(settings)
    assert says in str(found.value)
    assert "\n" not in str(found.value)
    assistant = FakeAssistant(make_snapshot(40))
    with pytest.raises(ThumbwiseError):
        train(tmp_path, tmp_path, assistant, prompts_file=str(path), packaged_prompts=False)
    assert assistant.finished == []
    home, transport = Home.find(tmp_path / "home"), httpx.MockTransport(assistant.answer)
    with pytest.raises(ThumbwiseError) as again:  # a dry run is there to find it
        dry_run(home, Settings(train=settings), PluginManager(home).load(), "http://a", "t", "auto", transport)
    assert str(again.value) == str(found.value)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.mark.slow
def test_a_run_keeps_the_prompts_and_their_digest_and_goes_on_with_them(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "mine.jsonl", 40)
    path.write_text(path.read_text() + json.dumps({"prompt": "Too long for a rollout. " * 99}) + "\n")
    drawn: set[str] = set()

    def spied(context: RunContext, wanted: int, rng: random.Random) -> list[Prompt]:
        found = draw_prompts(replace(context, prompts=()), wanted, rng)
        drawn.update(said(found))
        return found

    monkeypatch.setattr("thumbwise.training.policy.stepping.draw_prompts", spied)
    result = train(
        tmp_path, model, FakeAssistant(make_snapshot(40)), prompts_file=str(path), packaged_prompts=False
    )  # fmt: skip
    assert result.outcome in ("promoted", "rejected"), result.reason
    assert all(text.startswith("Ours") for text in drawn)
    (run,) = (tmp_path / "home" / "runs").iterdir()
    assert (run / KEPT).read_bytes() == path.read_bytes()  # with the one that is too long
    (manifest,) = run.glob("policy-*/manifest.json")
    assert json.loads(manifest.read_text())["config"]["prompts_file"] == sha256(path.read_bytes())
    path.unlink()
    assert keep_prompts(TrainSettings(prompts_file=str(path)), run) == sha256((run / KEPT).read_bytes())


def test_without_any_prompt_the_run_ends_with_what_to_do(model: Path, tmp_path: Path) -> None:
    bare = b"".join(
        line + b"\n" for line in make_snapshot(40).splitlines() if json.loads(line)["type"] != "prompt"
    )  # fmt: skip
    result = train(tmp_path, model, FakeAssistant(bare), packaged_prompts=False)
    assert result.outcome == "failed"
    assert "set train.packaged_prompts, give more with `train --prompts FILE`" in result.reason

"""How people took each version, counted from what they met."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from fakes import asker

from thumbwise.cli.main import main
from thumbwise.contracts import Message
from thumbwise.feedback.reception import Preference, Reception, reception
from thumbwise.feedback.records import FeedbackRequest, ReplyState
from thumbwise.feedback.store import Store

ASK: list[Message] = [{"role": "user", "content": "Why is the sky blue?"}]


def reply(store: Store, version: str, tokens: int, state: ReplyState = "done", end: str = "stop") -> str:
    message = store.start_reply(asker(), ASK, version, {})
    store.finish_reply(message, state, text="Because.", finish_reason=end, response_ids=range(tokens))
    return message


def vote(store: Store, kind: str, target: str, value: Any) -> None:
    on = "message_id" if kind == "thumb" else "comparison_id"
    key = f"{target}-{len(store.rows('SELECT seq FROM feedback'))}"
    store.add_feedback(asker(), key, FeedbackRequest.model_validate({"kind": kind, on: target, "value": value}))


def compare(store: Store, versions: Sequence[str]) -> tuple[str, list[str]]:
    comparison, drafts = store.start_comparison(asker(), ASK, versions, {}, "api")
    for draft in drafts:
        store.finish_reply(draft, "done", text="So.", finish_reason="length", response_ids=[1])
    return comparison, drafts


def by_version(store: Store) -> dict[str, Reception]:
    return {row.version: row for row in reception(store)}


def test_length_is_of_whole_replies_outside_comparisons(store: Store) -> None:
    for tokens, end in ((100, "stop"), (512, "length"), (40, "stop"), (20, "stop")):
        reply(store, "a", tokens, end=end)
    reply(store, "a", 5, "stopped")
    reply(store, "a", 3, "failed")
    compare(store, ["a", "b"])
    store.start_reply(asker(), ASK, "a", {})  # streams still
    found = by_version(store)
    assert found["a"] == Reception("a", 4, 1, 1, 168.0, 0.75, 0, 0, {})
    assert found["b"] == Reception("b", 0, 0, 0, None, None, 0, 0, {})


def test_of_several_thumbs_on_a_reply_the_last_one_counts(store: Store) -> None:
    first, second, third = (reply(store, "a", 4) for _ in range(3))
    for message, value in ((first, "up"), (first, "down"), (second, "up"), (third, "up"), (third, "clear")):
        vote(store, "thumb", message, value)
    assert (by_version(store)["a"].up, by_version(store)["a"].down) == (1, 1)


def test_a_preference_is_between_versions_and_a_tie_is_half(store: Store) -> None:
    for choice in ("left", "tie", "skip", "both_bad"):
        vote(store, "pair", compare(store, ["a", "b"])[0], {"choice": choice})
    vote(store, "pair", compare(store, ["b", "a"])[0], {"choice": "right"})
    vote(store, "pair", compare(store, ["a", "a"])[0], {"choice": "left"})
    compare(store, ["a", "b"])  # nobody voted
    found = by_version(store)
    assert found["a"].preferred == {"b": Preference(3, 4)}
    assert found["b"].preferred == {"a": Preference(1, 4)}


def test_a_ranking_counts_by_its_pairs(store: Store) -> None:
    comparison, (one, two, three, four) = compare(store, ["a", "b", "b", "c"])
    vote(store, "rank", comparison, {"tiers": [[two], [one, three], [four]]})
    vote(store, "rank", compare(store, ["a", "b", "b"])[0], "none_usable")
    found = by_version(store)
    assert found["a"].preferred == {"b": Preference(0.5, 2), "c": Preference(1, 1)}
    assert found["b"].preferred == {"a": Preference(1.5, 2), "c": Preference(2, 2)}
    assert found["c"].preferred == {"a": Preference(0, 1), "b": Preference(0, 2)}


def test_the_command_shows_it_without_a_running_assistant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THUMBWISE_HOME", str(tmp_path))
    assert "There are no replies yet." in CliRunner().invoke(main, ["policies", "people"]).stdout
    store = Store(tmp_path / "feedback.db")
    vote(store, "thumb", reply(store, "policy-0000", 60), "up")
    vote(store, "pair", compare(store, ["policy-0000", "policy-0001-0b"])[0], {"choice": "left"})
    store.close()
    lines = CliRunner().invoke(main, ["policies", "people"]).stdout.splitlines()
    assert lines[1].split() == ["policy-0000", "1", "0", "60", "100%", "1", "0"]
    assert lines[2].split() == ["policy-0001-0b", "0", "0", "0", "0", "0000:", "0%", "of", "1"]
    (base, other) = json.loads(CliRunner().invoke(main, ["policies", "people", "--json"]).stdout)
    assert base["tokens"] == 60.0
    assert other["preferred"] == {"policy-0000": {"won": 0.0, "pairs": 1}}

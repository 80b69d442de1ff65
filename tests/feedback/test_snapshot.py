"""What a snapshot holds, how it is written, and that nobody waits for it."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from fakes import asker
from stored import ASK, SAMPLING, comparison, pair, reply, thumb

from thumbwise.contracts import Message
from thumbwise.errors import NotFound
from thumbwise.feedback import snapshot
from thumbwise.feedback.records import FeedbackRequest, canonical, sha256
from thumbwise.feedback.snapshot import snapshot_path, take_snapshot
from thumbwise.feedback.store import Store
from thumbwise.training.data.snapshot import parse


def read_snapshot(folder: Path, snapshot_id: str) -> bytes:
    return snapshot_path(folder, snapshot_id).read_bytes()


def test_a_snapshot_is_its_owners_alone_and_what_a_killed_process_left_is_removed(store: Store, tmp_path: Path) -> None:
    (folder := tmp_path / "snapshots").mkdir()
    (folder / ".making-0123abcd-4567").write_text("half of")
    store.add_feedback(asker(), "k", thumb(reply(store)))
    path = snapshot_path(folder, take_snapshot(store, folder))
    assert [path] == list(folder.iterdir())
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_snapshot_that_cannot_be_written_leaves_nothing(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder := tmp_path / "snapshots").mkdir()
    monkeypatch.setattr(snapshot, "canonical", lambda _: Path("/dev/full").write_text("x"))
    reply(store)
    with pytest.raises(OSError, match="No space left"):
        take_snapshot(store, folder)
    assert list(folder.iterdir()) == []


def test_a_snapshot_holds_votes_and_token_ids_and_is_named_by_its_content(store: Store, tmp_path: Path) -> None:
    comparison_id, _ = comparison(store)
    skipped, _ = comparison(store)
    up, cleared = reply(store), reply(store)
    store.add_feedback(asker(), "k1", pair(comparison_id, "right"))
    store.add_feedback(asker(), "k2", pair(skipped, "skip"))
    store.add_feedback(asker(), "k3", thumb(up))
    store.add_feedback(asker(), "k4", thumb(cleared, "clear"))
    comment = FeedbackRequest(kind="comment", message_id=up, value={"text": "nice"})
    store.add_feedback(asker(), "k5", comment)
    corrected = FeedbackRequest(kind="edit", message_id=up, value={"text": "Because of Rayleigh."})
    store.add_feedback(asker(), "k6", corrected)
    snapshot_id = take_snapshot(store, tmp_path)
    data = read_snapshot(tmp_path, snapshot_id)
    lines = [json.loads(line) for line in data.splitlines()]
    assert sha256(data) == snapshot_id == take_snapshot(store, tmp_path)
    assert [line["type"] for line in lines] == ["comparison", "thumb", "comment", "demonstration", "prompt"]
    assert lines[0]["choice"] == "right"
    assert lines[0]["left"]["text"] == "one"
    assert lines[1]["reply"]["response_ids"] == [3, 4]
    assert lines[3]["text"] == "Because of Rayleigh."
    assert parse(data).demonstrations[0].prompt == tuple(ASK)
    assert {line["group"] for line in lines} == {sha256(canonical(ASK))}


def test_votes_do_not_wait_while_a_snapshot_is_put_together(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    up = reply(store)
    store.add_feedback(asker(), "k", thumb(up))

    def vote_meanwhile(row: Any) -> Any:
        with ThreadPoolExecutor(1) as others:
            others.submit(store.add_feedback, asker(), "meanwhile", thumb(up, "clear")).result(timeout=60)
        return line_of(row)

    line_of = snapshot._on_reply
    monkeypatch.setattr(snapshot, "_on_reply", vote_meanwhile)
    data = read_snapshot(tmp_path, take_snapshot(store, tmp_path))
    assert json.loads(data.splitlines()[0])["up"] is True  # of one moment


def test_all_turns_of_a_conversation_are_one_group_and_other_conversations_are_others(
    store: Store, tmp_path: Path
) -> None:
    system: Message = {"role": "system", "content": "Be brief."}
    said: Message = {"role": "assistant", "content": "Because."}
    asks = [ASK, [*ASK, said, {"role": "user", "content": "Why?"}], [*ASK, said, *ASK], [system, *ASK]]
    for number, ask in enumerate(asks):
        message = store.start_reply(asker(), ask, "policy-0000", SAMPLING)
        store.finish_reply(message, "done", text="x", finish_reason="stop", prompt_ids=[1], response_ids=[3])
        store.add_feedback(asker(), f"k{number}", thumb(message))
    lines = [json.loads(line) for line in read_snapshot(tmp_path, take_snapshot(store, tmp_path)).splitlines()]
    groups = {canonical(line["prompt"]): line["group"] for line in lines}
    assert len(groups) == 4
    assert len(set(groups.values())) == 2
    assert groups[canonical([system, *ASK])] == sha256(canonical([system, *ASK]))


def test_a_ranking_is_exported_in_shown_order_with_the_tier_of_each_draft(store: Store, tmp_path: Path) -> None:
    comparison_id, (a, b, c) = comparison(store, texts=("one", "two", "three"))
    unusable, _ = comparison(store, texts=("one", "two", "three"))
    rank = FeedbackRequest(kind="rank", comparison_id=comparison_id, value={"tiers": [[c], [a, b]]})
    store.add_feedback(asker(), "k1", rank)
    none = FeedbackRequest(kind="rank", comparison_id=unusable, value="none_usable")
    store.add_feedback(asker(), "k2", none)
    lines = [json.loads(line) for line in read_snapshot(tmp_path, take_snapshot(store, tmp_path)).splitlines()]
    assert [line["type"] for line in lines] == ["ranking", "prompt"]
    assert [draft["text"] for draft in lines[0]["drafts"]] == ["one", "two", "three"]
    assert lines[0]["tiers"] == [1, 1, 0]
    (ranking,) = parse(read_snapshot(tmp_path, take_snapshot(store, tmp_path))).labels.rankings
    assert ([d.response for d in ranking.drafts], ranking.tiers) == (["one", "two", "three"], (1, 1, 0))


def test_a_thumb_up_on_a_flagged_reply_is_not_learned_from(store: Store, tmp_path: Path) -> None:
    liked, disliked, other = (reply(store) for _ in range(3))
    for message, value in ((liked, "up"), (disliked, "down"), (other, "up")):
        store.add_feedback(asker(), f"thumb {message}", thumb(message, value))
    store.add_feedback(asker(), "edit", FeedbackRequest(kind="edit", message_id=liked, value={"text": "Better."}))

    def exported() -> list[tuple[str, bool | None]]:
        lines = [json.loads(line) for line in read_snapshot(tmp_path, take_snapshot(store, tmp_path)).splitlines()]
        return [(line["type"], line.get("up")) for line in lines if line["type"] != "prompt"]

    flag = {"kind": "flag", "value": {"reason": "It says how to hurt somebody."}}
    store.add_feedback(asker(), "flag 1", FeedbackRequest(message_id=disliked, **flag))
    assert exported() == [("thumb", True), ("thumb", False), ("thumb", True), ("demonstration", None)]
    store.add_feedback(asker(), "flag 2", FeedbackRequest(message_id=liked, **flag))
    assert exported() == [("thumb", False), ("thumb", True), ("demonstration", None)]


@pytest.mark.parametrize("state", ["stopped", "failed"])
def test_an_unfinished_reply_never_reaches_a_snapshot(store: Store, tmp_path: Path, state: str) -> None:
    message_id = reply(store, state=state)
    if state == "stopped":
        store.add_feedback(asker(), "k", thumb(message_id))
    assert read_snapshot(tmp_path, take_snapshot(store, tmp_path)) == b""


@pytest.mark.parametrize("name", ["../feedback", "a" * 64, "x"])
def test_a_snapshot_id_that_is_not_one_is_not_found(tmp_path: Path, name: str) -> None:
    with pytest.raises(NotFound):
        read_snapshot(tmp_path, name)

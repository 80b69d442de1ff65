"""The feedback database: durability, idempotency, ownership, and what a snapshot holds."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from fakes import asker
from sqlite_utils import Database

from thumbwise.contracts import Message
from thumbwise.errors import Conflict, NotFound, ThumbwiseError
from thumbwise.feedback import snapshot
from thumbwise.feedback.migrations import migrations
from thumbwise.feedback.records import FeedbackRequest, canonical, sha256
from thumbwise.feedback.snapshot import read_snapshot, take_snapshot
from thumbwise.feedback.store import Store
from thumbwise.training.data import parse

ASK: list[Message] = [{"role": "user", "content": "Why is the sky blue?"}]
SAMPLING = {"temperature": 0.7, "max_tokens": 48}


def reply(store: Store, user: str = "local", text: str = "Because.", state: str = "done") -> str:
    message_id = store.start_reply(asker(user), ASK, "policy-0000", SAMPLING)
    store.finish_reply(message_id, state, text=text, finish_reason="stop", prompt_ids=[1, 2], response_ids=[3, 4])
    return message_id


def comparison(store: Store, user: str = "local", texts: tuple[str, ...] = ("one", "two")) -> tuple[str, list[str]]:
    comparison_id, drafts = store.start_comparison(asker(user), ASK, ["policy-0000"] * len(texts), SAMPLING, "api")
    for draft, text in zip(drafts, texts, strict=True):
        store.finish_reply(draft, "done", text=text, finish_reason="length", prompt_ids=[1], response_ids=[5])
    return comparison_id, drafts


def thumb(message_id: str, value: str = "up") -> FeedbackRequest:
    return FeedbackRequest(kind="thumb", message_id=message_id, value=value)


def pair(comparison_id: str, choice: str = "left") -> FeedbackRequest:
    return FeedbackRequest(kind="pair", comparison_id=comparison_id, value={"choice": choice})


def test_the_database_is_opened_with_durable_settings(store: Store) -> None:
    pragmas = {name: store.rows(f"PRAGMA {name}")[0] for name in ("journal_mode", "synchronous", "foreign_keys")}
    assert [next(iter(row.values())) for row in pragmas.values()] == ["wal", 2, 1]


def test_a_comparisons_drafts_are_found_without_reading_every_reply(store: Store) -> None:
    found = store.rows("EXPLAIN QUERY PLAN SELECT * FROM replies WHERE comparison_id = 'c'")
    assert "USING INDEX" in found[0]["detail"]


def test_migrations_run_once_and_again_change_nothing(tmp_path: Path) -> None:
    for _ in range(2):
        Store(tmp_path / "feedback.db").close()
    db = Database(tmp_path / "feedback.db")
    names = [m.name for m in migrations.applied(db)]
    assert names[:3] == ["m001_first", "m002_by_version", "m003_by_comparison"]
    assert len(names) == len(set(names))
    assert migrations.pending(db) == []
    assert db["feedback"].count == 0


@pytest.mark.parametrize(
    ("reason", "tokens", "cut"),
    [("stop", 3, ""), ("length", 48, "length"), ("length", 47, "context"), ("length", 0, "context")],
)
def test_a_reply_that_broke_off_says_whether_its_own_limit_or_the_context_ended_it(
    store: Store, reason: str, tokens: int, cut: str
) -> None:
    message_id = store.start_reply(asker(), ASK, "policy-0000", SAMPLING)
    store.finish_reply(message_id, "done", text="x", finish_reason=reason, response_ids=[5] * tokens)
    assert store.reply(message_id, "local").cut == cut


def test_no_method_leaves_a_transaction_open(store: Store) -> None:
    message_id = reply(store)
    comparison_id, _ = comparison(store)
    store.add_feedback(asker(), "k1", thumb(message_id))
    store.add_feedback(asker(), "k2", pair(comparison_id))
    with pytest.raises(NotFound):
        store.add_feedback(asker(), "k3", thumb("msg_unknown"))
    store.fail_unfinished()
    assert not store.db.conn.in_transaction


def test_a_vote_is_visible_to_another_connection_as_soon_as_it_is_acknowledged(store: Store, tmp_path: Path) -> None:
    feedback_id, _ = store.add_feedback(asker(), "k1", thumb(reply(store)))
    other = sqlite3.connect(f"file:{tmp_path / 'feedback.db'}?mode=ro", uri=True)
    assert other.execute("SELECT id FROM feedback").fetchall() == [(feedback_id,)]
    other.close()


def test_the_same_key_and_body_give_the_same_id_and_one_row(store: Store) -> None:
    message_id = reply(store)
    first = store.add_feedback(asker(), "key", thumb(message_id))
    again = store.add_feedback(asker(), "key", thumb(message_id))
    assert (first[1], again) == (True, (first[0], False))
    assert store.counts()["thumb"] == 1


def test_the_same_key_with_another_body_is_a_conflict(store: Store) -> None:
    message_id = reply(store)
    store.add_feedback(asker(), "key", thumb(message_id, "up"))
    with pytest.raises(Conflict, match="Idempotency-Key"):
        store.add_feedback(asker(), "key", thumb(message_id, "down"))
    assert store.reply(message_id, "local").thumb == "up"


def test_a_key_belongs_to_its_user(store: Store) -> None:
    mine, theirs = reply(store, "ann"), reply(store, "bob")
    assert (
        store.add_feedback(asker("ann"), "key", thumb(mine))[0]
        != store.add_feedback(asker("bob"), "key", thumb(theirs))[0]
    )


def test_feedback_is_append_only_and_the_latest_thumb_counts(store: Store) -> None:
    message_id = reply(store)
    for i, value in enumerate(("up", "down", "clear", "down")):
        store.add_feedback(asker(), f"k{i}", thumb(message_id, value))
    assert store.counts()["thumb"] == 4
    assert store.reply(message_id, "local").thumb == "down"
    assert len(store.rows("SELECT * FROM current_feedback")) == 1


def test_only_the_user_who_was_given_a_message_may_judge_it(store: Store) -> None:
    message_id = reply(store, "ann")
    comparison_id, _ = comparison(store, "ann")
    with pytest.raises(NotFound):
        store.add_feedback(asker("bob"), "k1", thumb(message_id))
    with pytest.raises(NotFound):
        store.add_feedback(asker("bob"), "k2", pair(comparison_id))
    assert store.counts() == {"untied_pairs": 0}


def test_a_reply_that_is_still_streaming_or_failed_takes_no_vote(store: Store) -> None:
    streaming = store.start_reply(asker(), ASK, "policy-0000", SAMPLING)
    failed = reply(store, state="failed")
    for message_id in (streaming, failed):
        with pytest.raises(Conflict):
            store.add_feedback(asker(), message_id, thumb(message_id))


def test_a_comparison_takes_one_vote(store: Store) -> None:
    comparison_id, drafts = comparison(store)
    store.add_feedback(asker(), "k1", pair(comparison_id, "left"))
    with pytest.raises(Conflict, match="already"):
        store.add_feedback(asker(), "k2", pair(comparison_id, "right"))
    with pytest.raises(Conflict, match="together"):
        store.add_feedback(asker(), "k3", thumb(drafts[0]))
    assert store.comparison(comparison_id, "local").choice == "left"


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"kind": "thumb", "message_id": "m", "value": "sideways"}, "thumb"),
        ({"kind": "thumb", "comparison_id": "c", "value": "up"}, "message_id"),
        ({"kind": "thumb", "message_id": "m", "comparison_id": "c", "value": "up"}, "comparison_id"),
        ({"kind": "pair", "comparison_id": "c", "value": {"choice": "left", "strength": 3}}, "strength"),
        ({"kind": "pair", "comparison_id": "c", "value": {"choice": "left", "weight": 9}}, "weight"),
        ({"kind": "rank", "comparison_id": "c", "value": {"tiers": [["a"], ["a"]]}}, "one tier"),
        ({"kind": "likert", "message_id": "m", "value": {"overall": 8}}, "overall"),
        ({"kind": "comment", "message_id": "m", "value": {"text": ""}}, "text"),
    ],
)
def test_a_wrong_vote_is_refused_with_a_sentence_that_names_the_fault(body: dict[str, object], says: str) -> None:
    with pytest.raises(ThumbwiseError, match=says):
        FeedbackRequest(**body).checked()


def test_a_rank_names_every_draft_once(store: Store) -> None:
    comparison_id, drafts = comparison(store, texts=("a", "b", "c"))
    wrong = FeedbackRequest(kind="rank", comparison_id=comparison_id, value={"tiers": [[drafts[0]]]})
    with pytest.raises(ThumbwiseError, match="every draft"):
        store.add_feedback(asker(), "k1", wrong)
    right = FeedbackRequest(kind="rank", comparison_id=comparison_id, value={"tiers": [drafts[1:], drafts[:1]]})
    assert store.add_feedback(asker(), "k2", right)[1]


def test_replies_cut_off_by_a_crash_become_failed_at_the_next_start(store: Store) -> None:
    cut = store.start_reply(asker(), ASK, "policy-0000", SAMPLING)
    kept = reply(store)
    assert store.fail_unfinished() == 1
    assert [store.reply(m, "local").state for m in (cut, kept)] == ["failed", "done"]


def test_a_finished_reply_is_never_changed_again(store: Store) -> None:
    message_id = reply(store, text="first")
    store.finish_reply(message_id, "done", text="second", finish_reason="stop")
    assert store.reply(message_id, "local").text == "first"


def test_a_conversation_is_rebuilt_from_its_newest_reply(store: Store) -> None:
    talk = store.start_conversation("local", "Sky")
    ids: list[str] = []
    for text in ("one", "two", "three"):
        parent = ids[-1] if ids else None
        ids.append(store.start_reply(asker(), ASK, "policy-0000", SAMPLING, conversation_id=talk, parent_id=parent))
        store.finish_reply(ids[-1], "done", text=text, finish_reason="stop")
    assert [r.text for r in store.conversation(talk, "local")] == ["one", "two", "three"]
    assert store.conversation(talk, "somebody else") == []


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

    def vote_meanwhile(row: Any, replies: Any) -> Any:
        with ThreadPoolExecutor(1) as others:
            others.submit(store.add_feedback, asker(), "meanwhile", thumb(up, "clear")).result(timeout=10)
        return line_of(row, replies)

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


def test_many_threads_can_vote_at_once(store: Store) -> None:
    ids = [reply(store) for _ in range(20)]
    threads = [threading.Thread(target=store.add_feedback, args=(asker(), m, thumb(m))) for m in ids]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert store.counts()["thumb"] == 20


def test_a_full_disk_is_one_sentence_and_nothing_is_half_saved(store: Store) -> None:
    message_id = reply(store)
    pages = store.rows("PRAGMA page_count")[0]["page_count"]
    store.db.execute(f"PRAGMA max_page_count = {pages}")

    def vote_until_full() -> None:
        for i in range(200):
            store.add_feedback(asker(), f"k{i}", thumb(message_id))

    with pytest.raises(ThumbwiseError, match="nothing was saved"):
        vote_until_full()
    saved = store.counts()["thumb"]
    store.db.execute("PRAGMA max_page_count = 1000000")
    store.add_feedback(asker(), "later", thumb(message_id))
    assert store.counts()["thumb"] == saved + 1


def _vote_until_killed(path: str, pipe: multiprocessing.connection.Connection) -> None:  # type: ignore[name-defined]
    store = Store(Path(path))
    message_id = reply(store)
    for i in range(100_000):
        pipe.send(store.add_feedback(asker(), f"k{i}", thumb(message_id))[0])


def test_votes_acknowledged_before_a_kill_are_there_after_it(tmp_path: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    mine, theirs = spawn.Pipe(duplex=False)
    child = spawn.Process(target=_vote_until_killed, args=(str(tmp_path / "feedback.db"), theirs))
    child.start()
    acknowledged = [mine.recv() for _ in range(40)]
    assert child.pid is not None
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    theirs.close()
    while mine.poll():
        try:
            acknowledged.append(mine.recv())
        except EOFError:
            break
    store = Store(tmp_path / "feedback.db")
    kept = {row["id"] for row in store.rows("SELECT id FROM feedback")}
    assert set(acknowledged) <= kept
    assert store.rows("PRAGMA integrity_check") == [{"integrity_check": "ok"}]
    store.close()

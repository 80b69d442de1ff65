"""The feedback database: durability, idempotency, ownership, and what a snapshot holds."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sqlite3
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from fakes import asker
from sqlite_utils import Database
from stored import ASK, SAMPLING, comparison, pair, reply, thumb

from thumbwise.contracts import Message
from thumbwise.errors import Conflict, NotFound, ThumbwiseError
from thumbwise.feedback import records
from thumbwise.feedback.migrations import migrations
from thumbwise.feedback.records import REFUSED, FeedbackRequest, canonical
from thumbwise.feedback.store import Store


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
    assert len(store.rows("SELECT * FROM current_on_replies")) == 1


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


def turn(store: Store, talk: str, question: str) -> None:
    """Ask in a conversation as the page does: below its last reply."""
    path = store.conversation(talk, "local")
    asked: list[Message] = [{"role": "user", "content": question}]
    parent = path[-1].id if path else None
    id_ = store.start_reply(asker(), asked, "policy-0000", SAMPLING, conversation_id=talk, parent_id=parent)
    store.finish_reply(id_, "done", text="Yes.", finish_reason="stop")


def questions(store: Store, talk: str) -> list[str]:
    return [reply.prompt[-1]["content"] for reply in store.conversation(talk, "local")]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Set the clock forward by so many hours, or back."""
    now = time.time_ns

    def set_(hours: int) -> None:
        monkeypatch.setattr(records.time, "time_ns", lambda: now() + hours * 3600 * 10**9)

    return set_


def test_a_clock_that_is_set_back_loses_no_turn(store: Store, clock: Callable[[int], None]) -> None:
    talk = store.start_conversation("local", "Sky")
    for number, hours in enumerate((0, -1, -2, 3, -5)):
        clock(hours)
        turn(store, talk, f"q{number}")
        assert questions(store, talk) == [f"q{n}" for n in range(number + 1)]


def test_conversations_are_listed_by_their_last_question_whatever_the_clock_says(
    store: Store, clock: Callable[[int], None]
) -> None:
    first = store.start_conversation("local", "first")
    clock(-1)
    second = store.start_conversation("local", "second")
    assert [id_ for id_, _ in store.conversations("local", 9)] == [second, first]
    turn(store, first, "q")
    clock(-2)
    assert [id_ for id_, _ in store.conversations("local", 9)] == [first, second]
    turn(store, second, "q")
    assert [id_ for id_, _ in store.conversations("local", 1)] == [second]
    assert store.conversations("somebody else", 9) == []


def test_an_older_home_keeps_its_conversations_and_their_order(tmp_path: Path) -> None:
    """Also where the clock had gone back in it: the order of writing counts."""
    with closing(sqlite3.connect(tmp_path / "feedback.db", isolation_level=None)) as connection:
        db = Database(connection)
        migrations.apply(db, stop_before="m004_current_by_target")
        db.execute("INSERT INTO prompts VALUES ('p', ?)", [canonical(ASK)])
        for number, talk in enumerate(("empty", "old", "new")):
            db.execute("INSERT INTO conversations VALUES (?, 'local', ?, ?)", [talk, talk, number])
        insert = (
            "INSERT INTO replies (id, user_id, prompt_sha256, conversation_id, parent_id, policy_version, sampling,"
        )
        insert += " state, created_at) VALUES (?, 'local', 'p', ?, ?, 'policy-0000', '{}', 'done', ?)"
        for row in (("o1", "old", None, 10), ("o2", "old", "o1", 90), ("n1", "new", None, 99), ("o3", "old", "o2", 20)):
            db.execute(insert, row)
    store = Store(tmp_path / "feedback.db")
    assert [reply.id for reply in store.conversation("old", "local")] == ["o1", "o2", "o3"]
    assert [id_ for id_, _ in store.conversations("local", 9)] == ["new", "old", "empty"]
    turn(store, "empty", "q")
    assert [id_ for id_, _ in store.conversations("local", 9)] == ["empty", "new", "old"]
    store.close()


def test_votes_are_counted_the_same_whether_before_or_after_the_first_look(store: Store) -> None:
    votes = [thumb(reply(store)), pair(comparison(store)[0], "left"), pair(comparison(store)[0], "tie")]
    store.add_feedback(asker(), "k0", thumb(reply(store)))
    counted = store.counts()
    for number, vote in enumerate(votes, 1):
        store.add_feedback(asker(), f"k{number}", vote)
    store.add_feedback(asker(), "k1", votes[0])  # once more
    with closing(Store(store.path)) as other:
        assert store.counts() == other.counts() == {"thumb": 2, "pair": 2, "untied_pairs": 1}
    assert counted == {"thumb": 1, "untied_pairs": 0}


LONG: list[Message] = [
    {"role": "user", "content": "Hello."},
    {"role": "assistant", "content": "Yes?"},
    {"role": "user", "content": "long " * 40_000},
]


def stored(store: Store) -> int:
    """Characters of all prompts."""
    return int(store.rows("SELECT coalesce(sum(length(messages)), 0) AS n FROM prompts")[0]["n"])


@pytest.mark.parametrize(("state", "reason"), [("failed", REFUSED), ("failed", None), ("stopped", "stopped")])
def test_a_prompt_that_nothing_came_of_does_not_stay_on_the_disk(store: Store, state: str, reason: str | None) -> None:
    for number in range(5):
        asked = [*LONG[:-1], {**LONG[-1], "content": f"{number} {LONG[-1]['content']}"}]
        message = store.start_reply(asker("app"), asked, "policy-0000", SAMPLING)
        assert len(store.reply(message, "app").prompt) == 3
        store.finish_reply(message, state, text="", finish_reason=reason)
        (kept,) = store.reply(message, "app").prompt
        assert kept["content"].startswith(f"{number} long long")
    assert stored(store) < 10_000
    assert store.rows("PRAGMA foreign_key_check") == []


def test_what_a_reader_of_a_conversation_asked_is_kept_where_vllm_refused_it(store: Store) -> None:
    talk = store.start_conversation("local", "Sky")
    asked = [*LONG[:-1], {**LONG[-1], "content": "long " * 3_000}]
    message = store.start_reply(asker(), asked, "policy-0000", SAMPLING, conversation_id=talk)
    store.finish_reply(message, "failed", text="", finish_reason=REFUSED, error="It is too long.")
    assert store.conversation(talk, "local")[0].prompt == (asked[-1],)


def test_a_reply_that_was_stopped_in_the_middle_keeps_its_prompt(store: Store) -> None:
    message = store.start_reply(asker(), LONG, "policy-0000", SAMPLING)
    store.finish_reply(message, "stopped", text="Beca", finish_reason="stopped")
    assert store.reply(message, "local").prompt == tuple(LONG)


def test_a_refused_prompt_that_something_else_refers_to_stays(store: Store) -> None:
    done = store.start_reply(asker(), LONG, "policy-0000", SAMPLING)
    store.finish_reply(done, "done", text="Yes.", finish_reason="stop")
    refused = store.start_reply(asker(), LONG, "policy-0000", SAMPLING)
    store.finish_reply(refused, "failed", text="", finish_reason=REFUSED)
    assert store.reply(done, "local").prompt == tuple(LONG)
    assert len(store.reply(refused, "local").prompt) == 1


def test_a_comparisons_prompt_is_shortened_once_all_drafts_were_refused(store: Store) -> None:
    id_, (one, two) = store.start_comparison(asker(), LONG, ["policy-0000"] * 2, SAMPLING, "api")
    store.finish_reply(one, "failed", text="", finish_reason=REFUSED)
    assert store.comparison(id_, "local").prompt == tuple(LONG)  # the other one is still being written
    store.finish_reply(two, "failed", text="", finish_reason=REFUSED)
    assert len(store.comparison(id_, "local").prompt) == 1
    assert stored(store) < 2_000
    assert store.rows("PRAGMA foreign_key_check") == []


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

"""What people want to be forgotten: gone from the rows and from the bytes of the database; all else stays."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from fakes import asker
from stored import SAMPLING, pair, thumb

from thumbwise.contracts import Message
from thumbwise.errors import Conflict, NotFound
from thumbwise.feedback import forget, redaction
from thumbwise.feedback.consent import Consents
from thumbwise.feedback.forget import unfinished
from thumbwise.feedback.records import Asker, FeedbackRequest
from thumbwise.feedback.snapshot import snapshot_path, take_snapshot
from thumbwise.feedback.store import Store

ANN, BEN = "usr_ann", "usr_ben"


def ask(text: str) -> list[Message]:
    return [{"role": "user", "content": text}]


def said(store: Store, user: str, text: str, **more: Any) -> str:
    """A whole reply to a question that holds `text`, as the reply does."""
    sampling = SAMPLING | {"stop": [f"stop-{text}"]}
    message = store.start_reply(Asker(user, user), ask(f"question {text}"), "policy-0000", sampling, **more)
    done = {"finish_reason": "stop", "prompt_ids": [1], "response_ids": [2, 3]}
    store.finish_reply(message, "done", text=f"answer {text}", **done)
    return message


def everything(store: Store, user: str, text: str) -> dict[str, str]:
    """A chat of two turns, a comparison, and each kind of feedback, all with `text` in them; their ids."""
    who = Asker(user, user)
    chat = store.start_conversation(user, f"title {text}")
    first = said(store, user, text, conversation_id=chat)
    second = said(store, user, f"more {text}", conversation_id=chat, parent_id=first)
    compared, drafts = store.start_comparison(who, ask(f"compare {text}"), ["policy-0000"] * 2, SAMPLING, "page")
    for draft in drafts:
        store.finish_reply(draft, "done", text=f"draft {text}", finish_reason="stop", prompt_ids=[1], response_ids=[2])
    ids = {"chat": chat, "first": first, "second": second, "compared": compared}
    for kind, value in (("edit", "better"), ("comment", "remark")):
        request = FeedbackRequest(kind=kind, message_id=first, value={"text": f"{value} {text}"})
        ids[kind], _ = store.add_feedback(who, f"{kind} {text}", request)
    ids["thumb"], _ = store.add_feedback(who, f"thumb {text}", thumb(first))
    flag = FeedbackRequest(kind="flag", message_id=second, value={"reason": f"flag {text}"})
    ids["flag"], _ = store.add_feedback(who, f"flag {text}", flag)
    ids["pair"], _ = store.add_feedback(who, f"pair {text}", pair(compared))
    return ids


def bytes_of(store: Store) -> bytes:
    """All bytes of the database's files."""
    return b"".join(path.read_bytes() for path in sorted(store.path.parent.glob(f"{store.path.name}*")))


def rows_of(store: Store, user: str) -> list[Any]:
    """Everything that is stored of a user."""
    tables = ("conversations", "replies", "comparisons", "feedback")
    found = [store.rows(f"SELECT * FROM {t} WHERE user_id = ? OR user_id LIKE ?", [user, f"{user}/%"]) for t in tables]
    prompts = "SELECT * FROM prompts WHERE sha256 IN (SELECT prompt_sha256 FROM replies WHERE user_id = ?)"
    return [*found, store.rows(f"{prompts} ORDER BY 1", [user])]


def test_a_person_is_gone_from_the_rows_and_from_the_bytes_and_others_stay(store: Store) -> None:
    everything(store, ANN, "MARKANN")
    everything(store, f"{ANN}/visitor", "MARKVISITOR")
    everything(store, BEN, "MARKBEN")
    everything(store, "usr_anna", "MARKANNA")
    before = [rows_of(store, user) for user in (BEN, "usr_anna")]
    assert b"MARKANN" in bytes_of(store)
    wish = forget.forget(store, "person", ANN)
    assert forget.scrub(store)
    assert [rows_of(store, user) for user in (BEN, "usr_anna")] == before
    assert rows_of(store, ANN) == [[]] * 5
    found = bytes_of(store)
    assert b"MARKVISITOR" not in found
    assert b"MARKANN" not in found.replace(b"MARKANNA", b"")
    assert b"MARKBEN" in found
    assert store.rows("PRAGMA foreign_key_check") == []
    assert store.rows("PRAGMA integrity_check") == [{"integrity_check": "ok"}]
    assert unfinished(store) == [wish]
    forget.done(store, [wish])
    assert unfinished(store) == []


def test_ids_versions_and_numbers_stay(store: Store) -> None:
    ids = everything(store, ANN, "x")
    forget.forget(store, "person", ANN)
    (row,) = store.rows("SELECT * FROM replies WHERE id = ?", [ids["first"]])
    assert (row["policy_version"], row["state"], row["text"]) == ("policy-0000", "done", "")
    assert len(store.rows("SELECT * FROM feedback")) == 5
    assert store.counts() == {"forgotten": 5, "untied_pairs": 0}
    for find in (lambda: store.reply(ids["first"], ANN), lambda: store.comparison(ids["compared"], ANN)):
        with pytest.raises(NotFound):
            find()


def test_a_prompt_that_two_people_asked_stays_for_the_other(store: Store) -> None:
    for user in (ANN, BEN):
        said(store, user, "both")
    mine = store.rows("SELECT id FROM replies WHERE user_id = ?", [BEN])[0]["id"]
    forget.forget(store, "person", ANN)
    assert store.reply(mine, BEN).prompt == tuple(ask("question both"))


def test_anothers_vote_keeps_its_row_but_no_snapshot_has_it(store: Store, tmp_path: Path) -> None:
    for user in (ANN, BEN):
        Consents(store).give(user, keep_chats=True, use_votes=True, use_text=True)
    ids = everything(store, ANN, "MARKANN")
    with store.write() as db:  # as a reviewer's
        db.execute("UPDATE feedback SET user_id = ?, person = ? WHERE id = ?", [BEN, BEN, ids["pair"]])
    assert b'"comparison"' in snapshot_path(tmp_path, take_snapshot(store, tmp_path)).read_bytes()
    wish = forget.forget(store, "person", ANN)
    assert ids["pair"] in wish.items
    (row,) = store.rows("SELECT * FROM feedback WHERE id = ?", [ids["pair"]])
    assert (row["user_id"], row["kind"]) == (BEN, "pair")
    assert snapshot_path(tmp_path, take_snapshot(store, tmp_path)).read_bytes() == b""


def test_one_chat_is_forgotten_and_only_its_owner_can_have_it_forgotten(store: Store) -> None:
    ids = everything(store, ANN, "MARKONE")
    other = everything(store, ANN, "MARKTWO")
    for user in (BEN, f"{ANN}/visitor", "local"):
        with pytest.raises(NotFound):
            forget.forget(store, "chat", user, ids["chat"])
    forget.forget(store, "chat", ANN, ids["chat"])
    assert forget.scrub(store)
    assert [chat for chat, _ in store.conversations(ANN, 9)] == [other["chat"]]
    assert store.conversation(ids["chat"], ANN) == []
    left = bytes_of(store)
    assert [b"MARKTWO" in left, b"compare MARKONE" in left] == [True, True]
    for gone in (b"question MARKONE", b"answer MARKONE", b"title MARKONE", b"better MARKONE", b"flag MARKONE"):
        assert gone not in left


def test_an_empty_chat_can_be_forgotten(store: Store) -> None:
    chat = store.start_conversation(ANN, "MARK")
    forget.forget(store, "chat", ANN, chat)
    assert store.conversations(ANN, 9) == []


def test_one_vote_is_forgotten_with_what_was_said_before_it(store: Store) -> None:
    ids = everything(store, ANN, "x")
    latest, _ = store.add_feedback(Asker(ANN, ANN), "changed", thumb(ids["first"], "down"))
    for user in (BEN, "local"):
        with pytest.raises(NotFound):
            forget.forget(store, "vote", user, latest)
    wish = forget.forget(store, "vote", ANN, latest)
    assert wish.items == {latest, ids["thumb"]}
    assert store.reply(ids["first"], ANN).thumb is None
    kinds = {row["kind"] for row in store.rows("SELECT kind FROM current_on_replies")}
    assert kinds == {"edit", "comment", "flag", "forgotten"}


def test_a_forgotten_vote_frees_its_idempotency_key_and_keeps_no_hash_of_its_text(store: Store) -> None:
    ids = everything(store, ANN, "x")
    forget.forget(store, "vote", ANN, ids["comment"])
    (row,) = store.rows("SELECT * FROM feedback WHERE id = ?", [ids["comment"]])
    assert (row["value"], row["body_sha256"], row["idempotency_key"]) == ("{}", "", ids["comment"])


def test_a_reply_that_is_being_written_is_not_stored_later(store: Store) -> None:
    message = store.start_reply(asker(ANN), ask("MARK question"), "policy-0000", SAMPLING)
    forget.forget(store, "person", ANN)
    store.finish_reply(message, "done", text="MARK answer", finish_reason="stop", wait=False)
    store.finish_reply(message, "stopped", text="MARK answer", finish_reason="stopped")
    assert store.rows("SELECT state, text FROM replies") == [{"state": "stopped", "text": ""}]
    assert forget.scrub(store)
    assert b"MARK" not in bytes_of(store)


def test_it_waits_for_long_reads_and_says_if_they_do_not_end(store: Store) -> None:
    everything(store, ANN, "MARK")
    with store.reading() as db:
        forget.forget(store, "person", ANN)
        assert not forget.scrub(store, patience=0)
        assert db.execute("SELECT count(*) FROM conversations").fetchone()[0] == 1
    assert forget.scrub(store)
    assert b"MARK" not in bytes_of(store)


def test_what_was_deleted_before_deletions_were_overwritten_goes_too(tmp_path: Path) -> None:
    path = tmp_path / "old.db"
    with closing(Store(path)) as store:
        everything(store, BEN, "MARKBEN")
    with closing(sqlite3.connect(path)) as old:
        old.execute("PRAGMA secure_delete = OFF")
        old.execute("CREATE TABLE rest (text TEXT)")
        old.executemany("INSERT INTO rest VALUES (?)", [[f"MARKOLD {n} " * 50] for n in range(100)])
        old.execute("DROP TABLE rest")
        old.commit()
    with closing(Store(path)) as store:
        assert b"MARKOLD" in bytes_of(store)
        forget.forget(store, "person", ANN)
        assert forget.scrub(store)
        assert b"MARKOLD" not in bytes_of(store)
        assert b"MARKBEN" in bytes_of(store)


# --- snapshots ------------------------------------------------------------------------------------------


def test_a_redacted_snapshot_is_marked_keeps_the_others_lines_and_is_given_to_no_run(
    store: Store, tmp_path: Path
) -> None:
    for user in (ANN, BEN):
        Consents(store).give(user, keep_chats=True, use_votes=True, use_text=True)
        everything(store, user, f"MARK{user}")
    (folder := tmp_path / "snapshots").mkdir()
    id_ = take_snapshot(store, folder)
    before = snapshot_path(folder, id_).read_bytes().splitlines()
    wish = forget.forget(store, "person", ANN)
    assert redaction.holding(folder, wish.covers) == {id_}
    for _ in range(2):  # the second time as after a kill
        redaction.redact(folder, id_, wish.covers)
    (path,) = folder.iterdir()
    mark, *lines = path.read_bytes().splitlines()
    assert json.loads(mark) == {"type": "redacted", "snapshot": id_}
    assert lines == [line for line in before if b"MARKusr_ben" in line]
    assert redaction.holding(folder, wish.covers) == set()
    assert path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(Conflict, match="start a new one"):
        snapshot_path(folder, id_)
    assert take_snapshot(store, folder) != id_


@pytest.mark.parametrize(("kind", "key", "left"), [("chat", "chat", 2), ("vote", "comment", 6)])
def test_of_a_snapshot_only_the_chat_or_the_vote_goes(
    store: Store, tmp_path: Path, kind: Any, key: str, left: int
) -> None:
    Consents(store).give(ANN, keep_chats=True, use_votes=True, use_text=True)
    ids = everything(store, ANN, "MARK")
    (folder := tmp_path / "snapshots").mkdir()
    id_ = take_snapshot(store, folder)
    assert len(snapshot_path(folder, id_).read_bytes().splitlines()) == 7
    wish = forget.forget(store, kind, ANN, ids[key])
    redaction.redact(folder, id_, wish.covers)
    (path,) = folder.iterdir()
    lines = [json.loads(line) for line in path.read_bytes().splitlines()[1:]]
    assert len(lines) == left
    assert lines == [line for line in lines if line["type"] == "comparison" or kind == "vote" or "compare" in str(line)]

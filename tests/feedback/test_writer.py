"""Writes that wait at the same time share one COMMIT, and nothing else."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from sqlite_utils import Database

from thumbwise.errors import Conflict, ThumbwiseError
from thumbwise.feedback.writer import PRAGMAS, Writer


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[Writer]:
    writer = Writer(tmp_path / "some.db")
    writer.db.execute("CREATE TABLE said (word TEXT PRIMARY KEY) STRICT")
    yield writer
    writer.close()


def say(word: str, error: Exception | None = None) -> Callable[[Database], str]:
    def work(db: Database) -> str:
        db.execute("INSERT INTO said VALUES (?)", [word])
        if error is not None:
            raise error
        return word

    return work


def at_once(writer: Writer, works: Sequence[Callable[[Database], Any]]) -> list[Future[Any]]:
    """Let all of `works` wait for the lock, then let go of it."""
    with ThreadPoolExecutor(len(works)) as pool:
        with writer.lock:
            futures = [pool.submit(writer.share, work) for work in works]
            while len(writer._waiting) < len(works):
                time.sleep(0.001)
        return futures


def words(writer: Writer) -> list[str]:
    return sorted(row["word"] for row in writer.rows("SELECT word FROM said"))


def test_a_file_that_is_no_database_is_told_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "feedback.db"
    path.write_text("my shopping list, which is longer than a header of SQLite's")
    with pytest.raises(ThumbwiseError, match="is not a database"):
        Writer(path)
    assert path.read_text().startswith("my shopping list")


def test_what_waits_at_once_is_committed_once_and_each_gets_its_own_result(writer: Writer) -> None:
    statements: list[str] = []
    writer.db.conn.set_trace_callback(statements.append)
    done = at_once(writer, [say(f"word {n}") for n in range(10)])
    assert [future.result() for future in done] == [f"word {n}" for n in range(10)]
    assert statements.count("COMMIT") == 1
    assert len(words(writer)) == 10


@pytest.mark.parametrize("error", [Conflict("No."), KeyError("a bug"), sqlite3.IntegrityError("twice")])
def test_an_error_undoes_and_reaches_its_own_work_alone(writer: Writer, error: Exception) -> None:
    good, bad, other = at_once(writer, [say("good"), say("bad", error), say("other")])
    assert (good.result(), bad.exception(), other.result()) == ("good", error, "other")
    assert words(writer) == ["good", "other"]


def test_a_word_that_is_taken_is_refused_to_the_second_alone(writer: Writer) -> None:
    done = at_once(writer, [say("same"), say("same"), say("other")])
    assert sorted(type(future.exception()).__name__ for future in done) == ["IntegrityError", "NoneType", "NoneType"]
    assert words(writer) == ["other", "same"]


def test_a_disk_that_takes_nothing_fails_all_with_a_sentence_and_the_next_are_written(writer: Writer) -> None:
    done = at_once(writer, [say("one"), say("two", OSError(28, "No space left on device")), say("three")])
    for future in done:
        error = future.exception()
        assert isinstance(error, ThumbwiseError)
        assert (error.status, "No space left on device" in str(error)) == (507, True)
    assert words(writer) == []
    assert writer.share(say("four")) == "four"
    assert words(writer) == ["four"]


def test_what_is_owed_is_written_before_the_next_work_and_once(writer: Writer) -> None:
    order: list[str] = []
    with writer.lock:
        writer.later("key", lambda db: order.append("the first word"))
        writer.later("key", lambda db: order.append("a later word"))
    for n in range(2):
        writer.share(lambda db, n=n: order.append(f"work {n}"))  # type: ignore[misc]
    assert order == ["the first word", "work 0", "work 1"]


def test_a_long_read_is_of_one_moment_and_others_write_meanwhile(writer: Writer) -> None:
    writer.share(say("before"))
    with writer.reading() as db:
        found = db.query("SELECT word FROM said")
        writer.share(say("meanwhile"))
        assert [row["word"] for row in found] == ["before"]
        assert [row["word"] for row in db.query("SELECT word FROM said")] == ["before"]
    assert words(writer) == ["before", "meanwhile"]


def test_a_long_read_does_not_wait_for_the_lock(writer: Writer) -> None:
    writer.share(say("before"))

    def read() -> list[str]:
        with writer.reading() as db:
            return [row["word"] for row in db.query("SELECT word FROM said")]

    with ThreadPoolExecutor(1) as others, writer.lock:
        assert others.submit(read).result(timeout=60) == ["before"]


def _not_ours(path: Path, mode: int) -> None:
    raise PermissionError(1, "Operation not permitted")


def test_a_database_that_may_not_be_written_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Writer(path := tmp_path / "feedback.db").close()
    connect = sqlite3.connect
    with monkeypatch.context() as mount:  # read-only, as a mount may be
        mount.setattr(sqlite3, "connect", lambda path, **how: connect(f"file:{path}?mode=ro", uri=True, **how))
        with pytest.raises(ThumbwiseError, match=r"cannot be opened \(attempt to write a readonly database"):
            Writer(path)
    with monkeypatch.context() as theirs:  # another user's
        theirs.setattr(Path, "chmod", _not_ours)
        with pytest.raises(ThumbwiseError, match="must own it"):
            Writer(path)
    with pytest.raises(ThumbwiseError, match="cannot be opened"):
        Writer(tmp_path)


def test_a_database_that_another_program_writes_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Writer(path := tmp_path / "feedback.db").close()
    monkeypatch.setitem(PRAGMAS, "busy_timeout", 1)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(ThumbwiseError, match="in use by another program"):
            Writer(path)


def test_what_reads_long_cannot_write(writer: Writer) -> None:
    with writer.reading() as db, pytest.raises(sqlite3.OperationalError, match="readonly"):
        db.execute("INSERT INTO said VALUES ('no')")


def test_the_path_of_a_home_may_have_any_characters(tmp_path: Path) -> None:
    (folder := tmp_path / "50% of #1?").mkdir()
    writer = Writer(folder / "some.db")
    with writer.reading() as db:
        assert list(db.query("SELECT 1 AS one")) == [{"one": 1}]
    writer.close()

"""No query reads a whole table that grows, but for named full reads, which are off the store's lock.

Every method that asks the database something is called on a home with all kinds of rows. SQLite says what it ran, and
how it would find the rows. There are no statistics of the tables, so the answer does not depend on their size.
"""

from __future__ import annotations

import re
import sqlite3
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from fakes import asker

sys.path.insert(0, str(Path(__file__).parents[1] / "bench"))

import large_home

from thumbwise.accounts.keys import Keys
from thumbwise.contracts import Message
from thumbwise.feedback import reception, snapshot, store
from thumbwise.feedback.records import REFUSED, FeedbackRequest
from thumbwise.feedback.store import Store
from thumbwise.names import BASE
from thumbwise.settings.canary import CanarySettings
from thumbwise.versions.canary import Reviewer
from thumbwise.versions.record import Versions

FULL_READS = {
    store.COUNTS, reception.REPLIES, reception.THUMBS, reception.VOTES, reception.DRAFTS, reception.VERSIONS,
    snapshot.ON_COMPARISONS, snapshot.ON_REPLIES, snapshot.PROMPTS,
}  # fmt: skip
"""What may read whole tables, on a read-only connection."""
SMALL = r"json_each|pointer|pointer_log|policies|runs|api_keys|base|consents|later|(\d+ )?CONSTANT ROWS?|_?sqlite_\w+"
"""Tables that hold a row for each version, run, key or answer of a person, and lists that a query is given."""
ASK: list[Message] = [{"role": "user", "content": "Why is the sky blue?"}]


@dataclass
class Traced:
    """What ran on the connection that writes, and on read-only ones."""

    writer: set[str] = field(default_factory=set)
    readers: set[str] = field(default_factory=set)


@contextmanager
def traced(store: Store, monkeypatch: pytest.MonkeyPatch) -> Iterator[Traced]:
    """Collect every statement, with its parameters filled in."""
    said, connect = Traced(), sqlite3.connect

    def connected(*args: Any, **options: Any) -> sqlite3.Connection:
        connection = connect(*args, **options)
        connection.set_trace_callback(said.readers.add)
        return connection

    with monkeypatch.context() as patch:
        patch.setattr(sqlite3, "connect", connected)
        store.db.conn.set_trace_callback(said.writer.add)
        yield said
        store.db.conn.set_trace_callback(None)


def plan(store: Store, statement: str) -> list[str]:
    """The steps in which SQLite finds the rows; none for what is no query."""
    if not re.match(r"\s*(SELECT|INSERT|UPDATE|DELETE|WITH)\b", statement):
        return []
    return [str(row["detail"]) for row in store.rows(f"EXPLAIN QUERY PLAN {statement}")]


def slow(steps: list[str], sorts: bool = False, one: bool = False) -> list[str]:
    """The steps that take longer the more rows there are; `sorts` allows that what was found is sorted.

    All rows of a user may be most of the table, so those may be gone through only where `one` of them is enough.
    """
    large = [step for step in steps if re.match(rf"(SCAN|SEARCH) (?!({SMALL})\b)", step)]
    if not large:
        return []
    wrong = [step for step in large if step.startswith("SCAN")]
    wrong += [step for step in large if re.search(r"(replies|comparisons)_user \(user_id=\?\)", step) and not one]
    if any("LIST SUBQUERY" in step for step in steps):  # tries each row of the list for each row found
        wrong += [step for step in large if "AND rowid=?" in step]
    return wrong + [step for step in steps if "TEMP B-TREE" in step and not sorts]


@pytest.fixture
def large(tmp_path: Path) -> Iterator[Store]:
    large_home.make(tmp_path / "feedback.db", replies=300, votes=300)
    with closing(Store(tmp_path / "feedback.db")) as opened:
        yield opened


def own(kind: type) -> set[str]:
    """The methods that a class makes public itself."""
    return {name for name, value in vars(kind).items() if callable(value) and not name.startswith("_")}


def talk(store: Store) -> dict[str, Callable[[], Any]]:
    """Each method of the store, in an order that makes sense."""
    named: dict[str, Any] = {}
    versions = [BASE, BASE]
    thumb = {"kind": "thumb", "value": "up"}
    done = {"text": "Yes.", "finish_reason": "stop", "prompt_ids": [1], "response_ids": [2]}

    def start() -> None:
        named["talk"] = store.start_conversation("local", "Sky")

    def reply() -> None:
        named["reply"] = store.start_reply(asker(), ASK, BASE, {}, conversation_id=named["talk"])
        named["refused"] = store.start_reply(asker(), [*ASK, *ASK], BASE, {})

    def finish() -> None:
        store.finish_reply(named["reply"], "done", **done)
        store.finish_reply(named["refused"], "failed", text="", finish_reason=REFUSED)
        for draft in named["drafts"]:
            store.finish_reply(draft, "done", **done)
        _, (draft,) = store.start_comparison(asker(), [*ASK, *ASK], [BASE], {}, "api")
        store.finish_reply(draft, "failed", text="", finish_reason=REFUSED)

    def compare() -> None:
        named["comparison"], named["drafts"] = store.start_comparison(asker(), ASK, versions, {}, "api")

    def vote() -> None:
        store.add_feedback(asker(), "1", FeedbackRequest(message_id=named["reply"], **thumb))
        pair = FeedbackRequest(kind="pair", comparison_id=named["comparison"], value={"choice": "left"})
        store.add_feedback(asker(), "2", pair)

    return {
        "start_conversation": start,
        "start_reply": reply,
        "start_comparison": compare,
        "finish_reply": finish,
        "add_feedback": vote,
        "reply": lambda: store.reply(named["reply"], "local"),
        "conversation": lambda: store.conversation(named["talk"], "local"),
        "conversations": lambda: store.conversations("local", 50),
        "owns_conversation": lambda: store.owns_conversation(named["talk"], "local"),
        "comparison": lambda: store.comparison(named["comparison"], "local"),
        "counts": store.counts,
        "recount": store.recount,
        "fail_unfinished": store.fail_unfinished,
    }


def test_what_pages_and_api_ask_the_store_is_found_by_index(large: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = talk(large)
    assert own(Store) == set(calls)
    with traced(large, monkeypatch) as said:
        for call in calls.values():
            call()
    assert len(said.writer) > 20
    check(large, said)


def test_keys_runs_and_versions_are_found_by_index(large: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    Keys(large), Versions(large)  # the migrations, which are no queries of every day
    with traced(large, monkeypatch) as said:
        versions, keys = Versions(large), Keys(large)
        versions.bind("digest", "model")
        keys.create("other")
        run = versions.runs.begin("snapshot", 60)
        versions.runs.renew(run.id, run.lease, 60)
        made = {"number": 1, "parent": BASE, "algorithm": "ppo", "created_at": "", "snapshot_id": "s", "n_labels": 1}
        versions.stage(made | {"version": "policy-0001-01", "metrics": {}}, run.id)
        versions.runs.check_name(run.id, "policy-0001-01", 1)
        versions.start_canary("policy-0001-01", BASE, 0.5, "passed")
        versions.move_pointer("promote", "policy-0001-01", BASE, "passed")
        versions.before("policy-0001-01")
        versions.was_stable(BASE)
        versions.runs.end(run.id, run.lease, "promoted", "")
        for ask in (versions.all, versions.log, versions.stable_since, versions.runs.last_begun):
            ask()
        versions.runs.interrupted()
        versions.runs.refuse_second()
        keys.revoke("other")
    assert len(said.writer) > 20
    check(large, said)


def test_what_a_version_is_judged_by_is_found_by_index(large: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    versions, reviewer = Versions(large), Reviewer(large, CanarySettings())
    versions.start_canary(BASE, BASE, 0.5, "of the same kind")
    asked = large.start_reply(asker(), ASK, BASE, {})
    with traced(large, monkeypatch) as said:
        reviewer.canary(versions.pointer())  # looks again at the one that streams
        reviewer.canary(versions.pointer())
        reviewer.swap(BASE, "policy-0001-01", 0)
        large.finish_reply(asked, "done", text="Yes.", finish_reason="stop")
    assert len(said.readers) > 5
    check(large, said, sorts=True)


def test_snapshots_and_statistics_are_read_off_the_lock_and_unsorted(
    large: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with traced(large, monkeypatch) as said:
        snapshot.take_snapshot(large, tmp_path)
        reception.reception(large)
        large.counts()
    assert said.writer == set()
    assert said.readers >= FULL_READS
    check(large, said)
    lines = (snapshot.ON_COMPARISONS, snapshot.ON_REPLIES, snapshot.PROMPTS)
    assert [step for line in lines for step in plan(large, line) if "TEMP B-TREE" in step] == []  # it would fill memory
    # A scan inside a loop over another table is quadratic, wherever it runs.
    assert [full for full in FULL_READS if sum(step.startswith("SCAN") for step in plan(large, full)) > 1] == []


def check(large: Store, said: Traced, sorts: bool = False) -> None:
    """Nothing that ran is slow, but the named full reads, on read-only connections."""
    asked = said.writer | (said.readers - FULL_READS)
    assert {one: found for one in asked if (found := slow(plan(large, one), sorts, one.endswith("LIMIT 1")))} == {}
    assert not any("LIST SUBQUERY" in step for full in FULL_READS for step in plan(large, full))  # quadratic


def test_the_check_finds_what_was_slow_once(large: Store) -> None:
    """The list of conversations, the number of pairs, keys, and the view of the latest votes, as they were."""
    latest = "SELECT * FROM feedback WHERE seq IN (SELECT max(seq) FROM feedback GROUP BY user_id, kind, message_id)"
    for once in (
        "SELECT id FROM conversations c ORDER BY coalesce((SELECT max(created_at) FROM replies), created_at) LIMIT 9",
        "SELECT count(*) FROM feedback WHERE kind = 'pair' AND json_extract(value, '$.choice') = 'left'",
        "SELECT 1 FROM replies WHERE user_id = 'a' OR instr(user_id, 'a/') = 1",
        f"SELECT count(*) FROM ({latest}) f JOIN replies r ON r.id = f.message_id WHERE r.policy_version = 'v'",
    ):
        assert slow(plan(large, once)), once


def test_every_file_that_asks_the_database_is_looked_at_here() -> None:
    package = Path(store.__file__).parents[1]
    folders = (package / "assistant", package / "feedback")
    asking = {
        str(path.relative_to(package))
        for folder in folders
        for path in folder.rglob("*.py")
        if re.search(r"(?:store|db|self)\.(?:rows|query|execute)\(", path.read_text())
    }
    accounts = (
        "passwords/attempts",
        "audit",
        "entry",
        "identities",
        "keys",
        "links",
        "migrations",
        "sessions",
        "users",
    )
    versions = ("canary", "learned", "lineage", "migrations", "record", "runs")
    ours = (
        "adoption",
        "consent",
        "forget",
        "migrations",
        "mine",
        "prompts",
        "reception",
        "snapshot",
        "store",
        "writer",
    )
    assert asking == {
        "assistant/account_pages/learned.py",
        "assistant/serving/forgetting.py",
        *(f"assistant/accounts/{name}.py" for name in accounts),
        *(f"assistant/versions/{name}.py" for name in versions),
        *(f"feedback/{name}.py" for name in ours),
    }

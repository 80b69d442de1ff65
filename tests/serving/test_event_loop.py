"""The server's event loop never waits for the database, nor for a plugin; what was left to be written is written."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, contextmanager
from pathlib import Path

import httpx
import loop_guard
import pytest
from crash_tools import tiny_home
from fakes import FakeEngine, FakeEngineClient, asker
from live_server import serving, wait_ready

from thumbwise import faults
from thumbwise.contracts import Message
from thumbwise.engine.client import Chunk
from thumbwise.errors import ThumbwiseError
from thumbwise.feedback import writer
from thumbwise.feedback.store import Store
from thumbwise.names import BASE
from thumbwise.plugin_host.deciding import PLACES
from thumbwise.serving.assistant import Assistant

ASK: list[Message] = [{"role": "user", "content": "Hello?"}]
LOCAL = asker("local")
CHAT = {"model": "thumbwise", "messages": ASK, "stream": True}


@contextmanager
def long_read(store: Store) -> Iterator[threading.Event]:
    """Somebody reads in a thread, with the lock, inside the block; what is yielded is set once that is over.

    It is over by itself some time, so that a server which waits for it fails its test.
    """
    begun, over, enough = threading.Event(), threading.Event(), threading.Event()

    def read() -> None:
        with store.lock:
            begun.set()
            enough.wait(20)
            over.set()

    thread = threading.Thread(target=read)
    thread.start()
    begun.wait()
    try:
        yield over
    finally:
        enough.set()
        thread.join()


def states(store: Store) -> list[str]:
    return [row["state"] for row in store.rows("SELECT state FROM replies ORDER BY created_at, id")]


async def become(store: Store, wanted: list[str]) -> None:
    """Wait until the replies' states are `wanted`, while something else is written now and then."""
    for _ in range(1000):
        if states(store) == wanted:
            break
        await asyncio.sleep(0.01)
        store.start_conversation("local", "Something else")
    assert states(store) == wanted


@pytest.fixture
def engine(assistant: Assistant) -> FakeEngineClient:
    return assistant.engine.client  # type: ignore[union-attr, return-value]


async def begun(assistant: Assistant) -> AsyncGenerator[Chunk, None]:
    """A reply whose first chunk was read."""
    conversations = assistant.conversations
    turn = await conversations.begin(LOCAL, ASK, conversations.sampling())
    chunks = conversations.stream(turn, LOCAL)
    await anext(chunks)
    return chunks


# --- a long read ------------------------------------------------------------------------------------------


def test_a_reader_who_hangs_up_during_a_long_read_stops_nobody(tmp_path: Path, tiny_model: Path) -> None:
    client = FakeEngineClient(["word "] * 10_000)
    with serving(tiny_home(tmp_path / "home", tiny_model), lambda: FakeEngine(client)) as live:
        wait_ready(live)
        with httpx.stream("POST", f"{live.url}/v1/chat/completions", json=CHAT | {"max_tokens": 4000}) as reply:
            next(reply.iter_lines())
            reading = long_read(live.assistant.store)
            over = reading.__enter__()
        try:
            for path in ("/health/live", "/health/ready", "/metrics", "/v1/models"):
                assert httpx.get(live.url + path, timeout=60).status_code == 200, path
            operator = {"Authorization": f"Bearer {live.assistant.operator_token}"}
            assert httpx.get(f"{live.url}/ops/api/policies", headers=operator, timeout=60).status_code == 200
            assert not over.is_set()
        finally:
            reading.__exit__(None, None, None)
        while client.open_streams:
            httpx.get(f"{live.url}/health/live")
        assert states(live.assistant.store) == ["stopped"]


async def test_many_who_leave_at_once_wait_for_nothing_and_share_a_commit(assistant, engine) -> None:
    engine.gate = asyncio.Event()
    streams = [await begun(assistant) for _ in range(20)]
    statements: list[str] = []
    with long_read(assistant.store) as over:
        assistant.store.db.conn.set_trace_callback(statements.append)
        for chunks in streams:
            await chunks.aclose()
        assert not over.is_set()
    assert states(assistant.store) == ["stopped"] * 20
    assert statements.count("COMMIT") == 1


async def test_a_version_that_is_named_and_the_one_before_are_known_without_the_database(assistant) -> None:
    versions = assistant.versions
    with long_read(assistant.store) as over:
        assert assistant.conversations.resolve(BASE, "local") == BASE
        assert (versions.before(BASE), versions.was_stable(BASE), versions.all()[0].version) == (None, False, BASE)
        assert not over.is_set()


async def test_what_a_reader_left_is_on_disk_when_the_assistant_has_stopped(assistant, engine) -> None:
    engine.gate = asyncio.Event()
    chunks = await begun(assistant)
    with long_read(assistant.store):
        await chunks.aclose()
        stopping = asyncio.create_task(assistant.stop())
    await stopping
    store = Store(assistant.home.database)
    assert states(store) == ["stopped"]
    store.close()


# --- readers who leave at a bad moment --------------------------------------------------------------------


async def test_a_whole_reply_whose_reader_left_before_its_commit_failed_is_stored_later(
    assistant, engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    conversations = assistant.conversations
    turn = await conversations.begin(LOCAL, ASK, conversations.sampling())
    monkeypatch.setenv(faults.VARIABLE, "reply_ended=full")
    monkeypatch.setattr(faults, "_passed", faults.Counter())
    with long_read(assistant.store):
        written = asyncio.create_task(conversations.write(turn, LOCAL))
        while not assistant.store._waiting:
            await asyncio.sleep(0.01)
        written.cancel()
        await asyncio.wait([written])
    await become(assistant.store, ["done"])  # streaming for good, where nobody sees to it


async def test_an_asker_who_left_before_the_row_was_there_leaves_a_reply_that_has_ended(assistant, engine) -> None:
    conversations = assistant.conversations
    with long_read(assistant.store):
        asking = asyncio.create_task(conversations.begin(LOCAL, ASK, conversations.sampling()))
        while not assistant.store._waiting:
            await asyncio.sleep(0.01)
        asking.cancel()
        await asyncio.wait([asking])
    await become(assistant.store, ["stopped"])


async def test_drafts_that_nobody_came_to_read_have_ended(assistant, engine, monkeypatch: pytest.MonkeyPatch) -> None:
    comparisons, store, waits = assistant.comparisons, assistant.store, threading.Event()
    start = store.start_comparison
    monkeypatch.setattr(store, "start_comparison", lambda *given: (waits.set(), start(*given))[1])
    with long_read(store):
        asking = asyncio.create_task(comparisons.open(LOCAL, ASK, 2, None, "api"))
        while not waits.is_set():
            await asyncio.sleep(0.01)
        asking.cancel()
        await asyncio.wait([asking])
    opened = await comparisons.open(LOCAL, ASK, 2, None, "api")
    writing = asyncio.create_task(comparisons.write(opened, LOCAL))
    await asyncio.sleep(0)  # it has made its tasks, and none has begun
    writing.cancel()
    await asyncio.wait([writing])
    await become(store, ["stopped"] * 4)


async def test_half_a_character_of_the_engine_is_stored_as_a_question_mark(assistant, engine) -> None:
    engine.words = ["half a \ud83d"]
    conversations = assistant.conversations
    turn = await conversations.begin(LOCAL, ASK, conversations.sampling())
    async with aclosing(conversations.stream(turn, LOCAL)) as chunks:
        assert [chunk.finish_reason async for chunk in chunks] == ["stop"]
    assert assistant.store.rows("SELECT state, text FROM replies") == [{"state": "done", "text": "half a ?"}]


def test_what_can_never_be_written_keeps_nothing_else_from_it(store: Store) -> None:
    for error in (KeyError("a bug"), writer.sqlite3.ProgrammingError("a type that SQLite has not")):

        def work(db: object, error: Exception = error) -> None:
            raise error

        store.later("a reply", work)
    store.start_conversation("local", "Something else")
    assert store.rows("SELECT title FROM conversations") == [{"title": "Something else"}]


# --- the switch -------------------------------------------------------------------------------------------


async def test_the_switch_refuses_the_database_to_an_event_loop(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "on_loop", loop_guard.on_loop)
    with pytest.raises(RuntimeError, match="The event loop would wait for the database"):
        store.rows("SELECT 1")
    with pytest.raises(RuntimeError, match="The event loop would wait for the database"):
        store.start_conversation("local", "Hello")
    with pytest.raises(RuntimeError, match="The event loop would wait for the database"), store.reading():
        pass
    assert await store.run(store.rows, "SELECT 1 AS one") == [{"one": 1}]
    monkeypatch.delenv(faults.DEBUG_LOCKS)
    assert store.rows("SELECT 1 AS one") == [{"one": 1}]


# --- plugins ----------------------------------------------------------------------------------------------


async def test_a_plugin_that_is_stuck_is_named_and_keeps_nobody_waiting(assistant, engine) -> None:
    stuck = threading.Event()
    choose = assistant.plugins.candidates
    asked = 0

    def candidates(conversation: object, live: list[str], k: int, rng: object, asking: object) -> list[str]:
        nonlocal asked
        asked += 1
        asking("slowpoke")  # type: ignore[operator]
        stuck.wait()
        return live * k

    assistant.plugins.candidates = candidates
    settings = assistant.settings.model_copy(update={"plugin_seconds": 0.2})
    assistant.conversations.settings = settings
    try:
        for _ in range(PLACES + 2):
            with pytest.raises(ThumbwiseError, match=r"took more than 0.2 seconds .*plugin_seconds") as slow:
                await assistant.comparisons.open(LOCAL, ASK, 2, None, "api")
            assert (slow.value.status, asked <= PLACES) == (500, True)
        assert "slowpoke" in str(slow.value) or "candidates" in str(slow.value)
        assert (await assistant.conversations.begin(LOCAL, ASK, assistant.conversations.sampling())).version == BASE
    finally:
        stuck.set()
    assistant.conversations.settings = assistant.settings
    assistant.plugins.candidates = choose
    assert (await assistant.comparisons.open(LOCAL, ASK, 2, None, "api")).turns

"""A flood, a reader who does not read, and a stop: who is answered, who is told to come back, and what ends when."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from crash_tools import Server, events, rows, said, tiny_home
from fakes import FakeEngine, FakeEngineClient, asker
from live_server import serving
from tiny_engine import TinyEngine

from thumbwise.chat.admission import Admission, EventStream
from thumbwise.errors import EngineUnavailable, ThumbwiseError
from thumbwise.feedback.records import PROGRAMS, Asker
from thumbwise.home import Home
from thumbwise.metrics import Metrics
from thumbwise.serving.assistant import Assistant
from thumbwise.serving.listening import bind
from thumbwise.settings import Settings
from thumbwise.training.rehearsal.home import environment
from thumbwise.web import create_api

ASK = {"messages": [{"role": "user", "content": "Hello?"}]}
CHAT = "/v1/chat/completions"


@pytest.fixture
async def assistant(tmp_path: Path) -> AsyncIterator[Assistant]:
    home = Home.find(tmp_path)
    assistant = Assistant(home, Settings.load(home, in_flight=8, local_in_flight=4))
    engine = FakeEngineClient()
    engine.gate = asyncio.Event()
    assistant.engine = FakeEngine(engine)  # type: ignore[assignment]
    yield assistant
    await assistant.stop()


async def opened(http: httpx.AsyncClient, assistant: Assistant, count: int, key: str = "") -> list[asyncio.Task[Any]]:
    wanted = assistant.admission.in_flight + count
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    tasks = [asyncio.create_task(http.post(CHAT, json=ASK, headers=headers)) for _ in range(count)]
    while assistant.engine.client.open_streams < wanted:  # type: ignore[union-attr, attr-defined]
        await asyncio.sleep(0.01)
    return tasks


def refused(assistant: Assistant, limit: str) -> float | None:
    return assistant.metrics.registry.get_sample_value("thumbwise_refused_total", {"limit": limit})


async def test_one_clients_flood_leaves_room_for_others_and_all_programs_leave_room_for_the_pages(
    http, assistant
) -> None:
    app, other = (assistant.keys.create(name) for name in ("app", "other"))
    tasks = await opened(http, assistant, 4, app)
    too_many = await http.post(CHAT, json=ASK | {"user": "ann"}, headers={"Authorization": f"Bearer {app}"})
    assert (too_many.status_code, too_many.headers["retry-after"]) == (429, "5")
    tasks += await opened(http, assistant, 2, other)
    full = await http.post(CHAT, json=ASK, headers={"Authorization": f"Bearer {other}"})
    assert (full.status_code, full.headers["retry-after"]) == (503, "5")
    assert "6 replies" in said(full)
    assert (refused(assistant, "user"), refused(assistant, "all")) == (1, 1)
    assert len(assistant.store.rows("SELECT 1 FROM replies")) == 6  # who was turned away left nothing behind
    assistant.admission.check(Asker("local", "browser:a", page=True), 2)  # the places that are kept for the pages
    with pytest.raises(EngineUnavailable, match="6 replies"):
        assistant.admission.check(Asker("local", "browser:a", page=True), 3)
    assistant.engine.client.gate.set()
    assert {task.status_code for task in await asyncio.gather(*tasks)} == {200}
    assert assistant.admission.in_flight == 0
    assert (await http.post(CHAT, json=ASK, headers={"Authorization": f"Bearer {app}"})).status_code == 200


async def test_no_browser_is_told_of_another_ones_requests(assistant) -> None:
    first, second = (Asker("local", f"browser:{name}", young=True, page=True) for name in "ab")
    with assistant.admission.reserved(first, 4):
        with pytest.raises(ThumbwiseError, match="4 of your requests"):
            assistant.admission.check(first)
        assistant.admission.check(second, 4)


@pytest.mark.parametrize("in_flight", [1, 2])
async def test_few_places_are_not_all_kept_for_the_pages(tmp_path: Path, in_flight: int) -> None:
    admission = Admission(Settings.load(Home.find(tmp_path), in_flight=in_flight), Metrics())
    admission.check(Asker("local", PROGRAMS))
    with admission.reserved(Asker("local", PROGRAMS)), pytest.raises(EngineUnavailable):
        admission.check(Asker("local", PROGRAMS))


async def test_names_are_people_where_a_rehearsal_says_so(tmp_path: Path) -> None:
    home = Home.find(tmp_path)
    rehearsed = environment(home, 8, 16, 0)
    assert rehearsed["THUMBWISE_NAMES_ARE_PEOPLE"] == "true"
    assistant = Assistant(home, Settings.load(home, names_are_people=True))
    assistant.engine = FakeEngine(FakeEngineClient())  # type: ignore[assignment]
    transport = httpx.ASGITransport(create_api(assistant))
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:7860") as http:
        assert (await http.post(CHAT, json=ASK | {"user": "ann"})).status_code == 200
    assert assistant.store.rows("SELECT user_id, person FROM replies") == [{"user_id": "ann", "person": "name:ann"}]
    await assistant.stop()


async def test_a_comparison_takes_a_place_for_each_draft(http, assistant) -> None:
    tasks = await opened(http, assistant, 3)
    drafts = await http.post("/v1/comparisons", json=ASK | {"k": 2})
    assert drafts.status_code == 429
    assistant.engine.client.gate.set()
    await asyncio.gather(*tasks)
    assert (await http.post("/v1/comparisons", json=ASK | {"k": 4})).status_code == 200


async def test_comparisons_that_come_all_at_once_take_their_places_too(http, assistant) -> None:
    tasks = [asyncio.create_task(http.post("/v1/comparisons", json=ASK | {"k": 2})) for _ in range(10)]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    assert assistant.admission.in_flight <= 4
    assistant.engine.client.gate.set()
    assert sorted(task.status_code for task in await asyncio.gather(*tasks)) == [200] * 2 + [429] * 8
    assert len(assistant.store.rows("SELECT 1 FROM replies")) == 4


@pytest.mark.parametrize(("path", "body"), [(CHAT, {}), ("/v1/comparisons", {"k": 2})])
def test_a_reader_who_leaves_before_the_whole_answer_is_let_go(
    tmp_path: Path, tiny_model: Path, path: str, body: dict[str, Any]
) -> None:
    engine = FakeEngineClient()

    def prepare(assistant: Assistant) -> None:
        engine.gate = asyncio.Event()
        assistant.engine = FakeEngine(engine)  # type: ignore[assignment]

    with serving(tiny_home(tmp_path, tiny_model), lambda: FakeEngine(engine), prepare) as live:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(live.url + path, json=ASK | body, timeout=httpx.Timeout(30, read=1))
        assert engine.asked
        give_up = time.monotonic() + 20
        while (engine.open_streams or live.assistant.admission.in_flight) and time.monotonic() < give_up:
            time.sleep(0.05)
        assert (engine.open_streams, live.assistant.admission.in_flight) == (0, 0)
        states = live.assistant.store.rows("SELECT state FROM replies")
        assert {row["state"] for row in states} == {"stopped"}


async def test_what_is_open_ends_while_nothing_new_begins(http, assistant) -> None:
    tasks = await opened(http, assistant, 2)
    draining = asyncio.create_task(assistant.admission.drain(60))
    await asyncio.sleep(0.05)
    late = await http.post(CHAT, json=ASK)
    assert late.status_code == 503
    assert "being stopped" in said(late)
    assert (await http.get("/health/ready")).status_code == 503
    assert not draining.done()
    assistant.engine.client.gate.set()
    assert await draining
    assert {task.status_code for task in await asyncio.gather(*tasks)} == {200}
    assert await assistant.admission.drain(0)


async def test_a_stop_between_a_turns_row_and_its_stream_waits_for_the_stream(assistant) -> None:
    conversations = assistant.conversations
    turn = await conversations.begin(asker("ann"), ASK["messages"], conversations.sampling())
    draining = asyncio.create_task(assistant.admission.drain(60))
    await asyncio.sleep(0)
    assert (assistant.admission.draining, assistant.admission.in_flight) == (True, 0)
    written = asyncio.create_task(conversations.write(turn, asker("ann")))
    await asyncio.sleep(0.3)
    assert not draining.done()
    assistant.engine.client.gate.set()
    assert (await written)[1].finish_reason == "stop"
    assert await draining


async def test_a_reply_that_does_not_end_is_not_waited_for_longer_than_asked(http, assistant) -> None:
    tasks = await opened(http, assistant, 1)
    assert not await assistant.admission.drain(0.1)
    for task in tasks:
        task.cancel()


async def test_a_plugin_that_chooses_versions_slowly_keeps_nobody_else_waiting(assistant) -> None:
    where = []
    choose = assistant.plugins.candidates
    assistant.plugins.candidates = lambda *given: where.append(threading.current_thread()) or choose(*given)
    await assistant.comparisons.open(asker("ann"), ASK["messages"], 2, None, "api")
    assert where != [threading.main_thread()]


async def test_a_finished_reply_is_stored_though_its_reader_left_before_its_turn(assistant) -> None:
    conversations, busy = assistant.conversations, threading.Barrier(2)
    executor = assistant.store._threads = ThreadPoolExecutor(1)
    assistant.engine.client.gate.set()
    turn = await conversations.begin(asker("ann"), ASK["messages"], conversations.sampling())
    executor.submit(lambda: (busy.wait(), busy.wait()))  # as where all threads wait for the disk
    busy.wait()
    written = asyncio.create_task(conversations.write(turn, asker("ann")))
    while executor._work_queue.empty():
        await asyncio.sleep(0.01)
    written.cancel()
    await asyncio.wait([written])
    busy.wait()
    executor.shutdown()
    (row,) = assistant.store.rows("SELECT state, text FROM replies")
    assert (row["state"], row["text"]) == ("done", "Hello there friend")


# --- from outside -----------------------------------------------------------------------------------------


async def test_who_hangs_up_while_a_piece_is_sent_ends_the_reply_at_once() -> None:
    sending, ended = asyncio.Event(), asyncio.Event()

    async def pieces() -> AsyncGenerator[bytes, None]:
        try:
            while True:
                yield b"data: x\n\n"
        finally:
            ended.set()

    async def receive() -> dict[str, str]:
        await sending.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.body":
            sending.set()
            await asyncio.Event().wait()

    await EventStream(pieces())({"type": "http", "asgi": {"spec_version": "2.3"}}, receive, send)
    assert ended.is_set()


def test_no_piece_of_a_reply_waits_for_the_one_before_to_be_acknowledged() -> None:
    with bind("127.0.0.1", 0) as bound, socket.create_connection(bound.getsockname()):
        accepted, _ = bound.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def switches() -> int:
    """How often a thread of this process has gone to sleep."""
    found = [path.read_text() for path in Path("/proc/self/task").glob("*/status")]
    return sum(int(text.split("\nvoluntary_ctxt_switches:")[1].split()[0]) for text in found)


def test_an_assistant_that_has_nothing_to_do_leaves_the_processor_alone(tmp_path: Path, tiny_model: Path) -> None:
    with serving(tiny_home(tmp_path / "home", tiny_model), lambda: FakeEngine(Torrent())) as live:
        httpx.get(live.url)  # Gradio begins to look for events with the first page
        before = switches()
        time.sleep(1)
        assert switches() - before < 300  # Gradio by itself: a thousand


class Torrent(FakeEngineClient):
    """Says far more than the wire holds."""

    def __init__(self) -> None:
        super().__init__(["x" * 100_000] * 1000)


def hold(url: str, read: int) -> socket.socket:
    """Ask for a streamed reply and read `read` bytes of it."""
    host, _, port = url.removeprefix("http://").partition(":")
    body = json.dumps(ASK | {"stream": True, "max_tokens": 1000}).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: application/json\r\n"
    link = socket.create_connection((host, int(port)))
    link.sendall(head.encode() + f"Content-Length: {len(body)}\r\n\r\n".encode() + body)
    while read > 0:
        read -= len(link.recv(read))
    return link


@pytest.mark.parametrize("leaves", [False, True])
def test_a_reader_who_stops_reading_or_leaves_is_let_go_and_so_is_the_engine(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, leaves: bool
) -> None:
    monkeypatch.setattr("thumbwise.chat.admission.STALL_SECONDS", 60.0 if leaves else 0.5)
    engine = Torrent()
    with serving(tiny_home(tmp_path / "home", tiny_model), lambda: FakeEngine(engine)) as live:
        live.assistant.policies.restore = _nothing  # type: ignore[method-assign]
        while httpx.get(f"{live.url}/health/ready").status_code != 200:
            time.sleep(0.05)
        link = hold(live.url, 200_000)
        assert engine.open_streams == 1
        if leaves:
            link.close()
        deadline = time.monotonic() + 20
        while live.assistant.admission.in_flight and time.monotonic() < deadline:
            time.sleep(0.05)
        assert engine.open_streams == 0
        assert [row["state"] for row in live.assistant.store.rows("SELECT state FROM replies")] == ["stopped"]
        link.close()


async def _nothing() -> None:
    return None


@pytest.mark.engine
@pytest.mark.parametrize("patience", [30, 0])
def test_a_stop_lets_open_replies_end_for_as_long_as_it_may(
    tmp_path: Path, tiny_model: Path, tiny_engine: TinyEngine, patience: int
) -> None:
    home = tiny_home(tmp_path / "home", tiny_model, f"unix:{tiny_engine.uds}")
    server = Server(home, THUMBWISE_DRAIN_SECONDS=str(patience))
    server.again()
    assert server.process is not None
    seen: list[dict[str, Any]] = []
    heard: list[str] = []

    def read() -> None:
        with (
            suppress(httpx.HTTPError),  # cut off, where the server has no patience
            httpx.stream("POST", f"{server.url}{CHAT}", json=ASK | {"stream": True}, timeout=60) as stream,
        ):
            seen.extend(events(stream.iter_lines()))

    def listen() -> None:
        with (
            suppress(httpx.HTTPError),  # a page's stream, which never ends
            httpx.stream("GET", f"{server.url}/gradio_api/heartbeat/page", timeout=60) as stream,
        ):
            heard.extend(stream.iter_lines())

    reader, page = threading.Thread(target=read), threading.Thread(target=listen)
    try:
        page.start()
        with tiny_engine.held():
            reader.start()
            while not (heard and rows(home, "SELECT 1 FROM replies")):
                time.sleep(0.02)
            server.process.send_signal(signal.SIGTERM)
            if patience:
                assert "being stopped" in server.wait(503)["detail"]
                assert "being stopped" in said(server.ask())
            else:
                reader.join()
        reader.join()
        page.join()
        assert server.process.wait(30) in (0, -signal.SIGTERM)
    finally:
        server.kill()
    assert "Traceback" not in server.log.read_text()
    assert rows(home, "SELECT state FROM replies") == [("done" if patience else "stopped",)]
    if patience:
        assert seen[-1] == {"done": True}

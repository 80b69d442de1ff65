"""What the scripts of the pages ask of the server, without a browser: events, what is pushed, who waits for whom."""

from __future__ import annotations

import asyncio
import json
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from chromium import Writer, nothing
from fakes import FakeEngine
from live_server import Live, serving
from relay import holding

from thumbwise.errors import ThumbwiseError
from thumbwise.home import Home
from thumbwise.pages import build, feed, live
from thumbwise.serving.assistant import Assistant

WORDS = ["Hello", " there", ", *friend*", "."]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Live]:
    def prepare(assistant: Assistant) -> None:
        assistant.engine = FakeEngine(Writer(WORDS))  # type: ignore[assignment]
        assistant.start = nothing  # type: ignore[method-assign]

    with serving(Home.find(tmp_path), prepare=prepare) as served:
        yield served


def writer(server: Live) -> Writer:
    engine: Any = server.assistant.engine
    client: Writer = engine.client
    return client


def ask(server: Live, text: str, conversation: str | None = None) -> dict[str, Any]:
    answer = httpx.post(f"{server.url}/pages/chat/messages", json={"conversation": conversation, "text": text})
    assert answer.status_code == 200, answer.text
    page: dict[str, Any] = answer.json()
    return page


def events(server: Live, address: str) -> Iterator[tuple[str, Any]]:
    """The events of a stream, with their data; comments as `("", None)`."""
    with httpx.stream("GET", server.url + address, timeout=20) as stream:
        assert stream.status_code == 200
        assert stream.headers["content-type"].startswith("text/event-stream")
        name = ""
        for line in stream.iter_lines():
            if line.startswith("event: "):
                name = line.removeprefix("event: ")
            elif line.startswith("data: "):
                yield name, json.loads(line.removeprefix("data: "))
            elif line.startswith(":"):
                yield "", None


def until(server: Live, address: str, wanted: str) -> list[tuple[str, Any]]:
    found = []
    for event in events(server, address):
        found.append(event)
        if event[0] == wanted:
            break
    return found


def end_of(server: Live, page: dict[str, Any]) -> dict[str, Any]:
    """Wait for the end of a page's newest reply."""
    reply = re.findall(r'data-reply="(\w+)"', page["log"])[-1]
    end: dict[str, Any] = until(server, f"/pages/chat/events?reply={reply}", "end")[-1][1]
    return end


def test_a_reply_comes_as_frames_and_one_end(server: Live) -> None:
    writer(server).hold = 2
    page = ask(server, "Hi")
    assert page["state"] == "streaming"
    seen = []
    for name, data in events(server, page["events"]):
        seen.append(name)
        if name == "frame" and "there" in data["parts"][0]:
            writer(server).hold = None
        if name == "end":
            break
    assert seen[0] == "top"
    assert "frame" in seen
    assert (data["state"], data["reply"] in page["log"]) == ("done", True)
    assert "<em>friend</em>" in data["html"]
    again = until(server, page["events"], "end")  # who comes late is told the end alone
    assert [name for name, _ in again] == ["top", "end"]
    assert again[-1][1] == data


def test_drafts_come_as_frames_and_one_end_without_a_version(server: Live) -> None:
    page = httpx.post(f"{server.url}/pages/compare/comparisons", json={"text": "Which?"}).json()
    found = until(
        server, page["events"] + ("" if "follow" in page["events"] else f"?follow={page['comparison']}"), "end"
    )
    end = found[-1][1]
    assert end["state"] == "ready"
    assert end["stage"].count("<em>friend</em>") == 2
    assert "policy-" not in json.dumps([page, found])
    vote = {"comparison": page["comparison"], "choice": "left", "strength": 1}
    voted = httpx.post(f"{server.url}/pages/compare/votes", json=vote).json()
    assert voted["state"] == "voted"
    assert "policy-0000" in voted["stage"]


def test_the_chat_page_does_not_tell_who_wrote_a_draft(server: Live) -> None:
    page = httpx.post(f"{server.url}/pages/compare/comparisons", json={"text": "Which?"}).json()
    (draft, _) = [row["id"] for row in server.assistant.store.rows("SELECT id FROM replies")]
    feed_ = events(server, f"/pages/chat/events?reply={draft}")
    assert next(feed_)[0] == "top"
    server.assistant.policies.warning = "Something changed."
    assert next(feed_)[0] == "top"  # and no end in between
    assert httpx.post(f"{server.url}/pages/chat/stop", json={"message": draft}).status_code == 404
    until(server, f"/pages/compare/events?follow={page['comparison']}", "end")


def test_what_arrives_together_is_all_there(server: Live) -> None:
    with holding(server.url) as url:
        behind = Live(server.assistant, url, server.app)
        page = ask(behind, "Hi")
        for number in range(8):
            assert end_of(behind, page)["state"] == "done"
            page = ask(behind, f"And {number}?", page["conversation"])


def test_nobody_elses_reply_is_followed(server: Live) -> None:
    page = ask(server, "Hi")
    end_of(server, page)
    store = server.assistant.store
    with store.write() as db:
        db.execute("UPDATE replies SET user_id = 'somebody'")
        db.execute("UPDATE conversations SET user_id = 'somebody'")
    feed_ = events(server, page["events"])
    assert next(feed_)[0] == "top"
    server.assistant.policies.warning = "Something changed."
    assert next(feed_)[0] == "top"  # and no end in between
    assert httpx.get(f"{server.url}/pages/chat?c={page['conversation']}").status_code == 404


def test_one_conversation_does_not_wait_for_another(server: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = (ask(server, text) for text in ("One", "Two"))
    for page in (one, two):
        end_of(server, page)
    begin, held = server.assistant.conversations.begin, threading.Event()

    async def slowly(*given: Any, **more: Any) -> Any:
        if more["conversation_id"] == one["conversation"]:
            await asyncio.to_thread(held.wait, 20)
        return await begin(*given, **more)

    monkeypatch.setattr(server.assistant.conversations, "begin", slowly)
    body = {"conversation": one["conversation"], "text": "And then?"}
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{server.url}/pages/chat/messages", json=body, timeout=0.5)
    assert ask(server, "And then?", two["conversation"])["state"] in ("streaming", "done")
    held.set()


def test_a_conversation_takes_one_question_at_a_time(server: Live) -> None:
    writer(server).hold = 1
    page = ask(server, "One")
    body = {"conversation": page["conversation"], "text": "Two"}
    refused = httpx.post(f"{server.url}/pages/chat/messages", json=body)
    assert (refused.status_code, "still being written" in refused.text) == (409, True)
    writer(server).hold = None
    end_of(server, page)
    assert httpx.post(f"{server.url}/pages/chat/messages", json=body).status_code == 200


def test_changes_are_pushed_and_all_pages_share_one_look(server: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed, "LOOK_SECONDS", 0.05)
    monkeypatch.setattr(feed, "HEARTBEAT", 0.5)
    looks = []
    state = feed.Watch._state
    monkeypatch.setattr(feed.Watch, "_state", lambda watch: looks.append(time.monotonic()) or state(watch))
    streams = [events(server, "/pages/chat/events") for _ in range(20)]
    assert [next(stream)[0] for stream in streams] == ["top"] * 20
    looks.clear()
    begun = time.monotonic()
    assert [next(stream) for stream in streams] == [("", None)] * 20  # nothing but a heartbeat where nothing changes
    assert len(looks) <= 2 + (time.monotonic() - begun) / 0.05
    server.assistant.policies.warning = "policy-0004 could not be restored."
    for stream in streams:
        name, data = next((name, data) for name, data in stream if name)
        assert name == "top"
        assert "policy-0004 could not be restored." in data["banner"]
        stream.close()


@pytest.mark.parametrize("path", ["/pages/chat/events", "/pages/compare/events"])
def test_the_engines_log_is_not_for_everybody(server: Live, path: str) -> None:
    engine: Any = server.assistant.engine
    engine.state, engine.detail = "failed", "vLLM could not be started.\nTraceback: /home/somebody/secret.py"
    name, top = next(events(server, path))
    assert (name, top["ready"]) == ("top", False)
    assert "vLLM could not be started." in top["banner"]
    assert "secret" not in json.dumps(top)
    assert "secret" not in httpx.get(f"{server.url}/health/ready").text


def test_a_full_conversation_says_so(server: Live) -> None:
    page = ask(server, "Hi")
    end_of(server, page)
    full = "This conversation is longer than the model can read (2048 tokens): start a new one, or shorten it."
    writer(server).fail_after, writer(server).failure = 0, ThumbwiseError(full, code="context_length_exceeded")
    end = end_of(server, ask(server, "More", page["conversation"]))
    assert (end["state"], end["said"]) == ("failed", full)
    assert f'<p class="tw-why">{full}</p>' in end["html"]


@pytest.mark.parametrize("listed", [0, -5, 10**30])
def test_a_list_of_no_length_and_of_any_length_is_refused(server: Live, listed: int) -> None:
    asked = httpx.get(f"{server.url}/pages/chat", params={"listed": listed})
    sent = httpx.post(f"{server.url}/pages/chat/messages", json={"text": "Hi", "listed": listed})
    assert [answer.status_code for answer in (asked, sent)] == [400, 400]


def test_an_end_that_cannot_be_stored_is_told(server: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "END_SECONDS", 0.3)
    full = ThumbwiseError("The disk is full: nothing was saved. Make room, then try again.", status=507)

    def refused(*given: Any, **more: Any) -> None:
        raise full

    monkeypatch.setattr(server.assistant.store, "finish_reply", refused)
    page = ask(server, "Hi")
    end = end_of(server, page)
    assert (end["state"], end["said"]) == ("failed", str(full))


def test_a_page_that_hangs_up_leaves_nothing_behind(server: Live) -> None:
    for _ in range(5):
        assert next(events(server, "/pages/chat/events"))[0] == "top"
    give_up = time.monotonic() + 20
    while len(server.assistant._tasks) > 0 and time.monotonic() < give_up:
        time.sleep(0.1)
    assert server.assistant._tasks == set()


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("chat/messages", {"text": "\ud83d"}),
        ("chat/messages", {"text": " "}),
        ("chat/messages", {"text": "Hi", "conversation": "\ud83d"}),
        ("chat/messages", {"text": "Hi", "conversation": "x" * 100}),
        ("chat/messages", {"text": "Hi", "listed": 10**30}),
        ("chat/thumbs", {"message": "\ud83d", "thumb": "up"}),
        ("chat/comments", {"message": "msg_x", "text": "x" * 5000}),
        ("compare/comparisons", {"text": "\ud83d"}),
        ("compare/votes", {"comparison": "\ud83d", "choice": "left"}),
    ],
)
def test_what_no_page_sends_is_refused_in_a_sentence(server: Live, path: str, body: dict[str, Any]) -> None:
    sent = {"content": json.dumps(body), "headers": {"Content-Type": "application/json"}}
    answer = httpx.post(f"{server.url}/pages/{path}", **sent)
    assert answer.status_code == 400
    assert answer.json()["error"]["message"].endswith(".")
    assert server.assistant.store.rows("SELECT * FROM conversations") == []


def test_gradio_sleeps_for_there_are_no_events() -> None:
    queue = build()._queue
    assert min(queue.sleep_when_free, queue.progress_update_sleep_when_free) >= 1

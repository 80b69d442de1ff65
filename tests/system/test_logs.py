"""What the server writes to its log: events with fields, and nothing that people wrote or were answered."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from datetime import datetime

import httpx
import pytest

from thumbwise import logs
from thumbwise.errors import EngineFailed
from thumbwise.serving.assistant import Assistant

SECRET = "my cat Ludmilla"
COMMENT = "Ludmilla deserves better"


@pytest.fixture
def root() -> Iterator[logging.Logger]:
    """The root logger, put back as it was."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield root
    root.handlers[:], root.level = handlers, level


async def say(http: httpx.AsyncClient) -> httpx.Response:
    body = {"messages": [{"role": "user", "content": SECRET}], "user": "Ludmilla's owner"}
    return await http.post("/v1/chat/completions", json=body)


async def everything(http: httpx.AsyncClient, assistant: Assistant) -> None:
    """A reply, a vote on it, a comparison, and a reply that fails with a sentence that quotes its prompt."""
    message = (await say(http)).json()["thumbwise"]["message_id"]
    vote = {"kind": "comment", "message_id": message, "value": {"text": COMMENT}, "user": "Ludmilla's owner"}
    answer = await http.post("/v1/feedback", json=vote, headers={"Idempotency-Key": "k"})
    assert answer.status_code == 201, answer.text
    asked = {"messages": [{"role": "user", "content": SECRET}], "k": 2, "user": "Ludmilla's owner"}
    assert (await http.post("/v1/comparisons", json=asked)).status_code == 200
    client = assistant.engine.client  # type: ignore[union-attr]
    client.fail_after, client.failure = 1, EngineFailed(f"cannot read {SECRET!r}")  # type: ignore[union-attr]
    assert (await say(http)).status_code == 502


async def test_events_have_fields_and_no_text_of_anybodys(
    http: httpx.AsyncClient, assistant: Assistant, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    await everything(http, assistant)
    found = [record.__dict__ for record in caplog.records if "event" in record.__dict__]
    assert [record["event"] for record in found] == ["reply", "vote", "reply", "reply", "reply"]
    assert [record.get("state") for record in found] == ["done", None, "done", "done", "failed"]
    assert (found[0]["version"], found[0]["tokens"], found[-1]["error"]) == ("policy-0000", 3, "engine_failed")
    for record in caplog.records:
        said = record.getMessage() + repr(sorted(record.__dict__.items(), key=str))
        assert not any(word in said for word in ("Ludmilla", "Hello", "friend"))


async def test_json_lines_have_the_same_fields_in_every_line(
    http: httpx.AsyncClient, assistant: Assistant, root: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    logs.configure("json")
    await everything(http, assistant)
    logging.getLogger("elsewhere").warning("a library's line")
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert all(line.keys() >= {"time", "level", "logger", "message"} for line in lines)
    assert {line.get("event") for line in lines} == {"reply", "vote", None}
    assert all(datetime.fromisoformat(line["time"]) for line in lines)


def test_text_lines_are_for_people(root: logging.Logger, capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("text")
    logs.event(
        logging.getLogger("thumbwise.versions.lifecycle"), "promote", "policy-0002 is stable now", version="policy-0002"
    )
    assert capsys.readouterr().err.endswith(" thumbwise.versions.lifecycle: policy-0002 is stable now\n")

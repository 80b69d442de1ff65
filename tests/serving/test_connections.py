"""Connections that say nothing, or break off: closed in time, without a trace in the log; the patient ones are not."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import threading
import time
from typing import Any

import httpx
import pytest
from fakes import FakeEngineClient
from live_server import Live

from thumbwise.serving import connections

CHAT = "/v1/chat/completions"
ASK = json.dumps({"messages": [{"role": "user", "content": "Hello?"}]}).encode()
HEAD = f"POST {CHAT} HTTP/1.1\r\nHost: 127.0.0.1\r\n".encode()
LONG = 60.0
"""Seconds until a test gives up waiting for a connection to be closed."""


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "HEAD_SECONDS", 0.5)
    monkeypatch.setattr(connections, "BODY_SECONDS", 0.5)


def connected(live: Live) -> socket.socket:
    address = httpx.URL(live.url)
    return socket.create_connection((address.host, address.port), timeout=LONG)


def last_words(connection: socket.socket) -> bytes:
    """All that comes until the server closes; a TimeoutError where it never does."""
    said = b""
    try:
        while data := connection.recv(65536):
            said += data
    except ConnectionResetError:
        pass
    return said


@pytest.mark.parametrize(
    "sent",
    [
        b"", b"P", b"\r\n", HEAD, HEAD + b"Content-Length: 100\r\n\r\n", HEAD + b"Content-Length: 100\r\n\r\n{",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n", HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\n{",
        b"POST /ops/api/runs HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 9\r\n\r\n",
        b"POST /gradio_api/queue/join HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        b"Content-Length: 9\r\n\r\n{",
    ],
    ids=["nothing", "a letter", "a line end", "half a head", "no body", "half a body", "no chunk", "half a chunk",
         "the job's, without its token", "a page's"],
)  # fmt: skip
def test_who_does_not_go_on_is_let_go(live, hasty, caplog, monkeypatch, sent) -> None:
    caplog.set_level(logging.WARNING)
    with connected(live) as connection:
        connection.sendall(sent)
        said = last_words(connection)
    assert b"200 OK" not in said
    monkeypatch.undo()
    assert httpx.get(f"{live.url}/health/live").status_code == 200
    assert [record.getMessage() for record in caplog.records] == []


@pytest.mark.parametrize("drop", [b"X-A: b\r\n", b"\r\n"])
def test_who_drips_is_let_go_too_and_a_head_has_a_most(live, hasty, drop) -> None:
    def drip() -> None:
        try:
            while True:
                connection.sendall(drop)
                time.sleep(0.05)
        except OSError:  # it is closed
            pass

    with connected(live) as connection:
        connection.sendall(HEAD if drop.strip() else drop)
        thread = threading.Thread(target=drip)
        thread.start()
        last_words(connection)
        thread.join(LONG)
        assert not thread.is_alive()


def test_a_head_has_a_most(live) -> None:
    with connected(live) as connection:
        connection.sendall(HEAD)
        try:
            for _ in range(1000):
                connection.sendall(b"X-A: " + b"b" * 8000 + b"\r\n")
        except OSError:  # it is closed
            pass
        assert b"200 OK" not in last_words(connection)


def test_a_connection_that_was_used_is_let_go_as_well(live, hasty) -> None:
    with connected(live) as connection:
        connection.sendall(b"GET /health/live HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        while b"alive" not in connection.recv(65536):
            pass
        connection.sendall(b"GET /health/live HTT")
        assert last_words(connection) == b""


def test_a_body_that_comes_steadily_is_read_to_its_end_and_a_long_reply_to_its(live, hasty, monkeypatch) -> None:
    monkeypatch.setattr(connections, "LEAST_RATE", 5)
    with connected(live) as connection:
        connection.sendall(HEAD + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(ASK))
        for start in range(0, len(ASK), 10):  # more than five bytes a second
            connection.sendall(ASK[start : start + 10])
            time.sleep(0.1)
        assert b"200 OK" in last_words(connection)

    class Slow(FakeEngineClient):
        async def chat(self, *arguments: Any) -> Any:
            async for chunk in super().chat(*arguments):
                await asyncio.sleep(0.5)
                yield chunk

    monkeypatch.setattr(live.assistant.engine, "client", Slow())
    answer = httpx.post(f"{live.url}{CHAT}", content=ASK, timeout=LONG)
    assert answer.json()["choices"][0]["message"]["content"] == "Hello there friend"

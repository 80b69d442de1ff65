"""A server that answers badly: whatever it says is one sentence to people, and costs nothing without end."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from canned_engine import ASK, DONE, SAMPLING, event, read, stub
from fakes import asker
from tiny_engine import TinyEngine

from thumbwise.contracts import Message
from thumbwise.engine.client import EngineClient, Sampling
from thumbwise.engine.external import ExternalEngine, Replicas
from thumbwise.errors import EngineFailed, EngineUnavailable, ThumbwiseError
from thumbwise.names import BASE
from thumbwise.serving.assistant import Assistant

JSON = "application/json"
ODD_JSON = [b"", b"{", b"[]", b"5", b"null", b'"text"', b"{}", b'{"choices": 5}', b"[" * 100_000, b"\xff\xfe"]
ODD_ANSWERS = [
    *ODD_JSON,
    b'{"model": "policy-0000", "choices": [{}]}',
    b'{"model": "policy-0000", "choices": [{"index": "x"}]}',
    b'{"model": "policy-0000", "choices": [{"index": 0, "logprobs": null}]}',
    b'{"model": "policy-0000", "choices": [{"index": 0, "logprobs": {"top_logprobs": []}}]}',
    b'{"model": "policy-0000", "choices": [{"index": 0, "logprobs": {"top_logprobs": [{"word": -1}]}}]}',
    b'{"model": "policy-0000", "choices": [{"index": 0, "logprobs": {"top_logprobs": [{"token_id:1": "x"}]}}]}',
    b'{"model": "policy-0000", "choices": []}',
    b'{"model": 5}',
]
ODD_EVENTS = [
    b"data: {\n\n",
    b"data: []\n\n",
    b"data: 5\n\n",
    b"data: {}\n\n",
    b'data: {"model": "policy-0000"}\n\n',
    b'data: {"model": "policy-0000", "choices": {}, "x": 1}\n\n',
    b'data: {"model": "policy-0000", "choices": [5]}\n\n',
    b'data: {"model": "policy-0000", "choices": [{"delta": null}]}\n\n',
    b'data: {"error": [1, 2]}\n\n',
    event(delta={"content": 5}),
    event(delta={"content": ["a"]}),
    event(token_ids=["5"]),
    event(token_ids=[True]),
    event(token_ids=[-1]),
    event(token_ids="57"),
    event(finish_reason=["stop"]),
    event(finish_reason="x" * 10_000),
    event(model="x" * 10_000),
]


def one_sentence(error: ThumbwiseError) -> str:
    said = str(error)
    assert "\n" not in said
    assert len(said) < 400
    assert said.endswith((".", "…"))
    return said


@pytest.mark.parametrize("body", ODD_ANSWERS, ids=lambda body: body[:60].decode(errors="replace"))
async def test_an_answer_that_is_none_is_an_engine_failure(tmp_path: Path, body: bytes) -> None:
    async with stub(tmp_path, body, kind=JSON) as (client, _):
        for ask in (client.next_token_logprobs(BASE, [1]), client.adapters()):
            with pytest.raises(EngineFailed) as caught:
                await ask
            assert caught.value.status == 502
            assert one_sentence(caught.value)


@pytest.mark.parametrize("body", ODD_EVENTS, ids=lambda body: body[:70].decode(errors="replace"))
async def test_an_event_that_is_none_is_an_engine_failure(tmp_path: Path, body: bytes) -> None:
    async with stub(tmp_path, event("a") + body + DONE) as (client, _):
        with pytest.raises(EngineFailed) as caught:
            await read(client)
        assert one_sentence(caught.value)


@pytest.mark.parametrize("body", ODD_JSON, ids=lambda body: body[:20].decode(errors="replace"))
@pytest.mark.parametrize("status", ["400 Bad Request", "500 Internal Server Error", "503 Service Unavailable"])
async def test_a_refusal_of_another_shape_is_one_sentence_too(tmp_path: Path, body: bytes, status: str) -> None:
    async with stub(tmp_path, body, status, JSON) as (client, _):
        with pytest.raises(ThumbwiseError) as caught:
            await read(client)
        assert one_sentence(caught.value)
    assert isinstance(caught.value, {"4": ThumbwiseError, "5": EngineFailed | EngineUnavailable}[status[0]])


@contextlib.asynccontextmanager
async def torrent(folder: Path, begin: bytes, piece: bytes) -> AsyncIterator[tuple[EngineClient, list[int]]]:
    """A server that sends `begin`, and then `piece` for as long as it is read; yields how much it has sent."""
    sent = [0]

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close\r\n\r\n" + begin)
        with contextlib.suppress(ConnectionError):
            while True:
                writer.write(piece)
                await writer.drain()
                sent[0] += len(piece)

    server = await asyncio.start_unix_server(answer, str(folder / "s"))
    client = EngineClient(uds=folder / "s")
    try:
        yield client, sent
    finally:
        await client.aclose()
        server.close()


ENDLESS = {
    "a line without an end": (b"", b"x" * 65536),
    "one after the first event": (event("a"), b"x" * 65536),
    "a reply without an end": (b"", event("word ")),
    "events that say nothing": (b"", b'data: {"model": "policy-0000", "choices": []}\n\n'),
    "comments": (b"", b": ping\n\n"),
    "text without tokens": (b"", event("x" * 5000, token_ids=[])),
}


@pytest.mark.parametrize("how", ENDLESS)
async def test_what_has_no_end_is_given_up(tmp_path: Path, how: str) -> None:
    async with torrent(tmp_path, *ENDLESS[how]) as (client, sent):
        with pytest.raises(EngineFailed, match="given up"):
            await read(client, sampling=Sampling(0.7, 5))
    assert sent[0] < 40_000_000  # sockets hold some of it


async def test_an_answer_without_an_end_is_given_up(tmp_path: Path) -> None:
    async with torrent(tmp_path, b"", b"[" * 65536) as (client, sent):
        with pytest.raises(EngineFailed, match="has no end"):
            await client.adapters()
    assert sent[0] < 40_000_000


async def test_a_long_prompts_ids_are_no_endless_line(tmp_path: Path) -> None:
    first = {"model": BASE, "choices": [{"delta": {"content": ""}}], "prompt_token_ids": [123_456] * 500_000}
    async with stub(tmp_path, b"data: " + json.dumps(first).encode() + b"\n\n" + event(reason="stop")) as (client, _):
        chunks = await read(client)
    assert [len(chunk.prompt_ids or ()) for chunk in chunks] == [500_000, 0]


async def test_no_more_is_kept_than_was_asked_for(tmp_path: Path) -> None:
    async with stub(tmp_path, event("word ") * 9 + event(reason="stop") + DONE) as (client, _):
        with pytest.raises(EngineFailed, match="more than the 8 tokens"):
            await read(client)


async def test_what_follows_the_end_of_a_reply_does_not_undo_it(tmp_path: Path) -> None:
    for after in (b"data: {\n\n", event("more"), b'data: {"error": {"message": "late"}}\n\n'):
        async with stub(tmp_path, event("whole", reason="stop") + after) as (client, _):
            assert [chunk.text for chunk in await read(client)] == ["whole"]


@pytest.mark.parametrize("status", ["301 Moved", "302 Found", "307 Temporary Redirect", "308 Permanent Redirect"])
async def test_nothing_is_posted_to_where_a_redirect_leads(tmp_path: Path, status: str) -> None:
    (tmp_path / "other").mkdir()
    posted: list[bytes] = []

    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        posted.append(await reader.readuntil(b"\r\n\r\n"))
        writer.close()

    other = await asyncio.start_server(take, "127.0.0.1", 0)
    where = f"{status}\r\nlocation: http://127.0.0.1:{other.sockets[0].getsockname()[1]}/v1"
    async with other, stub(tmp_path, b"", where) as (client, _):
        with pytest.raises(EngineFailed, match="leads to another one"):
            await read(client)
        for ask in (client.adapters(), client.next_tokens(BASE, [[1]]), client.load_adapter("a", tmp_path)):
            with pytest.raises(EngineFailed, match="leads to another one"):
                await ask
        assert not await client.alive()
    assert posted == []


async def test_what_the_server_asks_for_is_sent_with_every_request(tmp_path: Path) -> None:
    heads: list[bytes] = []

    async def note(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        writer.close()

    server = await asyncio.start_server(note, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server:
        for engine in (ExternalEngine(url, api_key="hush-hush"), *Replicas([url], api_key="hush-hush").members):
            for ask in (engine.client.adapters(), read(engine.client)):
                with pytest.raises(EngineFailed):
                    await ask
            await engine.client.aclose()
    assert len(heads) >= 4
    assert all(b"Authorization: Bearer hush-hush\r\n" in head for head in heads)


async def test_a_server_that_answered_wrongly_is_used_once_it_is_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is wrong with its answers, or in what is called when it is ready."""
    monkeypatch.setattr(ExternalEngine, "poll_every", 0.01)
    monkeypatch.setattr(ExternalEngine, "most", 0.01)
    row = {"index": 0, "logprobs": {"top_logprobs": [{"token_id:1": -0.1}]}}
    well = json.dumps({"model": BASE, "choices": [row], "data": [{"id": BASE, "root": "/model"}]}).encode()
    bodies = [body for body in ODD_ANSWERS if len(body) < 1000]
    called: list[None] = []

    async def callback(client: EngineClient) -> None:
        called.append(None)
        if len(called) < 3:
            raise KeyError("a bug")

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        await reader.readexactly(int(head.partition(b"content-length:")[2].partition(b"\r\n")[0] or 0))
        body = bodies.pop() if bodies else well
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close\r\n\r\n" + body)
        writer.close()

    server = await asyncio.start_unix_server(answer, str(tmp_path / "s"))
    engine = ExternalEngine(f"unix:{tmp_path / 's'}")
    engine.on_ready.append(callback)
    async with server:
        await engine.start()
        while engine.state != "ready":
            assert "\n" not in engine.detail
            await asyncio.sleep(0.01)
        await engine.stop()
    assert (bodies, len(called)) == ([], 3)


async def test_an_answer_to_fewer_prompts_than_were_asked_is_none(tmp_path: Path) -> None:
    row = {"index": 0, "logprobs": {"top_logprobs": [{"token_id:1": -0.1}]}}
    body = json.dumps({"model": BASE, "choices": [row]}).encode()
    async with stub(tmp_path, body, kind=JSON) as (client, _):
        with pytest.raises(EngineFailed, match="answered 1 prompts where 2"):
            await client.next_tokens(BASE, [[1], [2]])


# --- the context -------------------------------------------------------------------------------------

FULL = [
    "This model's maximum context length is 256 tokens. However, your prompt contains at least 257 input tokens.",
    "Input length (300) exceeds model's maximum context length (256).",
]


@pytest.mark.parametrize("said", FULL)
async def test_a_prompt_that_is_too_long_says_so_with_openais_code(tmp_path: Path, said: str) -> None:
    body = json.dumps({"error": {"message": said}}).encode()
    async with stub(tmp_path, body, "400 Bad Request", JSON) as (client, _):
        with pytest.raises(
            ThumbwiseError, match=r"longer than the model can read \(256 tokens\): start a new"
        ) as caught:
            await read(client)
    assert (caught.value.status, caught.value.code) == (400, "context_length_exceeded")


async def test_a_reply_is_never_asked_to_be_longer_than_the_context(tmp_path: Path) -> None:
    cards = {"data": [{"id": BASE, "root": "/model", "max_model_len": 256}, {"id": "a", "root": "/a"}]}
    async with stub(tmp_path, json.dumps(cards).encode(), kind=JSON) as (client, _):
        await client.adapters()
        context = client.context
    assert context == 256
    reply = event("a") * 3 + event("a", reason="length") + DONE
    async with stub(tmp_path, reply) as (client, asked):
        client.context = context
        (*_, last) = await read(client, sampling=Sampling(0.7, 512))
    assert json.loads(asked[0])["max_completion_tokens"] == 255
    assert last.context_full


@pytest.mark.parametrize(("reason", "asked", "full"), [("length", 3, True), ("length", 2, False), ("stop", 3, False)])
async def test_only_a_reply_cut_before_its_own_length_filled_the_context(
    tmp_path: Path, reason: str, asked: int, full: bool
) -> None:
    async with stub(tmp_path, event("a") + event("b", reason=reason) + DONE) as (client, _):
        chunks = await read(client, sampling=Sampling(0.7, asked))
    assert [chunk.context_full for chunk in chunks] == [False, full]


@pytest.mark.engine
async def test_a_reply_that_fills_the_context_says_that_it_broke_off_there(
    tiny_engine: TinyEngine, tiny_model: Path
) -> None:
    """Prompts that leave 6, 1 and no token, and a reply longer than the whole context asked for."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)

    def length(text: str) -> int:
        messages = [{"role": "user", "content": text}]
        return len(tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False))

    def asked(tokens: int) -> list[Message]:
        text = "2" * (tokens - length(""))  # a token each
        assert length(text) == tokens
        return [Message(role="user", content=text)]

    client = tiny_engine.client()
    await client.adapters()
    assert client.context == 4096
    for left in (6, 1):
        chunks = [c async for c in client.chat(BASE, asked(4096 - left), Sampling(1.0, 9000, seed=left))]
        ids = [token for chunk in chunks for token in chunk.response_ids]
        assert len(ids) <= left
        again = [c async for c in client.chat(BASE, asked(4096 - left), Sampling(1.0, 9000, seed=left))]
        assert [token for chunk in again for token in chunk.response_ids] == ids  # the first was read in pieces
        assert chunks[-1].context_full == (chunks[-1].finish_reason == "length")
    with pytest.raises(ThumbwiseError, match="longer than the model can read") as caught:
        await anext(client.chat(BASE, asked(4096), SAMPLING))
    assert caught.value.code == "context_length_exceeded"
    await client.aclose()


# --- what is stored ----------------------------------------------------------------------------------


@pytest.mark.parametrize("raised", [KeyError("choices"), TypeError("x"), RuntimeError("a bug")])
async def test_a_bug_in_mid_reply_is_a_failed_reply_and_not_one_that_its_reader_stopped(
    assistant: Assistant, raised: Exception
) -> None:
    fake: Any = assistant.engine.client  # type: ignore[union-attr]
    fake.fail_after, fake.failure = 1, raised
    turn = await assistant.conversations.begin(asker(), ASK, SAMPLING)  # type: ignore[arg-type]
    with pytest.raises(ThumbwiseError, match="its log says what"):
        async for _ in assistant.conversations.stream(turn, asker()):
            pass
    (row,) = assistant.store.rows("SELECT state, error FROM replies")
    assert row["state"] == "failed"
    assert "its log says what" in row["error"]

"""The public API over HTTP, with a fake engine behind it: shapes, allow-list, ownership, what is stored."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest
from fakes import FakeEngine, FakeEngineClient, asker
from live_server import serving, wait_ready

from thumbwise.errors import EngineFailed, ThumbwiseError
from thumbwise.feedback.records import Asker
from thumbwise.home import Home
from thumbwise.serving import auth
from thumbwise.serving.assistant import Assistant
from thumbwise.serving.auth import MAX_API_BODY

CHAT = "/v1/chat/completions"
ASK = [{"role": "user", "content": "Hello?"}]


@pytest.fixture
def engine(assistant: Assistant) -> FakeEngineClient:
    return assistant.engine.client  # type: ignore[union-attr, return-value]


def stored(assistant: Assistant) -> list[dict[str, Any]]:
    return assistant.store.rows("SELECT * FROM replies ORDER BY created_at, id")


async def test_a_completion_is_stored_with_the_version_that_wrote_it(http, assistant) -> None:
    body = (await http.post("/v1/chat/completions", json={"messages": ASK})).json()
    assert body["choices"][0]["message"]["content"] == "Hello there friend"
    assert body["thumbwise"] == {"message_id": body["id"], "policy_version": "policy-0000"}
    assert body["usage"] == {"prompt_tokens": 3, "completion_tokens": 3, "total_tokens": 6}
    row = stored(assistant)[0]
    assert (row["id"], row["state"], row["text"]) == (body["id"], "done", "Hello there friend")
    assert json.loads(row["response_ids"]) == [10, 11, 12]


async def test_the_openai_client_streams_and_finds_ids_on_the_first_and_last_chunk(http, assistant) -> None:
    client = openai.AsyncOpenAI(base_url="http://127.0.0.1:7860/v1", api_key="none", http_client=http)
    stream = await client.chat.completions.create(
        model="thumbwise", messages=ASK, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    carriers = [i for i, c in enumerate(chunks) if c.model_extra and "thumbwise" in c.model_extra]
    assert text == "Hello there friend"
    assert carriers == [0, len(chunks) - 2]
    assert chunks[-1].usage.completion_tokens == 3
    whole = await client.chat.completions.create(model="thumbwise", messages=ASK, max_tokens=2)
    assert whole.choices[0].finish_reason == "length"
    assert {m.id for m in (await client.models.list()).data} == {"thumbwise", "policy-0000"}


async def test_what_httpx_takes_for_the_end_of_a_line_does_not_end_one_in_a_stream(http, engine) -> None:
    engine.words = ["a\x85b", "c\u2028d", "e\u2029f\x0b\x1c", "é"]
    text = ""
    async with http.stream("POST", "/v1/chat/completions", json={"messages": ASK, "stream": True}) as stream:
        async for line in stream.aiter_lines():
            if line.startswith("data: {"):
                text += json.loads(line[6:])["choices"][0]["delta"].get("content", "")
    assert text == "".join(engine.words)


async def test_logprobs_are_those_of_the_sampled_tokens_with_their_ids_streamed_or_not(http) -> None:
    client = openai.AsyncOpenAI(base_url="http://127.0.0.1:7860/v1", api_key="none", http_client=http)
    whole = await client.chat.completions.create(model="thumbwise", messages=ASK, logprobs=True)
    found = whole.choices[0].logprobs
    assert [(row.token, row.logprob) for row in found.content] == [("Hello", 0.0), (" there", -0.5), (" friend", -1.0)]
    assert found.model_extra["token_ids"] == [10, 11, 12]
    stream = await client.chat.completions.create(model="thumbwise", messages=ASK, logprobs=True, stream=True)
    parts = [c.choices[0].logprobs async for c in stream if c.choices and c.choices[0].logprobs]
    assert [row.logprob for part in parts for row in part.content] == [0.0, -0.5, -1.0]
    assert [i for part in parts for i in part.model_extra["token_ids"]] == [10, 11, 12]
    plain = await client.chat.completions.create(model="thumbwise", messages=ASK)
    assert plain.choices[0].logprobs is None


@pytest.mark.parametrize(
    "field", ["prompt_logprobs", "echo", "priority", "chat_template", "top_k", "logit_bias", "return_token_ids"]
)
async def test_a_field_outside_the_allow_list_is_refused_in_openais_shape(http, assistant, field) -> None:
    answer = await http.post("/v1/chat/completions", json={"messages": ASK, field: 1})
    assert answer.status_code == 400
    assert field in answer.json()["error"]["message"]
    assert stored(assistant) == []


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"messages": []}, 400),
        ({"messages": [{"role": "user", "content": "  "}]}, 400),
        ({"messages": [{"role": "assistant", "content": "hi"}]}, 400),
        ({"messages": ASK, "model": "gpt-5"}, 404),
        ({"messages": ASK, "max_tokens": 0}, 400),
        ({"messages": ASK, "temperature": 3}, 400),
        ({"messages": ASK, "n": 2}, 400),
        ({"messages": ASK, "stop": ["a"] * 5}, 400),
        ({"messages": [{"role": "user", "content": "x" * 300_000}]}, 400),
        ({"messages": ASK, "user": "x" * 257}, 400),
    ],
)
async def test_what_cannot_be_answered_is_one_sentence_and_stores_nothing(http, assistant, body, status) -> None:
    answer = await http.post("/v1/chat/completions", json=body)
    assert answer.status_code == status
    assert len(answer.json()["error"]["message"]) > 10
    assert stored(assistant) == []


async def test_a_fault_of_ours_a_plugins_and_a_wrong_address_are_one_sentence_too(http, assistant, monkeypatch) -> None:
    async def said(method: str, path: str, **sent: Any) -> tuple[int, str]:
        answer = await http.request(method, path, **sent)
        return answer.status_code, answer.json()["error"]["message"]

    assert await said("GET", "/v1/embeddings") == (
        404,
        "There is no GET /v1/embeddings: assistant/api/README.md describes the whole API.",
    )
    assert (await said("GET", "/v1/models/gpt-5"))[0] == 404
    assert (await http.get("/v1/models/thumbwise")).json()["id"] == "thumbwise"
    as_json = {"content-type": "application/json"}
    broken_off = await said("POST", "/v1/chat/completions", content=b"{", headers=as_json)
    assert broken_off == (400, "The body is not JSON: send one object.")
    half = json.dumps({"messages": [{"role": "user", "content": "half a \ud83d"}]}).encode()
    status, message = await said("POST", "/v1/chat/completions", content=half, headers=as_json)
    assert (status, "half a character" in message) == (400, True)


async def test_the_row_is_committed_before_the_first_chunk_and_the_text_before_the_last(assistant, engine) -> None:
    engine.gate = asyncio.Event()
    turn = await assistant.conversations.begin(asker(), ASK, assistant.conversations.sampling())
    stream = assistant.conversations.stream(turn, asker())
    await anext(stream)
    assert stored(assistant)[0]["state"] == "streaming"
    engine.gate.set()
    async for chunk in stream:
        if chunk.finish_reason:
            assert (stored(assistant)[0]["state"], stored(assistant)[0]["text"]) == ("done", "Hello there friend")
    assert stored(assistant)[0]["policy_version"] == "policy-0000"


async def test_the_engine_begins_while_the_row_is_committed(assistant, engine) -> None:
    with assistant.store.lock:  # nothing can be committed
        begun = asyncio.create_task(assistant.conversations.begin(asker(), ASK, assistant.conversations.sampling()))
        while not engine.asked:
            await asyncio.sleep(0.01)
        assert (begun.done(), stored(assistant)) == (False, [])
    turn = await begun
    assert stored(assistant)[0]["state"] == "streaming"
    text = "".join([chunk.text async for chunk in assistant.conversations.stream(turn, asker())])
    assert (text, len(engine.asked)) == ("Hello there friend", 1)


async def test_a_row_that_cannot_be_committed_stops_the_engine(assistant, engine) -> None:
    engine.gate = asyncio.Event()
    assistant.store.db.execute("PRAGMA max_page_count = 1")  # SQLite keeps to what there is: no page more
    ask = [{"role": "user", "content": "x" * 100_000}]
    with pytest.raises(ThumbwiseError, match="nothing was saved"):
        await assistant.conversations.begin(asker(), ask, assistant.conversations.sampling())
    assert (len(engine.asked), engine.open_streams, stored(assistant)) == (1, 0, [])


async def test_a_reader_who_leaves_stops_the_engine_and_the_reply_is_kept_as_stopped(assistant, engine) -> None:
    engine.gate = asyncio.Event()
    turn = await assistant.conversations.begin(asker(), ASK, assistant.conversations.sampling())
    stream = assistant.conversations.stream(turn, asker())
    await anext(stream)
    await stream.aclose()
    row = stored(assistant)[0]
    assert (row["state"], row["text"], engine.open_streams) == ("stopped", "Hello", 0)


async def test_an_engine_that_fails_in_mid_reply_is_an_error_event_and_a_failed_row(http, assistant, engine) -> None:
    engine.fail_after, engine.failure = 2, EngineFailed("vLLM died: try again.")
    answer = await http.post("/v1/chat/completions", json={"messages": ASK, "stream": True})
    events = [line[6:] for line in answer.text.split("\n\n") if line]
    assert json.loads(events[-1])["error"]["message"] == "vLLM died: try again."
    assert "[DONE]" not in answer.text
    row = stored(assistant)[0]
    assert (row["state"], row["text"], row["error"]) == ("failed", "Hello there", "vLLM died: try again.")
    vote = {"kind": "thumb", "message_id": row["id"], "value": "up"}
    refused = await http.post("/v1/feedback", json=vote, headers={"Idempotency-Key": "k"})
    assert refused.status_code == 409


@pytest.mark.parametrize("stream", [False, True])
async def test_what_vllm_refuses_has_its_status_streamed_or_not(http, assistant, engine, stream) -> None:
    engine.fail_after, engine.failure = 0, ThumbwiseError("vLLM refused the request: the prompt is too long.")
    answer = await http.post("/v1/chat/completions", json={"messages": ASK, "stream": stream})
    assert (answer.status_code, "too long" in answer.json()["error"]["message"]) == (400, True)
    row = stored(assistant)[0]
    assert (row["state"], row["finish_reason"], assistant.admission.in_flight) == ("failed", "refused", 0)


async def test_an_engine_that_is_starting_is_503_with_retry_after(http, assistant) -> None:
    assistant.engine.state, assistant.engine.detail = "starting", "The engine is starting."
    answer = await http.post("/v1/chat/completions", json={"messages": ASK})
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
    assert "starting" in answer.json()["error"]["message"]
    assert (await http.get("/health/ready")).status_code == 503
    assert (await http.get("/health/live")).status_code == 200
    assert [(await http.head(f"/health/{name}")).status_code for name in ("ready", "live")] == [503, 200]
    assistant.engine.state = "ready"
    assert (await http.get("/health/ready")).json()["stable"] == "policy-0000"


async def test_programs_without_a_key_share_their_limit_whatever_names_they_give(http, assistant, engine) -> None:
    engine.gate = asyncio.Event()
    limit = assistant.settings.local_in_flight
    open_requests = [
        asyncio.create_task(http.post("/v1/chat/completions", json={"messages": ASK})) for _ in range(limit)
    ]
    while engine.open_streams < limit:
        await asyncio.sleep(0.01)
    refused = await http.post("/v1/chat/completions", json={"messages": ASK})
    named = await http.post("/v1/chat/completions", json={"messages": ASK, "user": "ann"})
    assistant.admission.check(Asker("local", "browser:a", page=True))  # another person
    engine.gate.set()
    answers = await asyncio.gather(*open_requests)
    assert (refused.status_code, named.status_code) == (429, 429)
    assert {answer.status_code for answer in answers} == {200}


async def test_a_comparison_hides_versions_and_stores_the_order_shown(http, assistant) -> None:
    answer = await http.post("/v1/comparisons", json={"messages": ASK, "k": 2})
    body = answer.json()
    assert "policy" not in answer.text
    shown = json.loads(assistant.store.rows("SELECT shown FROM comparisons")[0]["shown"])
    assert [draft["draft_id"] for draft in body["drafts"]] == shown
    assert {row["comparison_id"] for row in stored(assistant)} == {body["comparison_id"]}
    assert json.loads(stored(assistant)[0]["sampling"])["max_tokens"] == assistant.settings.max_tokens


async def test_a_vote_is_kept_once_and_a_plugin_that_observes_it_cannot_break_it(http, assistant) -> None:
    body = (await http.post("/v1/comparisons", json={"messages": ASK})).json()
    vote = {"kind": "pair", "comparison_id": body["comparison_id"], "value": {"choice": "left", "strength": 2}}
    first = await http.post("/v1/feedback", json=vote, headers={"Idempotency-Key": "k"})
    again = await http.post("/v1/feedback", json=vote, headers={"Idempotency-Key": "k"})
    late = await http.post("/v1/feedback", json=vote, headers={"Idempotency-Key": "other"})
    assert (first.status_code, first.json()) == (201, again.json())
    assert late.status_code == 409
    assert assistant.store.counts()["pair"] == 1


async def test_a_vote_needs_a_key_and_an_own_message(http) -> None:
    body = (await http.post("/v1/chat/completions", json={"messages": ASK, "user": "ann"})).json()
    vote = {"kind": "thumb", "message_id": body["id"], "value": "up"}
    keyless = await http.post("/v1/feedback", json=vote | {"user": "ann"})
    foreign = await http.post("/v1/feedback", json=vote | {"user": "bob"}, headers={"Idempotency-Key": "k"})
    own = await http.post("/v1/feedback", json=vote | {"user": "ann"}, headers={"Idempotency-Key": "k"})
    assert [r.status_code for r in (keyless, foreign, own)] == [400, 404, 201]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"host": "evil.example"}, 403),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"origin": "http://127.0.0.1:7860"}, 200),
        ({}, 200),
        ({"host": "localhost:7860", "origin": "http://localhost:7860"}, 200),
        ({"host": "[::1]:7860"}, 200),
    ],
)
async def test_only_our_own_pages_and_no_browser_at_all_may_change_things(http, headers, status) -> None:
    answer = await http.post("/v1/chat/completions", json={"messages": ASK}, headers=headers)
    assert answer.status_code == status


async def test_the_job_api_wants_its_token(http, assistant) -> None:
    for path in ("/ops/api/runs", "/ops/api/rollback", "/ops/api/policies/policy-0000/promote"):
        assert (await http.post(path, json={})).status_code == 401
    headers = {"Authorization": f"Bearer {assistant.token}"}
    assert (await http.get("/ops/api/policies", headers=headers)).json()[0]["version"] == "policy-0000"
    assert assistant.home.token.stat().st_mode & 0o077 == 0


async def test_metrics_count_replies_and_votes(http) -> None:
    body = (await http.post("/v1/chat/completions", json={"messages": ASK})).json()
    vote = {"kind": "thumb", "message_id": body["id"], "value": "up"}
    await http.post("/v1/feedback", json=vote, headers={"Idempotency-Key": "k"})
    text = (await http.get("/metrics")).text
    assert 'thumbwise_replies_total{state="done",version="policy-0000"} 1.0' in text
    assert 'thumbwise_feedback_total{kind="thumb"} 1.0' in text
    assert "Hello" not in text


async def test_text_may_come_in_parts_and_what_is_no_text_is_refused(http, assistant, engine) -> None:
    parts = [{"type": "text", "text": "Hello"}, {"type": "text", "text": " there?"}]
    assert (await http.post(CHAT, json={"messages": [{"role": "user", "content": parts}]})).status_code == 200
    assert engine.asked[-1][1] == [{"role": "user", "content": "Hello there?"}]
    image = [{"type": "image_url", "image_url": {"url": "data:,"}}]
    refused = await http.post(CHAT, json={"messages": [{"role": "user", "content": image}]})
    assert (refused.status_code, refused.json()["error"]["type"]) == (400, "invalid_request_error")


def test_vllms_own_benchmark_client_is_content_with_us(tmp_path: Path, tiny_model: Path) -> None:
    """A client that nobody here wrote: aiohttp, text in parts, usage at the end of the stream."""
    place = importlib.util.find_spec("vllm")
    assert place is not None
    assert place.origin is not None
    source = Path(place.origin).parent / "benchmarks" / "lib" / "endpoint_request_func.py"
    spec = importlib.util.spec_from_file_location("endpoint_request_func", source)
    assert spec is not None
    assert spec.loader is not None
    client = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = client  # its dataclasses look there
    spec.loader.exec_module(client)

    async def ask(url: str) -> Any:
        wanted = client.RequestFuncInput(
            prompt="Hello?", api_url=f"{url}{CHAT}", prompt_len=1, output_len=8, model="thumbwise"
        )
        async with aiohttp.ClientSession() as session:
            return await client.async_request_openai_chat_completions(wanted, session)

    home = Home.find(tmp_path / "home")
    home.config.write_text(f'model = "{tiny_model}"\n')
    with serving(home, lambda: FakeEngine(FakeEngineClient())) as live:
        wait_ready(live)
        said = asyncio.run(ask(live.url))
    assert (said.success, said.error) == (True, "")
    assert (said.generated_text, said.output_tokens) == ("Hello there friend", 3)
    assert len(said.itl) == 3  # after the first event, which names the role


# --- how much a request may send --------------------------------------------------------------------------


async def in_chunks(count: int, size: int = 1024**2) -> AsyncIterator[bytes]:
    for _ in range(count):
        yield b" " * size


@pytest.mark.parametrize("path", [CHAT, "/v1/feedback", "/ops/api/rollback"])
async def test_a_body_that_is_too_large_is_refused_also_where_it_does_not_say_its_length(
    http, assistant, monkeypatch, path: str
) -> None:
    monkeypatch.setattr(auth, "MAX_OPS_BODY", MAX_API_BODY)
    headers = {"Authorization": f"Bearer {assistant.operator_token}"}
    for body in (b" " * (MAX_API_BODY + 1), in_chunks(2)):
        answer = await http.post(path, content=body, headers=headers)
        assert answer.status_code == 413
        assert answer.json()["error"]["message"] == f"The request is larger than {MAX_API_BODY} bytes: send less."


async def test_an_adapter_without_the_jobs_token_is_refused_before_a_byte_of_it_is_read(http) -> None:
    async def unread() -> AsyncIterator[bytes]:
        raise AssertionError("it was read")
        yield b""

    answer = await http.put("/ops/api/policies/policy-0001-x", content=unread())
    assert answer.status_code == 401

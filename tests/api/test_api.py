"""What API clients send: neutral values, echoed messages, lengths, odd bodies; and what a refusal says."""

from __future__ import annotations

import json
import tracemalloc
from typing import Any

import openai
import pytest
from fakes import FakeEngineClient
from pydantic import BaseModel
from tiny_engine import TinyEngine

from thumbwise.engine.client import Sampling
from thumbwise.feedback.snapshot import snapshot_path, take_snapshot
from thumbwise.names import BASE
from thumbwise.serving.assistant import Assistant
from thumbwise.serving.auth import MAX_API_BODY

CHAT = "/v1/chat/completions"
ASK: list[dict[str, Any]] = [{"role": "user", "content": "Hello?"}]
IMAGE = {"type": "image_url", "image_url": {"url": "data:,"}}
HALF = r"\ud83d"


@pytest.fixture
def engine(assistant: Assistant) -> FakeEngineClient:
    return assistant.engine.client  # type: ignore[union-attr, return-value]


def error(answer: Any) -> dict[str, Any]:
    found = answer.json()["error"]
    assert set(found) == {"message", "type", "code", "param"}
    return dict(found)


@pytest.mark.parametrize(
    "sent",
    [
        {"n": None}, {"n": 1}, {"stream": None}, {"logprobs": None}, {"model": None}, {"temperature": None},
        {"top_p": None}, {"seed": None}, {"stop": None}, {"stop": []}, {"stop": ""}, {"user": None}, {"store": None},
        {"max_tokens": None}, {"max_completion_tokens": None}, {"frequency_penalty": 0}, {"presence_penalty": 0.0},
        {"frequency_penalty": None}, {"logit_bias": {}}, {"logit_bias": None}, {"tools": []}, {"tools": None},
        {"functions": []}, {"tool_choice": "none"}, {"tool_choice": "auto"}, {"function_call": "none"},
        {"response_format": {"type": "text"}}, {"response_format": None}, {"metadata": {"a": "b"}}, {"metadata": None},
        {"service_tier": "auto"}, {"parallel_tool_calls": True}, {"safety_identifier": "x"}, {"prompt_cache_key": "x"},
        {"reasoning_effort": None}, {"reasoning_effort": "none"}, {"reasoning_effort": "medium"}, {"top_logprobs": 0},
        {"top_logprobs": None}, {"store": True}, {"store": False}, {"modalities": ["text"]}, {"audio": None},
        {"verbosity": "medium"}, {"user": "somebody.with.a.long.name+tag@an-institution-of-some-length.example.org"},
        {"stream_options": None}, {"stream_options": {"include_usage": None, "include_obfuscation": False}},
        {"max_tokens": 8192}, {"max_completion_tokens": 10**9}, {"tool_choice": None, "tools": None},
    ],
    ids=json.dumps,
)  # fmt: skip
async def test_what_changes_no_answer_is_taken(http, engine, sent) -> None:
    plain = await http.post(CHAT, json={"messages": ASK})
    answer = await http.post(CHAT, json={"messages": ASK, **sent})
    assert answer.status_code == 200, answer.text
    assert answer.json()["choices"] == plain.json()["choices"]
    length = next((value for name, value in sent.items() if "max_" in name and value), engine.asked[0][2].max_tokens)
    first, second = (asked[2] for asked in engine.asked)
    assert (second.temperature, second.top_p, second.seed, second.stop) == (
        first.temperature, first.top_p, first.seed, first.stop,
    )  # fmt: skip
    assert second.max_tokens == length


@pytest.mark.parametrize(
    ("sent", "param"),
    [
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"), ({"n": 2}, "n"),
        ({"response_format": {"type": "json_object"}}, "response_format"), ({"logit_bias": {"5": 1}}, "logit_bias"),
        ({"frequency_penalty": 0.5}, "frequency_penalty"), ({"top_logprobs": 2}, "top_logprobs"),
        ({"reasoning_effort": "high"}, "reasoning_effort"), ({"tool_choice": "required"}, "tool_choice"),
        ({"stream_options": {"continuous_usage_stats": True}}, "stream_options.continuous_usage_stats"),
        ({"messages": [*ASK, {"role": "tool", "content": "5", "tool_call_id": "x"}]}, "messages.1.role"),
        ({"messages": [{"role": "assistant", "tool_calls": [{"id": "x"}]}, *ASK]}, "messages.0.tool_calls"),
        ({"messages": [{"role": "user", "content": [IMAGE]}]}, "messages.0.content.0"),
        ({"messages": [{"role": "user", "content": None}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages.0.content.0"),
        ({"stop": ["a" * 300]}, "stop"), ({"stop": [1]}, "stop"), ({"stop": ["a"] * 5}, "stop"),
        ({"seed": 2**63}, "seed"), ({"user": "x" * 300}, "user"),
        ({"temperature": "hot"}, "temperature"), ({"z" * 200_000: 1}, "z" * 80),
    ],
    ids=lambda value: json.dumps(value)[:60],
)  # fmt: skip
async def test_what_would_change_the_answer_is_refused_by_name(http, assistant, sent, param) -> None:
    answer = await http.post(CHAT, json={"messages": ASK, **sent})
    found = error(answer)
    assert (answer.status_code, found["type"], found["param"]) == (400, "invalid_request_error", param)
    assert found["code"] in ("invalid_request", "unsupported_parameter")
    assert param in found["message"]
    assert len(answer.content) < 500
    assert assistant.store.rows("SELECT 1 FROM replies") == []


async def test_an_image_hears_that_only_text_is_read(http) -> None:
    answer = await http.post(CHAT, json={"messages": [{"role": "user", "content": [IMAGE]}]})
    assert "images are not supported" in error(answer)["message"]


async def test_an_echoed_reply_a_name_and_a_developer_are_taken_for_what_they_say(http, engine) -> None:
    first = (await http.post(CHAT, json={"messages": ASK})).json()
    echoed = openai.types.chat.ChatCompletion.model_validate(first).choices[0].message.model_dump()
    assert "refusal" in echoed
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "name": "ann", "content": [{"type": "text", "text": "Hi", "cache_control": {"type": "x"}}]},
        echoed | {"audio": None, "annotations": []},
        {"role": "assistant", "content": None},
        *ASK,
    ]  # fmt: skip
    answer = await http.post(CHAT, json={"messages": messages})
    assert answer.status_code == 200, answer.text
    assert [tuple(message.values()) for message in engine.asked[-1][1]] == [
        ("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello there friend"), ("assistant", ""),
        ("user", "Hello?"),
    ]  # fmt: skip


async def test_a_plain_curl_is_read_as_json_and_an_odd_body_is_told_so(http) -> None:
    body = json.dumps({"messages": ASK}).encode()
    for kind in ("application/x-www-form-urlencoded", "text/plain", "multipart/form-data; boundary=x", None):
        answer = await http.post(CHAT, content=body, headers={"content-type": kind} if kind else {})
        assert answer.status_code == 200, (kind, answer.text)
    for odd, says in (
        (b"", "not JSON"), (b"a=b", "not JSON"), (b"[]", "object"), (b"\xff", "not JSON"), (b"{" * 100_000, "not JSON"),
        (b'{"messages": NaN}', "messages"), (b'{"seed": ' + b"9" * 5000 + b"}", "not JSON"), (b"null", "object"),
    ):  # fmt: skip
        answer = await http.post(CHAT, content=odd)
        assert answer.status_code == 400
        assert says in error(answer)["message"]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, '{"messages": [{"role": "user", "content": "%s"}]}'),
        (CHAT, '{"messages": [{"role": "user", "content": "a"}], "stop": ["%s"]}'),
        (CHAT, '{"messages": [{"role": "user", "content": "a"}], "model": "%s"}'),
        (CHAT, '{"messages": [{"role": "user", "content": "a"}], "user": "%s"}'),
        (CHAT, '{"messages": [{"role": "user", "content": "a"}], "%s": 1}'),
        ("/v1/comparisons", '{"messages": [{"role": "user", "content": "%s"}]}'),
        ("/v1/feedback", '{"kind": "thumb", "message_id": "%s", "value": "up"}'),
        ("/v1/feedback", '{"kind": "thumb", "message_id": "msg_x", "value": "%s"}'),
        ("/v1/feedback", '{"kind": "rank", "comparison_id": "cmp_x", "value": {"tiers": [["%s"]]}}'),
        ("/v1/feedback", '{"kind": "comment", "message_id": "msg_x", "value": {"text": "%s"}}'),
        ("/ops/api/keys", '{"name": "app", "scopes": ["%s"]}'),
        ("/ops/api/rollback", '{"reason": "by %s hand"}'),
    ],
)
async def test_half_an_emoji_is_one_sentence_wherever_it_stands(http, assistant, path, body) -> None:
    headers = {
        "Authorization": f"Bearer {assistant.operator_token}",
        "Idempotency-Key": "k",
        "Content-Type": "application/json",
    }
    if path.startswith("/v1"):
        del headers["Authorization"]
    answer = await http.post(path, content=(body % HALF).encode(), headers=headers)
    assert answer.status_code < 500
    if path.startswith("/v1"):
        assert (answer.status_code, "half a character" in error(answer)["message"]) == (400, True)


FIELDS = [f'"f{n}":1' for n in range(80_000)]
ZEROS = ["0"] * 500_000
ONE = '{"messages":[{"role":"user","content":"a"'


@pytest.mark.parametrize(
    ("path", "begins", "faults", "ends"),
    [
        (CHAT, '{"messages":[', ZEROS, "]}"),
        (CHAT, '{"messages":[', ['{"role":"x"}'] * 80_000, "]}"),
        (CHAT, '{"messages":[],', FIELDS, "}"),
        (CHAT, '{"messages":[{"role":"user","content":[', ['{"type":0}'] * 100_000, "]}]}"),
        (CHAT, ONE + ",", FIELDS, "}]}"),
        (CHAT, ONE + '}],"stop":[', ZEROS, "]}"),
        (CHAT, ONE + '}],"stream_options":{', FIELDS, "}}"),
        ("/v1/comparisons", '{"messages":[', ZEROS, "]}"),
        ("/v1/feedback", '{"kind":"rank","comparison_id":"c","value":{"tiers":[[', ['"draft"'] * 100_000, "]]}}"),
        ("/v1/feedback", '{"kind":"rank","comparison_id":"c","value":{"tiers":[', ZEROS, "]}}"),
        ("/v1/feedback", '{"kind":"likert","message_id":"m","value":{"overall":1,"flags":[', ZEROS, "]}}"),
        ("/v1/feedback", '{"kind":"thumb","message_id":"m","value":{', FIELDS, "}}"),
        ("/v1/feedback", '{"kind":"pair","comparison_id":"c","value":{', FIELDS, "}}"),
        ("/v1/feedback", '{"kind":"edit","message_id":"m","value":{', FIELDS, "}}"),
    ],
    ids=range(14),
)
async def test_a_body_full_of_faults_makes_one_of_them(http, path, begins, faults, ends) -> None:
    """Each fault would become an object with its place and its input: seconds of CPU and half a gigabyte."""
    body = (begins + ",".join(faults) + ends).encode()
    assert len(body) < MAX_API_BODY
    tracemalloc.start()
    headers = {"Idempotency-Key": "k", "Content-Type": "application/json"}
    answer = await http.post(path, content=body, headers=headers)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert answer.status_code == 400
    assert len(answer.content) < 500
    assert peak < 40 * len(body)


async def test_the_key_is_looked_at_before_a_byte_of_the_body(http, assistant) -> None:
    assistant.keys.create("app")

    async def unread() -> Any:
        raise AssertionError("it was read")
        yield b""

    for path in (CHAT, "/v1/comparisons", "/v1/feedback", "/v1/nothing"):
        answer = await http.post(path, content=unread())
        assert (answer.status_code, error(answer)["code"]) == (401, "invalid_api_key")


async def test_a_length_beyond_the_models_is_cut_and_a_prompt_beyond_it_has_openais_code(http, engine) -> None:
    too_many = await http.post(CHAT, json={"messages": ASK * 201})
    assert (too_many.status_code, error(too_many)["code"]) == (400, "context_length_exceeded")
    too_long = await http.post(CHAT, json={"messages": [{"role": "user", "content": "x" * 200_001}]})
    assert (too_long.status_code, error(too_long)["code"]) == (400, "context_length_exceeded")
    cyrillic = json.dumps({"messages": [{"role": "user", "content": "ж" * 200_000}]})  # six bytes each, and it fits
    assert (await http.post(CHAT, content=cyrillic.encode())).status_code == 200


async def test_a_reply_that_is_not_to_be_stored_for_training_can_be_voted_on_and_stays_out(http, assistant) -> None:
    kept = [{"role": "user", "content": "kept"}]
    ids = {}
    for name, body in {
        "out": {"messages": ASK, "store": False}, "in": {"messages": kept, "store": True},
        "half": {"messages": [*ASK, {"role": "assistant", "content": "I am"}]},
    }.items():  # fmt: skip
        ids[name] = (await http.post(CHAT, json=body)).json()["id"]
    for number, message_id in enumerate(ids.values()):
        vote = {"kind": "thumb", "message_id": message_id, "value": "up"}
        answer = await http.post("/v1/feedback", json=vote, headers={"Idempotency-Key": str(number)})
        assert answer.status_code == 201
    home = assistant.home
    data = snapshot_path(home.snapshots, take_snapshot(assistant.store, home.snapshots)).read_bytes()
    lines = [json.loads(line) for line in data.splitlines()]
    assert {line["prompt"][0]["content"] for line in lines} == {"kept"}
    assert sorted(line["type"] for line in lines) == ["prompt", "thumb"]


async def test_the_assistants_last_message_is_gone_on_with_but_not_compared(http, engine) -> None:
    half = [*ASK, {"role": "assistant", "content": "I am"}]
    answer = await http.post(CHAT, json={"messages": half})
    assert answer.json()["choices"][0]["message"]["content"] == "Hello there friend"
    assert engine.asked[-1][1] == half
    refused = await http.post("/v1/comparisons", json={"messages": half})
    assert (refused.status_code, "from the user" in error(refused)["message"]) == (400, True)


@pytest.mark.engine
async def test_vllm_goes_on_with_the_assistants_message_instead_of_beginning_another(tiny_engine: TinyEngine) -> None:
    client = tiny_engine.client()

    async def prompt(messages: list[Any]) -> tuple[int, ...]:
        chunks = [chunk async for chunk in client.chat(BASE, messages, Sampling(0.0, 2))]
        return chunks[0].prompt_ids or ()

    try:
        half = [*ASK, {"role": "assistant", "content": "I am"}]
        ended = await prompt([*half, *ASK])
        going_on = await prompt(half)
    finally:
        await client.aclose()
    assert ended[: len(going_on)] == going_on  # no turn was ended or begun after it


async def test_a_wrong_address_or_method_says_which_is_right(http) -> None:
    for method, path in (("GET", CHAT), ("DELETE", "/v1/feedback"), ("POST", "/v1/models"), ("PUT", "/v1/models/x")):
        answer = await http.request(method, path)
        assert (answer.status_code, error(answer)["code"]) == (405, "method_not_allowed")
        assert ("GET" if "models" in path else "POST") in error(answer)["message"]
    for path in ("/chat/completions", "/completions", "/responses", "/embeddings"):
        answer = await http.post(path, json={})
        assert (answer.status_code, "ends with /v1" in error(answer)["message"]) == (404, True)
    assert (await http.get("/models")).status_code == 404
    assert error(await http.get("/v1/models/gpt-5"))["code"] == "model_not_found"
    unknown = error(await http.post(CHAT, json={"messages": ASK, "model": "gpt-5"}))
    assert (unknown["code"], unknown["param"]) == ("model_not_found", "model")
    assert "'thumbwise'" in unknown["message"]


async def test_a_stream_asks_proxies_not_to_gather_it(http) -> None:
    answer = await http.post(CHAT, json={"messages": ASK, "stream": True})
    assert answer.headers["x-accel-buffering"] == "no"


async def test_the_openai_clients_helpers_work_or_say_what_they_lack(http) -> None:
    client = openai.AsyncOpenAI(base_url="http://127.0.0.1:7860/v1", api_key="none", http_client=http, max_retries=0)
    chat = client.chat.completions
    asked: dict[str, Any] = {"model": "thumbwise", "messages": ASK}
    assert (await chat.create(**asked)).choices[0].message.content == "Hello there friend"
    raw = await chat.with_raw_response.create(**asked)
    assert raw.parse().choices[0].finish_reason == "stop"
    async with chat.stream(**asked) as stream:
        kinds = [event.type async for event in stream]
        whole = await stream.get_final_completion()
    assert "content.delta" in kinds
    assert whole.choices[0].message.content == "Hello there friend"
    history = [*ASK, whole.choices[0].message, *ASK]
    assert (await chat.create(model="thumbwise", messages=history)).choices  # type: ignore[arg-type]

    class Shape(BaseModel):
        word: str

    with pytest.raises(openai.BadRequestError, match="response_format is not supported") as refused:
        await chat.parse(**asked, response_format=Shape)
    assert (refused.value.param, refused.value.code) == ("response_format", "unsupported_parameter")
    with pytest.raises(openai.NotFoundError, match="There is no POST /v1/responses"):
        await client.responses.create(model="thumbwise", input="Hello?")

"""Clients that nobody here wrote, and the requests that Open WebUI's source sends, against a running assistant."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest
from live_server import Live

SAID = "Hello there friend"
ASK: list[dict[str, Any]] = [{"role": "user", "content": "Hello?"}]


def asked(live: Live) -> list[tuple[str, str]]:
    """The messages of the last prompt, as role and text."""
    return [(m["role"], m["content"]) for m in live.assistant.engine.client.asked[-1][1]]  # type: ignore[union-attr]


# --- LangChain --------------------------------------------------------------------------------------------


@pytest.fixture
def langchain(live: Live, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("LANGSMITH_TRACING", "false")
    from langchain_openai import ChatOpenAI

    return ChatOpenAI(model="thumbwise", base_url=f"{live.url}/v1", api_key="none", max_retries=0, stream_usage=True)


def test_langchain_asks_streams_and_batches(live: Live, langchain: Any) -> None:
    from langchain_core.messages import AIMessage, HumanMessage, SystemMessage

    turns = [SystemMessage("Be brief."), HumanMessage("Hi", name="ann"), AIMessage("Hello."), HumanMessage("Hello?")]
    reply = langchain.invoke(turns)
    assert (reply.content, reply.usage_metadata["total_tokens"]) == (SAID, 6)
    assert asked(live) == [("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello."), ("user", "Hello?")]
    assert langchain.invoke([*turns, reply, HumanMessage("And?")]).content == SAID  # its own words back
    pieces = list(langchain.stream("Hello?"))
    assert "".join(piece.content for piece in pieces) == SAID
    assert sum((piece.usage_metadata or {}).get("output_tokens", 0) for piece in pieces) == 3
    assert [one.content for one in langchain.batch(["Hello?", "And?", "So?"])] == [SAID] * 3
    assert asyncio.run(langchain.ainvoke("Hello?")).content == SAID


def test_langchains_settings_that_change_nothing_are_taken_and_tools_are_refused_by_name(langchain: Any) -> None:
    from langchain_core.tools import tool

    @tool
    def add(a: int, b: int) -> int:
        """Add."""
        return a + b

    quiet = langchain.bind(frequency_penalty=0, presence_penalty=0, logit_bias={}, n=1, max_tokens=8192, seed=1)
    assert quiet.invoke("Hello?").content == SAID
    with pytest.raises(openai.BadRequestError, match="tools is not supported"):
        langchain.bind_tools([add]).invoke("Hello?")
    with pytest.raises(openai.BadRequestError, match="response_format is not supported"):
        langchain.with_structured_output(
            {"title": "x", "type": "object", "properties": {}}, method="json_schema"
        ).invoke("?")


def test_langchain_knows_a_prompt_that_is_too_long(langchain: Any) -> None:
    from langchain_core.exceptions import ContextOverflowError

    with pytest.raises(ContextOverflowError):
        langchain.invoke("x" * 200_001)


# --- LiteLLM ----------------------------------------------------------------------------------------------


def test_what_litellm_sends_is_answered(live: Live) -> None:
    """It asks through the openai client, with what its caller set and its own words as it got them."""
    with openai.OpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0) as client:
        raw = client.chat.completions.with_raw_response
        usual: Any = {"model": "thumbwise", "max_tokens": 8192, "presence_penalty": 0, "frequency_penalty": 0}
        first = raw.create(messages=ASK, **usual).parse()
        assert first.choices[0].message.content == SAID
        echoed = {"content": SAID, "role": "assistant", "tool_calls": None, "function_call": None}
        again = raw.create(
            messages=[*ASK, echoed | {"provider_specific_fields": None}, *ASK], model="thumbwise"
        ).parse()
        assert again.choices[0].message.content == SAID


def test_litellm_completes_and_streams_and_knows_a_prompt_that_is_too_long(
    live: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not among the development packages: with its AWS libraries it has 200 MB, and sends what the test above does."""
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    litellm = pytest.importorskip("litellm")
    where = {"model": "openai/thumbwise", "api_base": f"{live.url}/v1", "api_key": "none", "num_retries": 0}
    usual = {"frequency_penalty": 0, "presence_penalty": 0, "max_tokens": 8192, "user": "ann@example.org"}
    reply = litellm.completion(messages=ASK, **where, **usual)
    assert (reply.choices[0].message.content, reply.usage.total_tokens) == (SAID, 6)
    echoed = reply.choices[0].message.model_dump()
    assert litellm.completion(messages=[*ASK, echoed, *ASK], **where).choices[0].message.content == SAID
    pieces = list(litellm.completion(messages=ASK, stream=True, stream_options={"include_usage": True}, **where))
    assert "".join(piece.choices[0].delta.content or "" for piece in pieces if piece.choices) == SAID
    assert asyncio.run(litellm.acompletion(messages=ASK, **where)).choices[0].message.content == SAID
    with pytest.raises(litellm.ContextWindowExceededError):
        litellm.completion(messages=[{"role": "user", "content": "x" * 200_001}], **where)


# --- simonw/llm -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [[], ["--no-stream"], ["--system", "Be brief.", "-o", "max_tokens", "8192"]])
def test_llm_asks_from_the_command_line(live: Live, tmp_path: Path, options: list[str]) -> None:
    (tmp_path / "extra-openai-models.yaml").write_text(
        f"- model_id: tw\n  model_name: thumbwise\n  api_base: {live.url}/v1\n"
    )
    environment = os.environ | {"LLM_USER_PATH": str(tmp_path), "LLM_LOAD_PLUGINS": "", "OPENAI_API_KEY": "none"}
    done = subprocess.run(
        [sys.executable, "-m", "llm", "prompt", "-m", "tw", "Hello? 😀", *options],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout.strip()) == (0, SAID), done.stderr
    assert asked(live)[-1] == ("user", "Hello? 😀")


# --- Open WebUI: as its backend sends it ------------------------------------------------------------------

HEADERS = {
    "Content-Type": "application/json",
    "X-OpenWebUI-User-Name": "Ann%20B",
    "X-OpenWebUI-User-Id": "3f0c",
    "X-OpenWebUI-User-Email": "ann@example.org",
    "X-OpenWebUI-User-Role": "user",
    "X-OpenWebUI-Chat-Id": "c0ffee",
}


def webui(
    live: Live, payload: dict[str, Any] | None, path: str = "/chat/completions", key: str = ""
) -> tuple[int, str]:
    async def send() -> tuple[int, str]:
        headers = HEADERS | ({"Authorization": f"Bearer {key}"} if key else {})
        async with aiohttp.ClientSession(trust_env=True) as session:
            data = None if payload is None else json.dumps(payload)
            async with session.request(
                "GET" if data is None else "POST", f"{live.url}/v1{path}", data=data, headers=headers
            ) as answer:
                return answer.status, await answer.text()

    return asyncio.run(send())


def test_open_webui_finds_the_models_and_chats(live: Live) -> None:
    status, models = webui(live, None, "/models")
    assert (status, json.loads(models)["data"][0]["id"]) == (200, "thumbwise")
    chat = {"model": "thumbwise", "messages": [{"role": "user", "content": "Hello? 😀"}], "stream": True}
    status, stream = webui(live, chat | {"stream_options": {"include_usage": True}})
    events = [json.loads(line[6:]) for line in stream.splitlines() if line.startswith("data: {")]
    text = "".join(choice["delta"].get("content", "") for event in events for choice in event["choices"])
    assert (status, text, events[-1]["usage"]["total_tokens"]) == (200, SAID, 6)
    assert stream.rstrip().endswith("data: [DONE]")
    assert asked(live) == [("user", "Hello? 😀")]


def test_open_webuis_model_settings_and_background_tasks_are_answered(live: Live) -> None:
    settings = {
        "temperature": 0.7,
        "top_p": 0.9,
        "max_tokens": 4097,
        "frequency_penalty": 0.0,
        "seed": 7,
        "stop": ["\n\n"],
    }
    status, text = webui(live, {"model": "thumbwise", "messages": ASK, "stream": False, **settings})
    assert (status, json.loads(text)["choices"][0]["message"]["content"]) == (200, SAID)
    title = (
        "### Task:\nGenerate a concise, 3-5 word title with an emoji.\n<chat_history>\nUSER: Hello?\n</chat_history>"
    )
    task = {"model": "thumbwise", "messages": [{"role": "user", "content": title}], "stream": False}
    status, text = webui(live, task | {"max_completion_tokens": 1000})
    assert (status, json.loads(text)["choices"][0]["message"]["content"]) == (200, SAID)


def test_open_webuis_continue_goes_on_with_the_reply(live: Live) -> None:
    half = [{"role": "system", "content": "Be brief."}, *ASK, {"role": "assistant", "content": "Hello"}]
    status, text = webui(live, {"model": "thumbwise", "messages": half, "stream": False})
    assert status == 200, text
    assert asked(live)[-1] == ("assistant", "Hello")


def test_open_webuis_tools_and_pictures_are_refused_with_a_sentence_it_can_show(live: Live) -> None:
    picture = [
        {"type": "text", "text": "What is this?"},
        {"type": "image_url", "image_url": {"url": "data:image/png;,"}},
    ]
    for sent, says in (
        ({"tools": [{"type": "function", "function": {"name": "search"}}]}, "tools is not supported"),
        ({"messages": [{"role": "user", "content": picture}]}, "images are not supported"),
    ):
        status, text = webui(live, {"model": "thumbwise", "messages": ASK, "stream": True, **sent})
        assert (status, says in json.loads(text)["error"]["message"]) == (400, True)

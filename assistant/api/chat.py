"""Chat completions and models, in OpenAI's format. The bodies of requests are in `models.py`.

`logprobs` gives the log-probabilities of the sampled tokens. We add their ids (`token_ids`). With both, a client can
prove which version wrote a reply. Left out: OpenAI's other calls.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import orjson
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from thumbwise.api.asker import asker_of
from thumbwise.api.models import Chat, plain
from thumbwise.chat.admission import EventStream, unless_disconnected
from thumbwise.chat.turns import PUBLIC_NAME, Turn
from thumbwise.engine.client import Chunk
from thumbwise.errors import NotFound, ThumbwiseError
from thumbwise.serving.responses import error_body

if TYPE_CHECKING:
    from thumbwise.serving.assistant import Assistant


_LINE_ENDS = {chr(code).encode(): f"\\u{code:04x}".encode() for code in (0x85, 0x2028, 0x2029)}


def _envelope(turn: Turn, kind: str, created: int) -> dict[str, Any]:
    return {"id": turn.message_id, "object": kind, "created": created, "model": turn.version}


def _extra(turn: Turn) -> dict[str, str]:
    """What we add to OpenAI's format. A temporary reply is stored nowhere, so there is no id to vote on."""
    version = {"policy_version": turn.version}
    return version if turn.temporary else {"message_id": turn.message_id, **version}


def _usage(prompt: int, completion: int) -> dict[str, int]:
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def _logprobs(chunk: Chunk) -> dict[str, Any] | None:
    """OpenAI's format, and the token ids; None if the request did not ask for log-probabilities."""
    if chunk.logprobs is None or chunk.tokens is None:
        return None
    content = [
        {"token": token, "logprob": logprob, "bytes": list(token.encode()), "top_logprobs": []}
        for token, logprob in zip(chunk.tokens, chunk.logprobs, strict=True)
    ]
    return {"content": content, "refusal": None, "token_ids": list(chunk.response_ids)}


def _event(body: dict[str, Any]) -> bytes:
    """One event. Some clients (httpx's `aiter_lines`) end a line at more characters than \\n: these are escaped."""
    text = orjson.dumps(body)
    for end, escaped in _LINE_ENDS.items():  # JSON escapes the other characters of this kind anyway
        text = text.replace(end, escaped)
    return b"data: " + text + b"\n\n"


async def _events(
    turn: Turn, first: Chunk, others: AsyncGenerator[Chunk, None], usage: bool
) -> AsyncGenerator[bytes, None]:
    """Yield the server-sent events of one turn; the first and the last chunk carry `thumbwise`."""

    async def whole() -> AsyncGenerator[Chunk, None]:
        yield first
        async for chunk in others:
            yield chunk

    envelope = _envelope(turn, "chat.completion.chunk", int(time.time()))
    begin = {"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}
    prompt = completion = 0
    try:
        async with aclosing(others):
            yield _event(envelope | {"choices": [begin], "thumbwise": _extra(turn)})
            async for chunk in whole():
                prompt = len(chunk.prompt_ids or ()) or prompt
                completion += len(chunk.response_ids)
                delta = {"content": chunk.text} if chunk.text else {}
                choice = {"index": 0, "delta": delta, "finish_reason": chunk.finish_reason}
                if (logprobs := _logprobs(chunk)) is not None:
                    choice["logprobs"] = logprobs
                extra = {"thumbwise": _extra(turn)} if chunk.finish_reason else {}
                yield _event(envelope | {"choices": [choice]} | extra)
        if usage:
            yield _event(envelope | {"choices": [], "usage": _usage(prompt, completion)})
        yield b"data: [DONE]\n\n"
    except ThumbwiseError as error:  # the status line is sent already: the error becomes an event, without [DONE]
        yield _event(error_body(error))


def _names(assistant: Assistant) -> list[str]:
    return [PUBLIC_NAME, *assistant.policies.live()]


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "thumbwise"}


def router(assistant: Assistant) -> APIRouter:
    """Return the routes of `assistant`."""
    api = APIRouter()

    @api.post("/v1/chat/completions")
    async def chat_completions(request: Chat, http: Request) -> Response:
        asker = asker_of(assistant, http, request.user)
        conversations = assistant.conversations
        sampling, training = request.sampling(conversations.sampling()), request.store is not False
        turn = await conversations.begin(
            asker, plain(request.messages), sampling, model=request.version, training=training,
            temporary=not assistant.consents.of(asker.user).keep_chats,
        )  # fmt: skip
        if request.stream:
            chunks = conversations.stream(turn, asker)
            # A failure before the first token still has its HTTP status.
            first = await unless_disconnected(http, anext(chunks))
            return EventStream(_events(turn, first, chunks, request.usage))
        text, last = await unless_disconnected(http, conversations.write(turn, asker))
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": text},
            "finish_reason": last.finish_reason,
            "logprobs": _logprobs(last),
        }
        body = _envelope(turn, "chat.completion", int(time.time())) | {
            "choices": [choice],
            "usage": _usage(len(last.prompt_ids or ()), len(last.response_ids)),
            "thumbwise": _extra(turn),
        }
        return JSONResponse(body)

    @api.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [_model(name) for name in _names(assistant)]}

    @api.get("/v1/models/{name}")
    async def one_model(name: str) -> dict[str, Any]:
        if name not in _names(assistant):
            raise NotFound(f"There is no model {name[:80]!r}: `/v1/models` lists all of them.", code="model_not_found")
        return _model(name)

    return api

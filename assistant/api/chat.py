"""The public HTTP API: chat completions in the OpenAI shape, comparisons, feedback, models.

What may be asked is in `api_models.py`. `logprobs` gives the sampled tokens' log-probabilities with their ids
(`token_ids`, ours), so that a reader can prove which version wrote a reply. Left out: OpenAI's other calls.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TYPE_CHECKING, Annotated, Any

import orjson
from fastapi import APIRouter, Header, Request
from fastapi.responses import JSONResponse, Response
from starlette.routing import Match, Route

from thumbwise.api.models import Chat, Drafts, Vote, plain
from thumbwise.chat.admission import Stream, unless_gone
from thumbwise.chat.turns import PUBLIC_NAME, Turn
from thumbwise.engine.client import Chunk
from thumbwise.errors import NotFound, ThumbwiseError
from thumbwise.feedback.records import PROGRAMS, Asker
from thumbwise.serving.auth import key_of, user_of
from thumbwise.serving.responses import error_body

if TYPE_CHECKING:
    from thumbwise.serving.assistant import Assistant


Authorization = Annotated[str | None, Header()]
_METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE"]
_OFTEN_ASKED = (
    "/chat/completions", "/completions", "/responses", "/embeddings", "/models", "/comparisons", "/feedback",
)  # fmt: skip
"""Where a client asks whose base URL lacks the /v1."""
_LINE_ENDS = {chr(code).encode(): f"\\u{code:04x}".encode() for code in (0x85, 0x2028, 0x2029)}


def _envelope(turn: Turn, kind: str, created: int) -> dict[str, Any]:
    return {"id": turn.message_id, "object": kind, "created": created, "model": turn.version}


def _extra(turn: Turn) -> dict[str, str]:
    return {"message_id": turn.message_id, "policy_version": turn.version}


def _usage(prompt: int, completion: int) -> dict[str, int]:
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def _logprobs(chunk: Chunk) -> dict[str, Any] | None:
    """OpenAI's shape, and the ids beside it; None where log-probabilities were not asked for."""
    if chunk.logprobs is None or chunk.tokens is None:
        return None
    content = [
        {"token": token, "logprob": logprob, "bytes": list(token.encode()), "top_logprobs": []}
        for token, logprob in zip(chunk.tokens, chunk.logprobs, strict=True)
    ]
    return {"content": content, "refusal": None, "token_ids": list(chunk.response_ids)}


def _event(body: dict[str, Any]) -> bytes:
    """One event; what some clients (httpx's `aiter_lines`) take for the end of a line is escaped."""
    text = orjson.dumps(body)
    for end, escaped in _LINE_ENDS.items():  # other such characters are escaped in any JSON
        text = text.replace(end, escaped)
    return b"data: " + text + b"\n\n"


async def _events(
    turn: Turn, first: Chunk, others: AsyncGenerator[Chunk, None], usage: bool
) -> AsyncGenerator[bytes, None]:
    """Server-sent events of one turn; `thumbwise` rides on the first and the last chunk."""

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
    except ThumbwiseError as error:  # the status line is gone: the error is an event, and no [DONE] follows
        yield _event(error_body(error))


def _user(assistant: Assistant, authorization: str | None, scope: str, named: str | None) -> Asker:
    """Who asks: the key's client, or whom that one names behind it. Raises 401 and 403."""
    if (key := key_of(assistant.keys, authorization, scope)) is not None:
        return Asker(f"{key.name}/{user_of(named)}" if named else key.name, f"key:{key.name}")
    user = user_of(named)
    return Asker(user, f"name:{user}" if assistant.settings.names_are_people else PROGRAMS)


def router(assistant: Assistant) -> APIRouter:
    """The routes, bound to one assistant."""
    api = APIRouter()
    _add_chat(api, assistant)
    _add_votes(api, assistant)

    _add_elsewhere(api)
    return api


def _add_elsewhere(api: APIRouter) -> None:
    """Sentences for what is asked at an address, or in a way, that there is not."""

    @api.api_route("/v1/{path:path}", methods=_METHODS)
    async def unknown(path: str, http: Request) -> None:
        there = {
            method
            for route in api.routes
            if isinstance(route, Route) and route.matches(http.scope)[0] is Match.PARTIAL
            for method in route.methods or ()
        }
        if there:
            raise ThumbwiseError(f"/v1/{path[:80]} is asked by {' or '.join(sorted(there))} only.", status=405)
        raise NotFound(f"There is no {http.method} /v1/{path[:80]}: assistant/README.md has the whole API.")

    async def no_version(http: Request) -> None:
        raise NotFound(f"There is no {http.url.path}: the base URL of the API ends with /v1.")

    for path in _OFTEN_ASKED:
        api.add_api_route(path, no_version, methods=_METHODS)


def _names(assistant: Assistant) -> list[str]:
    return [PUBLIC_NAME, *assistant.policies.live()]


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "thumbwise"}


def _add_chat(api: APIRouter, assistant: Assistant) -> None:
    @api.post("/v1/chat/completions")
    async def chat_completions(request: Chat, http: Request, authorization: Authorization = None) -> Response:
        asker = _user(assistant, authorization, "chat", request.user)
        conversations = assistant.conversations
        sampling, training = request.sampling(conversations.sampling()), request.store is not False
        turn = await conversations.begin(
            asker, plain(request.messages), sampling, model=request.version, training=training
        )
        if request.stream:
            chunks = conversations.stream(turn, asker)
            first = await unless_gone(http, anext(chunks))  # what fails before it still has a status of its own
            return Stream(_events(turn, first, chunks, request.usage))
        text, last = await unless_gone(http, conversations.write(turn, asker))
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
    async def models(authorization: Authorization = None) -> dict[str, Any]:
        _user(assistant, authorization, "chat", None)
        return {"object": "list", "data": [_model(name) for name in _names(assistant)]}

    @api.get("/v1/models/{name}")
    async def one_model(name: str, authorization: Authorization = None) -> dict[str, Any]:
        _user(assistant, authorization, "chat", None)
        if name not in _names(assistant):
            raise NotFound(f"There is no model {name[:80]!r}: `/v1/models` names them all.", code="model_not_found")
        return _model(name)


def _add_votes(api: APIRouter, assistant: Assistant) -> None:
    @api.post("/v1/comparisons")
    async def comparisons(request: Drafts, http: Request, authorization: Authorization = None) -> dict[str, Any]:
        asker = _user(assistant, authorization, "chat", request.user)
        opened = await assistant.comparisons.open(
            asker, plain(request.messages), request.k, request.max_tokens, source="api"
        )
        drafts = await unless_gone(http, assistant.comparisons.write(opened, asker))
        return {
            "comparison_id": opened.comparison_id,
            "drafts": [{"draft_id": draft, "text": text} for draft, text in drafts],
        }

    @api.post("/v1/feedback", status_code=201)
    async def feedback(
        body: Vote,
        idempotency_key: Annotated[str | None, Header()] = None,
        authorization: Authorization = None,
    ) -> dict[str, str]:
        asker = _user(assistant, authorization, "feedback", body.user)
        if idempotency_key is None:
            raise ThumbwiseError("Send an Idempotency-Key header (a fresh UUID per vote), so that a retry is safe.")
        feedback_id = await assistant.store.run(assistant.vote, asker, idempotency_key, body.vote)
        return {"feedback_id": feedback_id}

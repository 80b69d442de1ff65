"""HTTP client for vLLM's OpenAI server: chat streams, log-probabilities, adapters.

Every request names its model and every sampling field, and the model in every answer is compared with the one asked
for. The reason: if `model` is missing, vLLM serves the base model, and it takes missing fields from the model folder.
Written for vLLM 0.32. We use aiohttp because a chunk of a reply costs half as much as with httpx. Left out:
`prompt_logprobs` (it ignores temperature, and in a batch with other requests it can fail inside the adapter code), and
retries (the caller knows what it may repeat).
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self, TypeVar

import aiohttp

from thumbwise.contracts import Message
from thumbwise.engine.wire import Unheard, answer, events, refusal, sentence, translated, understood
from thumbwise.errors import EngineFailed, EngineUnavailable, ThumbwiseError

SILENCE = 180.0
"""Seconds without a byte after which a reply fails. A reply that waits in vLLM's queue is silent too."""

T = TypeVar("T")

_NOT_JSON = "Out of range float values"  # what vLLM says if a log-probability is not a number

_SPARE_EVENTS = 64  # of a stream, besides one for each token: the role, text that is held back, comments
_LONGEST_TOKEN = 1024  # characters of one token; vocabularies have tokens of a hundred spaces
_REST = 2.0  # seconds to read what follows the end of a reply

# Below the 5 s of a vLLM that is not ours, so that no request is sent on a connection that it has just closed.
_KEEPALIVE = 2.0


@dataclass(frozen=True)
class Sampling:
    """How a reply is sampled. `logprobs` asks for the log-probability of every sampled token."""

    temperature: float
    max_tokens: int
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    logprobs: bool = False


@dataclass(frozen=True)
class Chunk:
    """A piece of a reply. The ids of all chunks end with the stop token if the model ended the reply itself.

    Only the first chunk has `prompt_ids`. `logprobs` (in nats, after temperature) and `tokens` (their texts) have one
    entry for each id of this chunk. They are None if they were not asked for.
    """

    text: str
    response_ids: tuple[int, ...]
    finish_reason: str | None
    model: str
    prompt_ids: tuple[int, ...] | None = None
    logprobs: tuple[float, ...] | None = None
    tokens: tuple[str, ...] | None = None
    context_full: bool = False
    """Of the last chunk: whether the reply was cut because prompt and reply fill the model's context."""


class EngineClient:
    """Talks to one vLLM server, in one event loop only: that of the first request. `silence` is in seconds.

    `api_key` is the one that vLLM was started with (`--api-key`); it is sent nowhere else. `template` has the arguments
    that the model's chat template gets with every conversation.
    """

    def __init__(
        self, *, uds: Path | None = None, base_url: str | None = None, silence: float = SILENCE, api_key: str = "",
        template: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        if (uds is None) == (base_url is None):
            raise ValueError("give either uds or base_url")
        self.uds, self.silence, self._template = uds, silence, dict(template or {})
        self.context: int | None = None
        """Tokens that a prompt and its reply may have together; known after the first call of `adapters`."""
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self.heard = time.monotonic()
        """When vLLM last sent part of an answer, by time.monotonic(). While this moves, vLLM lives."""
        self._base = (base_url or "http://engine").rstrip("/")
        self._session: aiohttp.ClientSession | None = None

    def _http(self) -> aiohttp.ClientSession:
        """The session with its open connections; aiohttp can make it only inside a running loop."""
        if self._session is None:
            kept: dict[str, Any] = {"limit": 0, "keepalive_timeout": _KEEPALIVE}
            self._session = aiohttp.ClientSession(
                connector=aiohttp.UnixConnector(str(self.uds), **kept) if self.uds else aiohttp.TCPConnector(**kept),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=10.0, sock_read=self.silence),
                cookie_jar=aiohttp.DummyCookieJar(),
                headers=self._headers,
            )
        return self._session

    async def chat(self, model: str, messages: Sequence[Message], sampling: Sampling) -> AsyncGenerator[Chunk, None]:
        """Stream one reply. Closing the generator closes the stream, and vLLM then drops the request.

        Use `contextlib.aclosing` if the loop may be left early. `max_tokens` is lowered to what the model has. Raises
        EngineUnavailable if vLLM is not there, ThumbwiseError (400) if it refuses the request
        (`context_length_exceeded`: the prompt is too long), and EngineFailed for everything else: a stream that is cut,
        silent, endless, from another model, or not vLLM's.
        """
        longest = sampling.max_tokens if self.context is None else min(sampling.max_tokens, max(1, self.context - 1))
        body = {
            "messages": list(messages),
            "max_completion_tokens": longest,
            "stream": True,
            "return_token_ids": True,
            "logprobs": sampling.logprobs,
            **_sampling_fields(model, sampling.temperature, sampling.top_p, sampling.seed),
        }
        if self._template:
            body["chat_template_kwargs"] = self._template
        if sampling.stop:
            body["stop"] = list(sampling.stop)
        if messages[-1]["role"] == "assistant":  # the reply goes on with it
            body |= {"continue_final_message": True, "add_generation_prompt": False}
        tokens = letters = 0
        async with self._asked("POST", "/v1/chat/completions", body) as response:
            stream = events(response, most=2 * longest + _SPARE_EVENTS)
            async for event in stream:
                self.heard = time.monotonic()
                with understood():
                    chunk = _chunk(event, model, sampling.logprobs)
                if chunk is None:
                    continue
                tokens, letters = tokens + len(chunk.response_ids), letters + len(chunk.text)
                if tokens > longest or letters > longest * _LONGEST_TOKEN:
                    raise EngineFailed(f"vLLM wrote more than the {longest} tokens asked for: the reply is given up.")
                if chunk.finish_reason is not None:
                    full = chunk.finish_reason == "length" and tokens < sampling.max_tokens
                    yield replace(chunk, context_full=full)
                    await _let_end(stream)
                    return
                yield chunk
        raise EngineFailed("vLLM cut the reply off before it was finished: try again.")

    async def next_token_logprobs(self, model: str, context_ids: Sequence[int], top: int = 20) -> dict[int, float]:
        """As `next_tokens`, after one context."""
        return (await self.next_tokens(model, [context_ids], top))[0]

    async def next_tokens(self, model: str, contexts: Sequence[Sequence[int]], top: int = 20) -> list[dict[int, float]]:
        """Return the `top` likeliest next tokens after each of `contexts` and their log-probabilities, in nats.

        Temperature 1, in one request. Raises EngineFailed if a log-probability is not a number (422), or another model
        answered.
        """
        body = {
            "prompt": [list(ids) for ids in contexts],
            "max_tokens": 1,
            "logprobs": top,
            "return_tokens_as_token_ids": True,
            **_sampling_fields(model, temperature=1.0, top_p=1.0, seed=0),
        }
        try:
            found = await self._json("POST", "/v1/completions", body)
        except ThumbwiseError as error:
            if _NOT_JSON in str(error):
                raise _not_numbers(model) from None
            raise
        with understood():
            _same_model(model, str(found.get("model")))
            choices = sorted(found["choices"], key=lambda choice: int(choice["index"]))
            rows = [_likeliest(model, choice["logprobs"]["top_logprobs"][0], top) for choice in choices]
        if len(rows) != len(contexts):
            raise EngineFailed(f"vLLM answered {len(rows)} prompts where {len(contexts)} were asked.")
        return rows

    async def adapters(self) -> dict[str, str]:
        """Return every served name with the folder that it was loaded from, the base model included.

        Sets `context`, the server's context length.
        """
        found = await self._json("GET", "/v1/models")
        try:
            served = {str(card["id"]): str(card["root"]) for card in found["data"]}
            lengths = [card.get("max_model_len") for card in found["data"]]
        except (KeyError, TypeError, AttributeError):
            raise EngineFailed("what answers there does not list its models as vLLM does.") from None
        self.context = min((length for length in lengths if type(length) is int and length > 1), default=None)
        return served

    async def load_adapter(self, name: str, path: Path) -> None:
        """Load the adapter folder `path` under `name`; a name that is already loaded does not change.

        The path is made absolute, because vLLM takes a relative path that it cannot find for a hub id.
        """
        try:
            await self._json("POST", "/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(path.absolute())})
        except EngineUnavailable:  # it restarts: the caller may try again
            raise
        except ThumbwiseError as error:
            if "already been loaded" not in str(error):
                # vLLM answers 500 to whatever it cannot load. If vLLM is healthy, that is the version's fault. It is
                # not if vLLM did not answer at all (a network folder that hangs).
                refused = error.status == 400 or (not isinstance(error, Unheard) and await self.alive())
                status = 422 if refused else EngineFailed.status
                raise EngineFailed(f"The policy {name} could not be loaded: {error}", status=status) from None

    async def unload_adapter(self, name: str) -> None:
        """Stop serving `name`; replies in flight finish. Raises EngineFailed if it is not loaded."""
        try:
            await self._json("POST", "/v1/unload_lora_adapter", {"lora_name": name})
        except EngineUnavailable:
            raise
        except ThumbwiseError as error:
            raise EngineFailed(f"The policy {name} could not be unloaded: {error}") from None

    async def on_each(self, work: Callable[[Self], Awaitable[T]]) -> list[T]:
        """Do `work` on every server: here there is one, `thumbwise.engine.external.Pool` has several."""
        return [await work(self)]

    def others(self, client: EngineClient) -> bool:
        """Whether a server other than that of `client` answers people."""
        return False

    async def alive(self, timeout: float = 5.0) -> bool:
        """Say whether vLLM answers its health check within `timeout` seconds; never raises."""
        short = aiohttp.ClientTimeout(timeout)
        try:
            async with self._http().get(f"{self._base}/health", timeout=short, allow_redirects=False) as response:
                return response.status == 200
        except (aiohttp.ClientError, TimeoutError):
            return False

    async def aclose(self) -> None:
        """Close every connection."""
        if self._session is not None:
            await self._session.close()

    @contextlib.asynccontextmanager
    async def _asked(
        self, method: str, path: str, body: dict[str, Any] | None
    ) -> AsyncGenerator[aiohttp.ClientResponse, None]:
        """Send a request and yield an answer of status 200. No redirect is followed: the prompt is for this server."""
        with translated(self.silence):
            async with self._http().request(method, self._base + path, json=body, allow_redirects=False) as response:
                if response.status != 200:
                    raise await refusal(response)
                yield response

    async def _json(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        async with self._asked(method, path, body) as response:
            found = await answer(response)
            self.heard = time.monotonic()
            return found


async def _let_end(stream: AsyncIterator[dict[str, Any]]) -> None:
    """Read the rest of a finished reply's stream, whatever it is, so that its connection can be used again."""
    with contextlib.suppress(TimeoutError, ThumbwiseError, aiohttp.ClientError):
        async with asyncio.timeout(_REST):
            async for _ in stream:
                pass


def _sampling_fields(model: str, temperature: float, top_p: float, seed: int | None) -> dict[str, Any]:
    return {
        "model": model,
        "temperature": temperature,
        "top_p": top_p,
        "top_k": 0,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "n": 1,
        "seed": seed,
    }


def _chunk(event: dict[str, Any], model: str, with_logprobs: bool) -> Chunk | None:
    if "error" in event:
        raise EngineFailed(f"vLLM stopped in mid-reply: {sentence(event)}")
    _same_model(model, str(event.get("model")))
    if not event["choices"]:
        return None
    choice = event["choices"][0]
    reason, text = choice.get("finish_reason"), choice["delta"].get("content") or ""
    if reason not in (None, "stop", "length"):  # "abort": vLLM is shutting down
        raise EngineFailed(f"vLLM ended the reply with '{reason!s:.40}': try again.")
    if not isinstance(text, str):
        raise TypeError("content is no text")
    ids = _ids(choice.get("token_ids") or [])
    logprobs = tokens = None
    if with_logprobs:
        rows = (choice.get("logprobs") or {}).get("content") or ()
        if any(row["logprob"] is None for row in rows):  # this is how JSON has NaN
            raise _not_numbers(model)
        logprobs, tokens = tuple(float(row["logprob"]) for row in rows), tuple(str(row["token"]) for row in rows)
        if len(logprobs) != len(ids):
            raise EngineFailed(f"vLLM sent {len(logprobs)} log-probabilities for {len(ids)} tokens.")
    prompt_ids = event.get("prompt_token_ids")
    return Chunk(
        text=text,
        response_ids=ids,
        finish_reason=reason,
        model=model,
        prompt_ids=None if prompt_ids is None else _ids(prompt_ids),
        logprobs=logprobs,
        tokens=tokens,
    )


def _ids(found: Any) -> tuple[int, ...]:
    if not isinstance(found, list) or not all(type(value) is int and 0 <= value < 2**31 for value in found):
        raise TypeError("token ids are no list of numbers")
    return tuple(found)


def _likeliest(model: str, row: dict[str, Any], top: int) -> dict[int, float]:
    found = {int(key.removeprefix("token_id:")): value for key, value in row.items()}
    if any(value is None or math.isnan(value) for value in found.values()):
        raise _not_numbers(model)
    # vLLM adds the token that it sampled, whatever its rank. Only the `top` are the same every time.
    return dict(sorted(found.items(), key=lambda item: -item[1])[:top])


def _not_numbers(model: str) -> EngineFailed:
    return EngineFailed(f"{model} answers with log-probabilities that are not numbers: reject it.", status=422)


def _same_model(asked: str, answered: str) -> None:
    if answered != asked:
        raise EngineFailed(f"vLLM answered with {answered:.80} where {asked} was asked for: reply dropped.")

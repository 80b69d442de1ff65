"""Reads vLLM's answers over HTTP, with limits. Whatever is not an answer of vLLM becomes an error in one sentence.

Nothing here trusts the other side: it may be a proxy, another server, or a broken vLLM. A body that is too long is not
read to its end. If an event never ends, the reply fails. Only our own errors leave this module.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import AsyncIterator, Iterator
from typing import Any

import aiohttp
import orjson

from thumbwise.errors import EngineFailed, EngineUnavailable, ThumbwiseError

LONGEST_EVENT = 2**20
"""Largest event, in bytes. A token with its log-probability takes a few hundred."""
LONGEST_FIRST = 2**23
"""Largest first event, in bytes. It has the ids of the whole prompt, which may be four for each of 200,000 letters."""
LONGEST_ANSWER = 2**23
"""Largest answer in one piece, in bytes: the names of all adapters, or the log-probabilities of all probes."""

# What vLLM says when its engine process is gone. The rest of its text is about a stack trace in its own log.
_DEAD = "EngineCore encountered an issue"
# What it says if the prompt is longer than its context, or fills it and leaves no token for the reply.
_TOO_LONG = re.compile(r"maximum context length|max_tokens must be at least 1")
_CONTEXT = re.compile(r"maximum context length (?:is |\()(\d+)")


class Unheard(EngineFailed):
    """The connection to vLLM broke, or stayed silent, before vLLM accepted or refused the request."""


async def events(response: aiohttp.ClientResponse, most: int) -> AsyncIterator[dict[str, Any]]:
    """Yield the JSON of each server-sent event up to [DONE]; raises EngineFailed after `most` events."""
    rest, seen, searched = bytearray(), 0, 0
    async for data in response.content.iter_any():
        rest += data
        while (end := rest.find(b"\n\n", searched)) >= 0:
            event, searched = bytes(rest[:end]), 0
            del rest[: end + 2]
            if event == b"data: [DONE]":
                return
            if (seen := seen + 1) > most:
                raise EngineFailed("vLLM went on after the longest reply that was asked for: the reply is given up.")
            if event.startswith(b"data: "):
                with understood():
                    value = orjson.loads(event[6:])
                yield _object(value)
        searched = max(0, len(rest) - 1)
        if len(rest) > (LONGEST_EVENT if seen else LONGEST_FIRST):
            raise EngineFailed("vLLM sent an event without an end: the reply is given up.")


async def answer(response: aiohttp.ClientResponse) -> dict[str, Any]:
    """Return the JSON of an answer; {} for other content: the loading of an adapter is answered with a sentence."""
    data = await _body(response)
    if response.content_type != "application/json":
        return {}
    with understood():
        return _object(json.loads(data))  # accepts NaN, which older servers send and orjson refuses


async def refusal(response: aiohttp.ClientResponse) -> ThumbwiseError:
    """Return the error for an answer whose status is not 200."""
    if 300 <= response.status < 400:
        return EngineFailed(
            f"vLLM's address leads to another one (HTTP {response.status}), where nothing is sent: name that one."
        )
    try:
        said = sentence(json.loads(await _body(response)))
    except (ValueError, RecursionError, ThumbwiseError):
        said = f"HTTP {response.status}."
    if response.status == 400:
        if _TOO_LONG.search(said):
            return too_long(_CONTEXT.search(said))
        return ThumbwiseError(f"vLLM refused the request: {said}")
    if response.status == 503:
        return EngineUnavailable(f"vLLM is busy: {said}")
    return EngineFailed(f"vLLM failed: {said}")


def too_long(found: re.Match[str] | None) -> ThumbwiseError:
    """The error for a prompt that leaves no room for a reply; `found` has the context length, if vLLM told it."""
    tokens = f" ({found[1]} tokens)" if found else ""
    return ThumbwiseError(
        f"The prompt is too long, longer than the model can read{tokens}: start a new conversation, or shorten it.",
        code="context_length_exceeded",
    )


def sentence(told: Any) -> str:
    """Return the message of one of vLLM's error bodies as a single line of at most 300 characters."""
    error = told.get("error") or told if isinstance(told, dict) else told
    message = str(error.get("message", error) if isinstance(error, dict) else error)
    line = " ".join(message[:10_000].split())
    if line.startswith(_DEAD):
        return "its engine died and is started again, ask again in a minute."
    line = line if len(line) <= 300 else line[:299] + "…"
    return line if line.endswith((".", "!", "?", "…")) else line + "."


@contextlib.contextmanager
def understood() -> Iterator[None]:
    """Turn the errors from reading an answer of another shape into EngineFailed."""
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError) as error:
        raise _nonsense() from error


@contextlib.contextmanager
def translated(silence: float) -> Iterator[None]:
    """Turn aiohttp's errors into ours."""
    try:
        yield
    except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError):
        raise EngineUnavailable("vLLM is not answering: it is starting or has stopped.") from None
    except aiohttp.SocketTimeoutError:
        raise Unheard(f"vLLM sent nothing for {silence:g} seconds: the reply is given up.") from None
    except aiohttp.ClientError as error:
        raise Unheard(f"The connection to vLLM broke ({type(error).__name__}): try again.") from None


def _object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _nonsense()
    return value


def _nonsense() -> EngineFailed:
    return EngineFailed("What vLLM's address answered is not what vLLM answers: look at what runs there.")


async def _body(response: aiohttp.ClientResponse) -> bytes:
    body = bytearray()
    async for data in response.content.iter_any():
        body += data
        if len(body) > LONGEST_ANSWER:
            raise EngineFailed("What vLLM's address answered has no end: look at what runs there.")
    return bytes(body)

"""Replies, drafts and votes over the public HTTP API of a running assistant, for the people of a rehearsal.

A call that meets a restarting engine is repeated for up to two minutes. That is safe: asking again makes another reply,
and a vote carries its Idempotency-Key.

Left out: streaming. `thumbwise.training.rehearsal.swap_monitor` holds streams, and must not hide a failure by asking
again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx

from thumbwise.contracts import Message
from thumbwise.errors import ThumbwiseError
from thumbwise.training.run.client import refusal

PATIENCE = 120.0
"""For how many seconds an assistant that is away or busy is asked again."""
AT_ONCE = 24
Result = TypeVar("Result")


class Api:
    """`/v1` of the assistant at `url`; use it as an asynchronous context.

    A draft has at most `max_tokens` tokens, a reply in chat `chat_tokens`. People see the two kinds at these lengths.
    """

    def __init__(self, url: str, max_tokens: int, chat_tokens: int) -> None:
        self.url, self.max_tokens, self.chat_tokens = url, max_tokens, chat_tokens
        self.http = httpx.AsyncClient(base_url=url, timeout=httpx.Timeout(300.0, connect=10.0), trust_env=False)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.http.aclose()

    async def ask(self, messages: Sequence[Message], user: str) -> tuple[str, str]:
        """One whole reply of the stable version: (message id, text)."""
        body = {"messages": list(messages), "max_tokens": self.chat_tokens, "user": user}
        answer = await self.post("/v1/chat/completions", body)
        return answer["thumbwise"]["message_id"], answer["choices"][0]["message"]["content"]

    async def compare(self, messages: Sequence[Message], user: str, k: int) -> tuple[str, list[tuple[str, str]]]:
        """`k` drafts, blind: (comparison id, [(draft id, text)] as shown)."""
        body = {"messages": list(messages), "k": k, "max_tokens": self.max_tokens, "user": user}
        answer = await self.post("/v1/comparisons", body)
        return answer["comparison_id"], [(draft["draft_id"], draft["text"]) for draft in answer["drafts"]]

    async def vote(self, key: str, body: dict[str, Any]) -> str:
        """Give one vote under an Idempotency-Key. Returns its id once it is durable."""
        return str((await self.post("/v1/feedback", body, {"Idempotency-Key": key}))["feedback_id"])

    async def post(self, path: str, body: dict[str, Any], headers: dict[str, str] | None = None) -> dict[str, Any]:
        """POST and return the JSON. Raises ThumbwiseError with the assistant's sentence."""
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                answer = await self.http.post(path, json=body, headers=headers)
                if answer.is_success:
                    given: dict[str, Any] = answer.json()
                    return given
                error = refusal(answer)
            except httpx.HTTPError as failed:
                error = ThumbwiseError(
                    f"The assistant at {self.url} does not answer ({type(failed).__name__}).", status=503
                )
            if error.status not in (429, 502, 503) or time.monotonic() > deadline:
                raise error
            await asyncio.sleep(1.0)


def finish(work: Coroutine[Any, Any, Result]) -> Result:
    """Run `work` to its end. If several tasks fail, the first failure is raised, as itself."""
    try:
        return asyncio.run(work)
    except BaseExceptionGroup as group:
        first: BaseException = group
        while isinstance(first, BaseExceptionGroup):
            first = first.exceptions[0]
        raise first from None

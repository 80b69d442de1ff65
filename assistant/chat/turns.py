"""One turn: read the pointer once, commit the reply's row while vLLM prefills, stream, commit the text.

No part of a reply is shown before its row is committed. Its last chunk is not shown before its text is committed. The
pages and the API both use this module, so every reply is stored with the version that wrote it. A reply that is cut off
(stopped, disconnected, failed) keeps the text that was shown, and is never trained on. Left out: retries inside a turn.
A reader should see an error rather than two half replies.

A temporary turn has no row, and no line in the log. All else is the same: version, sampling, admission and metrics.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING

from thumbwise.engine.client import Chunk, Sampling
from thumbwise.errors import TOO_LONG, NotFound, ThumbwiseError
from thumbwise.feedback.records import REFUSED, ReplyState, new_id
from thumbwise.logs import event

if TYPE_CHECKING:
    from thumbwise.chat.admission import Admission
    from thumbwise.contracts import Message
    from thumbwise.engine.client import EngineClient
    from thumbwise.engine.external import Pool
    from thumbwise.feedback.records import Asker
    from thumbwise.feedback.store import Store
    from thumbwise.metrics import Metrics
    from thumbwise.settings import Settings
    from thumbwise.versions.lifecycle import Policies

log = logging.getLogger(__name__)
PUBLIC_NAME = "thumbwise"
TEMPORARY = "tmp"
"""How the ids of temporary turns begin. No row has one."""
DRAFT = "draft"
"""The version that metrics name for every draft of a comparison."""
MAX_MESSAGES = 200
MAX_CHARACTERS = 200_000
_BUG = "Something went wrong in the assistant while the reply was written: its log says what."


class Prefetch:
    """Chunks of a reply. vLLM gets the request at once, not only when somebody waits for the first chunk."""

    def __init__(self, chunks: AsyncGenerator[Chunk, None]) -> None:
        self._chunks = chunks
        self._first = asyncio.ensure_future(anext(chunks, None))

    async def __aiter__(self) -> AsyncIterator[Chunk]:
        first = await self._first
        if first is not None:
            yield first
        async for chunk in self._chunks:
            yield chunk

    async def aclose(self) -> None:
        """Cancel the request, also if it has failed already."""
        self._first.cancel()
        await asyncio.wait([self._first])
        await self._chunks.aclose()


@dataclass(frozen=True)
class Turn:
    """A reply that is being generated, or will be. Its row is committed, unless it is temporary."""

    message_id: str
    version: str
    messages: tuple[Message, ...]
    sampling: Sampling
    conversation_id: str | None = None
    prefetch: Prefetch | None = None
    """The request that vLLM has already. None for drafts: they are requested when somebody reads them."""
    asked: float = field(default_factory=time.monotonic)
    """When the reply was asked for, on the monotonic clock."""
    draft: bool = False
    """Whether it is a draft of a comparison. That is blind until its vote, so metrics must not tell who writes it."""
    temporary: bool = False
    """Whether it is stored nowhere. Then `message_id` names only the reply that is being written."""

    @property
    def label(self) -> str:
        """The version as metrics name it."""
        return DRAFT if self.draft else self.version


@dataclass
class _Written:
    """The part of one reply that has arrived so far."""

    text: list[str] = field(default_factory=list)
    response_ids: list[int] = field(default_factory=list)
    prompt_ids: tuple[int, ...] = ()
    finish_reason: str | None = None
    logprobs: list[float] = field(default_factory=list)
    tokens: list[str] = field(default_factory=list)

    def add(self, chunk: Chunk) -> None:
        self.text.append(chunk.text)
        self.response_ids.extend(chunk.response_ids)
        self.prompt_ids = chunk.prompt_ids or self.prompt_ids
        self.finish_reason = chunk.finish_reason or self.finish_reason
        self.logprobs.extend(chunk.logprobs or ())
        self.tokens.extend(chunk.tokens or ())


class Conversations:
    """Generates and stores replies. `require_engine` returns the engine or raises EngineUnavailable."""

    def __init__(
        self,
        store: Store,
        policies: Policies,
        settings: Settings,
        metrics: Metrics,
        admission: Admission,
        require_engine: Callable[[], EngineClient | Pool],
    ) -> None:
        self.store = store
        self.policies = policies
        self.settings = settings
        self.metrics = metrics
        self.admission = admission
        self.require_engine = require_engine

    def sampling(self, max_tokens: int | None = None) -> Sampling:
        """Return how the assistant samples by default. Chat and drafts differ only in the length."""
        return Sampling(temperature=self.settings.temperature, max_tokens=max_tokens or self.settings.chat_max_tokens)

    def resolve(self, model: str | None, user_id: str, conversation_id: str | None = None) -> str:
        """Return the version that `model` means. Raises NotFound.

        For the public name this is the pointer's choice for this user and conversation. Other names must be versions
        that every engine has loaded: the base, stable, the canary, and the version that was stable before.
        """
        versions = self.policies.versions
        if model in (None, "", PUBLIC_NAME):
            return versions.pointer().version_for(user_id, conversation_id)
        try:
            record = versions.get(str(model))
        except NotFound:
            why = f"There is no model {str(model)[:80]!r}: use {PUBLIC_NAME!r}, or a model that /v1/models lists."
            raise NotFound(why, code="model_not_found", param="model") from None
        if record.version not in self.policies.loaded():
            raise ThumbwiseError(f"{model} is {record.state} and does not answer: /v1/models lists those that do.")
        return record.version

    async def begin(
        self,
        asker: Asker,
        messages: Sequence[Message],
        sampling: Sampling,
        *,
        model: str | None = None,
        conversation_id: str | None = None,
        parent_id: str | None = None,
        training: bool = True,
        temporary: bool = False,
    ) -> Turn:
        """Send the request to vLLM, and commit the reply's row meanwhile. Raises ThumbwiseError for a bad request.

        If the last message is the assistant's, the reply continues it. Such a reply is only half of one, so it is kept
        out of training, like a reply that was requested with `training=False`. Of a `temporary` turn nothing is stored.
        """
        check_messages(messages, may_continue=True)
        engine, asked = self.require_engine(), time.monotonic()
        self.admission.check(asker)
        version = self.resolve(model, asker.user, conversation_id)
        prefetch = Prefetch(engine.chat(version, messages, sampling))
        if temporary:
            id_ = new_id(TEMPORARY)
            return Turn(id_, version, tuple(messages), sampling, conversation_id, prefetch, asked, temporary=True)
        row = self.store.run(
            self.store.start_reply,
            asker,
            messages,
            version,
            asdict(sampling),
            conversation_id=conversation_id,
            parent_id=parent_id,
            training=training and messages[-1]["role"] == "user",
        )
        starting = asyncio.ensure_future(row)
        try:
            with self.admission.reserved(asker):
                message_id = await asyncio.shield(starting)
        except BaseException:
            starting.add_done_callback(self._abandon_when_started)
            await prefetch.aclose()
            raise
        return Turn(message_id, version, tuple(messages), sampling, conversation_id, prefetch, asked)

    def _abandon_when_started(self, starting: asyncio.Future[str]) -> None:
        """End a reply whose reader left before its row was committed."""
        if not starting.cancelled() and starting.exception() is None:
            self.abandon(starting.result())

    def abandon(self, message_id: str) -> None:
        """End a reply that nobody will read, if it has not ended yet."""
        self.store.finish_reply(message_id, "stopped", text="", finish_reason="stopped", wait=False)

    async def stream(self, turn: Turn, asker: Asker) -> AsyncGenerator[Chunk, None]:
        """Yield a turn's chunks. The text is committed before the chunk with the finish reason is yielded."""
        written = _Written()
        state: ReplyState = "stopped"
        failure: ThumbwiseError | None = None
        last = turn.asked
        metric, gaps = self.metrics.first_token.labels(turn.label), self.metrics.token_gap.labels(turn.label)
        self.admission.enter(asker)
        try:
            reply = turn.prefetch or self.require_engine().chat(turn.version, turn.messages, turn.sampling)
            async with aclosing(reply) as chunks:
                async for chunk in chunks:
                    if chunk.response_ids:
                        now = time.monotonic()
                        metric.observe(now - last)
                        last, metric = now, gaps
                    written.add(chunk)
                    if chunk.finish_reason is not None:
                        state = "done"
                        await self._done(turn, written)
                    yield chunk
        except ThumbwiseError as error:
            state, failure = "failed", error
            raise
        except Exception as error:  # a bug: the reply failed, it was not stopped
            # The traceback may quote the prompt, so a temporary turn leaves only the error's kind.
            log.error("the reply %s failed: %s", turn.message_id, type(error).__name__, exc_info=not turn.temporary)
            state, failure = "failed", ThumbwiseError(_BUG, status=500)
            raise failure from error
        finally:
            # No await here: this also runs while the task is being cancelled.
            self.metrics.replies.labels(turn.label, state).inc()
            self.metrics.tokens.labels(turn.label).inc(len(written.response_ids))
            if state != "done":
                self._finish(turn, written, state, failure, wait=False)
            self.admission.leave(asker)  # last: whoever sees the free place also sees the end of the reply
            if not turn.temporary:
                _log_reply(turn, state, len(written.response_ids), time.monotonic() - turn.asked, failure)

    async def _done(self, turn: Turn, written: _Written) -> None:
        """Commit a whole reply, also if its reader leaves meanwhile. If that commit fails, it is tried again later."""
        if turn.temporary:
            return
        ending = asyncio.ensure_future(self.store.run(self._finish, turn, written, "done"))

        def retry_if_failed(ended: asyncio.Future[None]) -> None:
            if ended.cancelled() or ended.exception() is not None:
                self._finish(turn, written, "done", wait=False)

        try:
            await asyncio.shield(ending)
        except asyncio.CancelledError:
            ending.add_done_callback(retry_if_failed)
            raise

    async def write(self, turn: Turn, asker: Asker) -> tuple[str, Chunk]:
        """Generate a whole reply. Return its text, and one chunk with all tokens and the finish reason."""
        whole = _Written()
        async with aclosing(self.stream(turn, asker)) as chunks:
            async for chunk in chunks:
                whole.add(chunk)
                last = chunk
        last = replace(last, response_ids=tuple(whole.response_ids), prompt_ids=whole.prompt_ids)
        if turn.sampling.logprobs:
            last = replace(last, logprobs=tuple(whole.logprobs), tokens=tuple(whole.tokens))
        return "".join(whole.text), last

    def _finish(
        self,
        turn: Turn,
        written: _Written,
        state: ReplyState,
        failure: ThumbwiseError | None = None,
        *,
        wait: bool = True,
    ) -> None:
        if turn.temporary:
            return
        self.store.finish_reply(
            turn.message_id,
            state,
            text="".join(written.text),
            finish_reason=written.finish_reason or _reason(state, failure),
            prompt_ids=written.prompt_ids,
            response_ids=written.response_ids,
            error=None if failure is None else str(failure),
            wait=wait,
        )


def _reason(state: ReplyState, failure: ThumbwiseError | None) -> str | None:
    """Return why a reply ended that vLLM did not finish. If vLLM refused it, the fault is in the request."""
    if failure is not None and failure.status == 400:
        return REFUSED
    return "stopped" if state == "stopped" else None


def _log_reply(turn: Turn, state: str, tokens: int, seconds: float, failure: ThumbwiseError | None) -> None:
    """Write one line for each reply. A failure shows only its code, because vLLM's sentence may quote the prompt."""
    why = "" if failure is None else f" ({failure.code})"
    said = f"reply {turn.message_id} of {turn.version}: {state}{why}, {tokens} tokens in {seconds:.2f} s"
    event(
        log, "reply", said, message_id=turn.message_id, version=turn.version, state=state, tokens=tokens,
        seconds=round(seconds, 3), error=failure and failure.code,
    )  # fmt: skip


def check_messages(messages: Sequence[Message], *, may_continue: bool = False) -> None:
    """Raise ThumbwiseError if a prompt is empty, too long or no valid text, or does not end with the user.

    With `may_continue` it may also end with the assistant. The reply then continues this message.
    """
    roles = [message["role"] for message in messages]
    ends_well = roles[-1:] == ["user"] or (may_continue and roles[-1:] == ["assistant"] and "user" in roles)
    if not ends_well or not messages[-1]["content"].strip():
        raise ThumbwiseError("The last message must be from the user and must not be empty.", param="messages")
    text = "".join(message["content"] for message in messages)
    if len(messages) > MAX_MESSAGES or len(text) > MAX_CHARACTERS:
        raise too_long()
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ThumbwiseError("A message contains half a character (a lone surrogate): send whole ones.") from None


def too_long() -> ThumbwiseError:
    """Return the error for a conversation beyond the limits."""
    return ThumbwiseError(
        f"The prompt is too long, more than {MAX_MESSAGES} messages or {MAX_CHARACTERS} characters: start a new chat.",
        code=TOO_LONG, param="messages",
    )  # fmt: skip

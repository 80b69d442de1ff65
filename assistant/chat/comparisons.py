"""Two or more blind drafts of one prompt. The server draws the sides and stores them before anybody sees them.

A hook (`select_candidates`) chooses the versions. The side on which each is shown is drawn here, with the operating
system's randomness, and is stored. The drafts are revealed at an equal rate, so that speed does not tell versions
apart. Left out: comparisons inside the normal chat.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, suppress
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from thumbwise.chat.turns import Conversations, Turn, check_messages
from thumbwise.errors import ThumbwiseError
from thumbwise.feedback.records import MAX_DRAFTS

if TYPE_CHECKING:
    from thumbwise.contracts import Message
    from thumbwise.feedback.consent import Consents
    from thumbwise.feedback.records import Asker
    from thumbwise.plugin_host.manager import PluginManager
    from thumbwise.versions.lifecycle import Policies

REVEAL_SECONDS = 0.05


@dataclass(frozen=True)
class Opened:
    """A comparison whose rows are committed. `turns` are in the order shown."""

    comparison_id: str
    turns: tuple[Turn, ...]


class Comparisons:
    """Makes comparisons and generates their drafts."""

    def __init__(
        self, conversations: Conversations, policies: Policies, plugins: PluginManager, consents: Consents
    ) -> None:
        self.conversations = conversations
        self.consents = consents
        self.policies = policies
        self.plugins = plugins
        self.rng = random.SystemRandom()

    async def open(
        self, asker: Asker, messages: Sequence[Message], k: int, max_tokens: int | None, source: str
    ) -> Opened:
        """Draw versions and sides, and commit them. Nothing is generated yet.

        Raises ThumbwiseError (403) for people whose chats may not be stored: a vote needs the drafts that it is on.
        """
        check_messages(messages)
        if not self.consents.of(asker.user).keep_chats:
            raise ThumbwiseError(
                "Two replies are compared by a vote, and a vote needs them stored: allow `Keep my chats` in My data.",
                status=403, code="consent_needed",
            )  # fmt: skip
        if not 2 <= k <= MAX_DRAFTS:
            raise ThumbwiseError(f"k must be 2 to {MAX_DRAFTS} drafts.")
        self.conversations.require_engine()
        self.conversations.admission.check(asker, k)
        live = self.policies.live()
        sampling = self.conversations.sampling(max_tokens or self.conversations.settings.max_tokens)
        with self.conversations.admission.reserved(asker, k):  # else requests in between would all pass the check
            limit = self.conversations.settings.plugin_seconds
            shown = list(await self.plugins.choose(messages, live, k, self.rng, limit))
            self.rng.shuffle(shown)
            store = self.conversations.store
            row = store.run(store.start_comparison, asker, messages, shown, asdict(sampling), source)
            starting = asyncio.ensure_future(row)
            try:
                comparison_id, drafts = await asyncio.shield(starting)
            except asyncio.CancelledError:
                starting.add_done_callback(self._abandon_when_started)
                raise
        turns = (Turn(draft, v, tuple(messages), sampling, draft=True) for draft, v in zip(drafts, shown, strict=True))
        return Opened(comparison_id, tuple(turns))

    def _abandon_when_started(self, starting: asyncio.Future[tuple[str, list[str]]]) -> None:
        """End the drafts of a comparison whose reader left before its rows were committed."""
        if not starting.cancelled() and starting.exception() is None:
            for draft in starting.result()[1]:
                self.conversations.abandon(draft)

    async def write(self, opened: Opened, asker: Asker) -> list[tuple[str, str]]:
        """Generate all drafts at once. Return (draft id, text) in the order shown. Raises the error of any draft."""
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._one(turn, asker)) for turn in opened.turns]
        except BaseException:
            self._abandon(opened)
            raise
        texts = []
        for turn, task in zip(opened.turns, tasks, strict=True):
            result = task.result()
            if isinstance(result, ThumbwiseError):
                raise result
            texts.append((turn.message_id, result))
        return texts

    def _abandon(self, opened: Opened) -> None:
        """End the drafts that were not even started when the reader left."""
        for turn in opened.turns:
            self.conversations.abandon(turn.message_id)

    async def _one(self, turn: Turn, asker: Asker) -> str | ThumbwiseError:
        try:
            return (await self.conversations.write(turn, asker))[0]
        except ThumbwiseError as error:  # the other drafts go on and are stored
            return error

    async def stream(self, opened: Opened, asker: Asker) -> AsyncGenerator[list[str], None]:
        """Yield the texts of the drafts in the order shown, as they grow. They are whole at the end.

        While drafts are being written, each shows as many characters as the shortest unfinished one has. Closing this
        iterator stops every draft.
        """
        texts = [""] * len(opened.turns)
        running = set(range(len(texts)))

        async def fill(index: int, turn: Turn) -> None:
            async with aclosing(self.conversations.stream(turn, asker)) as chunks:
                async for chunk in chunks:
                    texts[index] += chunk.text
            running.discard(index)

        tasks = [asyncio.create_task(fill(i, turn)) for i, turn in enumerate(opened.turns)]
        try:
            while running:
                await asyncio.wait(tasks, timeout=REVEAL_SECONDS, return_when=asyncio.FIRST_EXCEPTION)
                for task in tasks:
                    if task.done():
                        task.result()
                shown = min((len(texts[i]) for i in running), default=None)
                yield [text[:shown] for text in texts]
        finally:
            for task in tasks:
                task.cancel()
            with suppress(ThumbwiseError, asyncio.CancelledError):
                await asyncio.gather(*tasks, return_exceptions=True)
            if running:
                self._abandon(opened)

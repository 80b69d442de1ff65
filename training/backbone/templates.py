"""Conversations to token ids and back: the model's chat template, as serving renders it, with one date for a run.

A run repeats itself: what it renders on another day must be the same. So templates that print the date print the one
that the run was given. Replies that people wrote end with the token with which the template ends a turn, which need
not be the tokenizer's end token (Gemma, Phi), and what they typed never becomes a control token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date, datetime, time
from typing import Any

from thumbwise.base_model.templates import MARK, Format, with_text
from thumbwise.contracts import Message
from thumbwise.errors import ThumbwiseError


class ChatTemplate:
    """The template of `tokenizer` with the operator's `arguments`, on the day `day` (None: today's).

    A reply ends at one of `stop_ids`. Raises ThumbwiseError where the template leaves out what people write.
    """

    def __init__(
        self, tokenizer: Any, stop_ids: frozenset[int], arguments: Mapping[str, Any] | None = None,
        day: date | None = None,
    ) -> None:  # fmt: skip
        self.tokenizer, self.stop_ids = tokenizer, stop_ids
        self._given: dict[str, Any] = dict(arguments or {})
        if day is not None:  # what a template is given goes before what it finds
            self._given["strftime_now"] = datetime.combine(day, time(12)).strftime
        self._format = self._find_format()
        self._end = self._find_end()

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """The conversation, ready for the assistant's reply, as vLLM renders it."""
        return self._ids(self._render(messages, begin=True))

    def reply_ids(self, messages: Sequence[Message], text: str) -> tuple[int, ...]:
        """The ids of `text` as the reply to `messages`, up to the token that ends it.

        Of the template with the reply, what follows the prompt. Where that is not to be had (a template that rewrites
        what came before, or a text with a control token's name in it), the text alone, and then the turn's end.
        """
        text = text.strip()
        plain: list[int] = self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        if plain == self.tokenizer(text, add_special_tokens=False)["input_ids"]:
            prompt, whole = self.prompt_ids(messages), self._with_reply(messages, text)
            ended = self._up_to_end(whole[len(prompt) :])
            if whole[: len(prompt)] == prompt and ended:
                return tuple(ended)
        return (*plain, *self._end)

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def _up_to_end(self, ids: Sequence[int]) -> list[int]:
        """`ids` to their first stop id, or nothing where there is none."""
        end = next((n for n, token in enumerate(ids, 1) if token in self.stop_ids), 0)
        return list(ids[:end])

    def _render(self, messages: Sequence[Message], begin: bool, form: Format | None = None) -> str:
        turns = [with_text(message["role"], message["content"], form or self._format) for message in messages]
        text: str = self.tokenizer.apply_chat_template(
            turns, tokenize=False, add_generation_prompt=begin, **self._given
        )
        return text

    def _with_reply(self, messages: Sequence[Message], text: str) -> list[int]:
        """The ids of the conversation and its reply; none where the template takes no replies."""
        try:
            return self._ids(self._render([*messages, Message(role="assistant", content=text)], begin=False))
        except Exception:  # a template is somebody's program
            return []

    def _find_format(self) -> Format:
        """Whether a message's text is handed over as it is or as a list of parts: whichever comes out."""
        marked = [Message(role="user", content=MARK)]
        said = "it leaves out what people write"
        for form in ("string", "openai"):
            try:
                if MARK in self._render(marked, begin=True, form=form):
                    return form
            except Exception as error:  # a template is somebody's program
                said = " ".join(str(error).split())[:200]
        raise ThumbwiseError(
            f"The model's chat template cannot be used ({said}): mend chat_template.jinja in its folder, or choose "
            "another model (`--model`)."
        )

    def _find_end(self) -> list[int]:
        """The ids that follow a reply, up to one at which generation stops."""
        question, answer = Message(role="user", content="?"), Message(role="assistant", content=MARK)
        try:
            after = self._render([question, answer], begin=False).rpartition(MARK)[2]
        except Exception:  # takes no replies: then the tokenizer's end token has to do
            after = ""
        eos = self.tokenizer.eos_token_id
        return self._up_to_end(self._ids(after)) or [int(eos) if eos is not None else min(self.stop_ids)]

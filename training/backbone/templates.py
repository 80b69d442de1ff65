"""Conversations to token ids and back: the model's chat template, as serving renders it, with one date for a run.

A run is repeatable: it must render the same on another day. So templates that print the date print the date that the
run was given.

Replies that people wrote end with the token with which the template ends a turn. That need not be the tokenizer's end
token (Gemma, Phi). What people typed never becomes a control token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date, datetime, time
from typing import Any

from thumbwise.base_model.templates import MARK, Format, with_text
from thumbwise.contracts import Message
from thumbwise.errors import ThumbwiseError


class ChatTemplate:
    """The template of `tokenizer` with the operator's `arguments`, on the day `day` (None: today).

    A reply ends at one of `stop_ids`. Raises ThumbwiseError if the template leaves out what people write.
    """

    def __init__(
        self, tokenizer: Any, stop_ids: frozenset[int], arguments: Mapping[str, Any] | None = None,
        day: date | None = None,
    ) -> None:  # fmt: skip
        self.tokenizer, self.stop_ids = tokenizer, stop_ids
        self._given: dict[str, Any] = dict(arguments or {})
        if day is not None:  # arguments of a template take precedence over its globals
            self._given["strftime_now"] = datetime.combine(day, time(12)).strftime
        self._format = self._find_format()
        self._end = self._find_end()

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """The conversation, ready for the assistant's reply, as vLLM renders it."""
        return self._ids(self._render(messages, begin=True))

    def reply_ids(self, messages: Sequence[Message], text: str) -> tuple[int, ...]:
        """The ids of `text` as the reply to `messages`, up to the token that ends it.

        They are what follows the prompt when the template renders the conversation with the reply. That is not always
        possible: a template may rewrite what came before, or the text may contain the name of a control token. Then
        they are the text alone, plus the end of the turn.
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
        """`ids` up to the first stop id, or nothing if there is none."""
        end = next((n for n, token in enumerate(ids, 1) if token in self.stop_ids), 0)
        return list(ids[:end])

    def _render(self, messages: Sequence[Message], begin: bool, form: Format | None = None) -> str:
        turns = [with_text(message["role"], message["content"], form or self._format) for message in messages]
        text: str = self.tokenizer.apply_chat_template(
            turns, tokenize=False, add_generation_prompt=begin, **self._given
        )
        return text

    def _with_reply(self, messages: Sequence[Message], text: str) -> list[int]:
        """The ids of the conversation and its reply; none if the template takes no replies."""
        try:
            return self._ids(self._render([*messages, Message(role="assistant", content=text)], begin=False))
        except Exception:  # a template is somebody's program and may raise anything
            return []

    def _find_format(self) -> Format:
        """Whether a message's text is passed as plain text or as a list of parts: whichever the template prints."""
        marked = [Message(role="user", content=MARK)]
        said = "it leaves out what people write"
        for form in ("string", "openai"):
            try:
                if MARK in self._render(marked, begin=True, form=form):
                    return form
            except Exception as error:  # a template is somebody's program and may raise anything
                said = " ".join(str(error).split())[:200]
        raise ThumbwiseError(
            f"The model's chat template cannot be used ({said}): fix chat_template.jinja in its folder, or choose "
            "another model (`--model`)."
        )

    def _find_end(self) -> list[int]:
        """The ids that follow a reply, up to one at which generation stops."""
        question, answer = Message(role="user", content="?"), Message(role="assistant", content=MARK)
        try:
            after = self._render([question, answer], begin=False).rpartition(MARK)[2]
        except Exception:  # it takes no replies: use the tokenizer's end token
            after = ""
        eos = self.tokenizer.eos_token_id
        return self._up_to_end(self._ids(after)) or [int(eos) if eos is not None else min(self.stop_ids)]

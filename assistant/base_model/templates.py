"""Checks a model's chat template, read from its folder: its arguments, and whether replies begin and end with it.

No model is loaded, so `serve` and `doctor` can say at once what training would find out weeks later. vLLM and the
training job render templates with the model's tokenizer; here we render texts of our own and look at the result. Left
out: the templates that vLLM has for models without one.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import jinja2
import jinja2.ext
import jinja2.meta
import jinja2.nodes
import jinja2.parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from thumbwise.errors import ThumbwiseError

Format = Literal["string", "openai"]
"""How a template gets a message's text, in vLLM's words: as a string, or as a list of parts."""

MARK = "Paris7q"
"""A text that is in no template."""

THINKING = {"enable_thinking", "thinking"}
"""The names that templates use for the switch that turns thinking on or off."""


def with_text(role: str, text: str, form: Format) -> dict[str, Any]:
    """A message in the format that a template takes."""
    return {"role": role, "content": text if form == "string" else [{"type": "text", "text": text}]}


class _Generation(jinja2.ext.Extension):
    """The tag around what the model wrote, which changes nothing in the text."""

    tags = {"generation"}  # as jinja2 has it

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _environment() -> ImmutableSandboxedEnvironment:
    """As transformers has it."""
    made = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    made.filters["tojson"] = lambda value, **options: json.dumps(value, **{"ensure_ascii": False, **options})
    made.globals["raise_exception"] = _refuse
    made.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return made


def _refuse(message: str) -> None:
    raise jinja2.TemplateError(message)


@dataclass(frozen=True)
class FolderTemplate:
    """The template of the model in `folder`, with the operator's `arguments`."""

    folder: Path
    arguments: Mapping[str, Any]

    @cached_property
    def source(self) -> str:
        """Its text; of several, the one named default. Raises ThumbwiseError where there is none."""
        with contextlib.suppress(FileNotFoundError):
            return (self.folder / "chat_template.jinja").read_text(encoding="utf-8")
        for name in ("chat_template.json", "tokenizer_config.json"):
            found = _read(self.folder / name).get("chat_template")
            if isinstance(found, list):
                named = {row.get("name"): row.get("template") for row in found if isinstance(row, dict)}
                found = named.get("default")
            if isinstance(found, str):
                return found
        raise ThumbwiseError(f"{self.folder} has no chat template: put one into chat_template.jinja there.")

    @cached_property
    def _compiled(self) -> jinja2.Template:
        try:
            return _environment().from_string(self.source)
        except jinja2.TemplateError as error:
            raise self._broken(error) from None

    def _broken(self, error: Exception) -> ThumbwiseError:
        said = " ".join(f"{error}".split())[:200]
        return ThumbwiseError(
            f"The chat template of {self.folder.name} cannot be used ({said}): fix chat_template.jinja there, or "
            "choose another model."
        )

    @property
    def reads(self) -> set[str]:
        """The names that it reads and does not set."""
        return jinja2.meta.find_undeclared_variables(_environment().parse(self.source))

    @cached_property
    def format(self) -> Format:
        """How it takes texts: as they are where they come out so, else as parts; raises ThumbwiseError if neither."""
        why: Exception | None = None
        for form in ("string", "openai"):
            try:
                if MARK in self.render([("user", MARK)], form):
                    return form
            except ThumbwiseError as error:
                why = why or error
        raise why or ThumbwiseError(
            f"The chat template of {self.folder.name} leaves out what people write, as text and as a list of parts: "
            "fix chat_template.jinja there, or choose another model."
        )

    def render(self, turns: Sequence[tuple[str, str]], form: Format, begin: bool = True) -> str:
        """The conversation of (role, text), with the beginning of a reply unless `begin` is False."""
        messages = [with_text(role, text, form) for role, text in turns]
        given = {**self._special(), **self.arguments, "add_generation_prompt": begin, "tools": None, "documents": None}
        try:
            return self._compiled.render(messages=messages, **given)
        except ThumbwiseError:
            raise
        except Exception as error:  # a template is somebody's program
            raise self._broken(error) from None

    def _special(self) -> dict[str, str]:
        """The tokenizer's special tokens, by what templates call them."""
        found: dict[str, str] = {}
        for name in ("special_tokens_map.json", "tokenizer_config.json"):
            for key, value in _read(self.folder / name).items():
                text = value.get("content") if isinstance(value, dict) else value
                if key.endswith("_token") and isinstance(text, str):
                    found[key] = text
        return found

    def stops(self) -> set[int]:
        """Ids at which vLLM ends a reply: the model's own list, and the tokenizer's end token."""
        config = _read(self.folder / "config.json")
        text = config.get("text_config")
        named = _read(self.folder / "generation_config.json").get("eos_token_id", config.get("eos_token_id"))
        if named is None and isinstance(text, dict):
            named = text.get("eos_token_id")
        listed = {n for n in (named if isinstance(named, list) else [named]) if type(n) is int}
        end = self._added().get(self._special().get("eos_token", ""))
        return listed if end is None else listed | {end}

    def _added(self) -> dict[str, int]:
        """The ids of tokens that are no pieces of words, by their text."""
        rows = _read(self.folder / "tokenizer_config.json").get("added_tokens_decoder")
        try:
            if isinstance(rows, dict) and rows:
                return {str(row["content"]): int(key) for key, row in rows.items()}
            rows = _read(self.folder / "tokenizer.json").get("added_tokens") or ()
            return {str(row["content"]): int(row["id"]) for row in rows}
        except (KeyError, TypeError, ValueError) as error:
            raise ThumbwiseError(
                f"The tokenizer in {self.folder} cannot be read ({type(error).__name__}: {error}): copy or download "
                "the model again."
            ) from None

    def turn_end(self) -> tuple[str, int] | None:
        """The token that it puts after a reply and its id; None where it puts none, or takes no reply."""
        try:
            whole = self.render([("user", "?"), ("assistant", MARK)], self.format, begin=False)
        except ThumbwiseError:
            return None
        after = whole.rpartition(MARK)[2] if MARK in whole else ""
        there = [(after.find(text), -len(text), text) for text in self._added() if text and text in after]
        if not there:
            return None
        text = min(there)[2]
        return text, self._added()[text]


def check(folder: Path, arguments: Mapping[str, Any]) -> None:
    """Raise ThumbwiseError where chats with the model in `folder` would lose texts, arguments or their end."""
    template = FolderTemplate(folder, arguments)
    template.format  # noqa: B018  # raises where texts are lost
    if unread := sorted(arguments.keys() - template.reads):
        raise ThumbwiseError(
            f"The chat template of {folder.name} reads no {', '.join(unread)}: take it out of `chat_template_kwargs`."
        )
    stops = template.stops()
    if not stops:
        raise ThumbwiseError(
            f"{folder.name} names no token that ends a reply: put its id as eos_token_id into generation_config.json."
        )
    if (end := template.turn_end()) and end[1] not in stops:
        raise ThumbwiseError(
            f"{folder.name} would not stop at the end of a reply, which its chat template marks with {end[0]}: add "
            f"{end[1]} to eos_token_id in generation_config.json there."
        )


def advice(folder: Path, arguments: Mapping[str, Any]) -> str:
    """A sentence where the model in `folder` may think before it answers, and nobody has said whether it should."""
    asked = sorted(THINKING & FolderTemplate(folder, arguments).reads - arguments.keys())
    if not asked:
        return ""
    return (
        f"{folder.name} may think before it answers, and its drafts then end in mid-thought: set "
        f"`chat_template_kwargs = {{{asked[0]} = false}}` in config.toml for answers at once (true: it thinks)."
    )


def _read(path: Path) -> dict[str, Any]:
    with contextlib.suppress(OSError, ValueError, RecursionError):
        value = json.loads(path.read_bytes())
        return value if isinstance(value, dict) else {}
    return {}

"""What the store holds, as typed records, and the one validation of feedback that everybody goes through.

Pages, the API and imports all build a `FeedbackRequest`; nothing reaches the table that it did not pass.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    FailFast,
    Field,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_validator,
)
from ulid import ULID

from thumbwise.contracts import Message
from thumbwise.errors import ThumbwiseError

LOCAL_USER = "local"
PROGRAMS = "programs"
"""All programs without a key together are this one person, because anybody can invent any number of names."""
NEW_BROWSER = "browser:new"
"""All browsers that came less than a day ago, or have no cookie of ours, together are this one person."""
ACCOUNT = "usr_"
"""How the ids of accounts begin. Nobody else's name may begin so."""
FORGOTTEN = f"{ACCOUNT}forgotten"
"""The owner of rows whose text was forgotten. No account has this id."""
MAX_COMMENT = 4000
MAX_DRAFTS = 9  # InstructGPT ranked 4 to 9 (arXiv 2203.02155, section 3.2)
ReplyState = Literal["streaming", "done", "stopped", "failed"]
REFUSED = "refused"
"""Finish reason of a reply that failed because vLLM refused the request, for example a prompt that is too long."""


def new_id(prefix: str) -> str:
    """Return a sortable unique id such as `msg_01J…`."""
    return f"{prefix}_{ULID()}"


def now_ns() -> int:
    """UTC time in nanoseconds."""
    return time.time_ns()


def canonical(value: Any) -> str:
    """JSON with sorted keys and no spaces: the same value always gives the same bytes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def sha256(text: str | bytes) -> str:
    """Hex SHA-256 of text (UTF-8) or bytes."""
    return hashlib.sha256(text.encode() if isinstance(text, str) else text).hexdigest()


def prompt_sha256(messages: Sequence[Message]) -> str:
    """The content address of a prompt; that of a conversation's first message is the group of all its turns."""
    return sha256(canonical(list(messages)))


def account_of(user: str) -> str | None:
    """The account that owns a user's rows; None for users without an account."""
    return user.partition("/")[0] if user.startswith(ACCOUNT) else None


def is_browser(person: str) -> bool:
    """Whether a person is a browser, or all new ones."""
    return person.startswith("browser:")


@dataclass(frozen=True)
class Asker:
    """Who asks or votes. `user` owns the rows: the chats and votes. `person` is whom limits hold for.

    Where there are accounts, both are the account's id; names below its API keys are `<id>/<name>`, and count for it.
    Else a person is `browser:<id of its cookie>`, `key:<name>`, or PROGRAMS; where names are people, also
    `name:<user>`.
    """

    user: str
    person: str
    young: bool = False
    """A browser that came less than a day ago: otherwise somebody who deletes cookies would always be a new person."""
    page: bool = False
    """Whether it asks from a page. Programs never take every place from the pages."""

    @property
    def counted(self) -> str:
        """The person for whom votes and turns count, as it is written in their rows."""
        return NEW_BROWSER if self.young else self.person


@dataclass(frozen=True)
class Reply:
    """One stored reply. `text` is final only where `state` is not "streaming"."""

    id: str
    user_id: str
    prompt: tuple[Message, ...]
    conversation_id: str | None
    parent_id: str | None
    comparison_id: str | None
    policy_version: str
    state: ReplyState
    text: str
    finish_reason: str | None
    error: str | None
    thumb: Literal["up", "down"] | None = None
    cut: Literal["", "length", "context"] = ""
    """Why a reply that is done was cut: by its own limit, or because prompt and reply filled the model's context."""


@dataclass(frozen=True)
class StoredComparison:
    """A comparison with its drafts in shown order; `choice` is None until the vote."""

    id: str
    user_id: str
    prompt: tuple[Message, ...]
    drafts: tuple[Reply, ...]
    choice: str | None


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ThumbValue(_Strict):
    """A vote on one reply: up, down, or the vote taken back."""

    thumb: Literal["up", "down", "clear"]


class PairValue(_Strict):
    """A side-by-side vote; strength 2 means much better."""

    choice: Literal["left", "right", "tie", "both_bad", "skip"]
    strength: Literal[1, 2] = 1


_Draft = Annotated[str, Field(max_length=64)]
_Tier = Annotated[list[_Draft], FailFast(), Field(min_length=1, max_length=MAX_DRAFTS)]


class RankValue(_Strict):
    """Best tier first, drafts of one tier tied; or none usable."""

    tiers: Annotated[list[_Tier], FailFast(), Field(max_length=MAX_DRAFTS)] = Field(default_factory=list)
    none_usable: bool = False

    @model_validator(mode="after")
    def _one_of_both(self) -> RankValue:
        if bool(self.tiers) == self.none_usable:
            raise ValueError("give either tiers or none_usable")
        flat = [draft for tier in self.tiers for draft in tier]
        if len(flat) != len(set(flat)):
            raise ValueError("a draft may stand in one tier only")
        return self


class TextValue(_Strict):
    """A remark (comment)."""

    text: str = Field(min_length=1, max_length=32_000)


class EditValue(TextValue):
    """A corrected reply: one that says something."""

    @field_validator("text")
    @classmethod
    def _says_something(cls, text: str) -> str:
        if not text.strip():
            raise ValueError("a corrected reply cannot be blank: write what it should have said")
        return text


_Flag = Annotated[str, Field(max_length=64)]


class LikertValue(_Strict):
    """InstructGPT's overall quality, 1 to 7, with flags (arXiv 2203.02155, Table 3)."""

    overall: int = Field(ge=1, le=7)
    flags: Annotated[list[_Flag], FailFast(), Field(max_length=16)] = Field(default_factory=list)


class FlagValue(_Strict):
    """A reply reported as unsafe or broken."""

    reason: str = Field(min_length=1, max_length=MAX_COMMENT)


VALUES: dict[str, type[_Strict]] = {
    "thumb": ThumbValue,
    "pair": PairValue,
    "rank": RankValue,
    "edit": EditValue,
    "comment": TextValue,
    "likert": LikertValue,
    "flag": FlagValue,
}
ON_COMPARISONS = {"pair", "rank"}
TELLING = """(
    f.kind = 'pair' AND json_extract(f.value, '$.choice') <> 'skip'
    OR f.kind = 'rank' AND NOT json_extract(f.value, '$.none_usable'))"""
"""SQL: which rows `f` of feedback on comparisons say how drafts compare."""
Kind = Literal["thumb", "pair", "rank", "edit", "comment", "likert", "flag"]


class FeedbackRequest(_Strict):
    """One piece of feedback as it arrives: exactly one target, and a value that fits its kind."""

    kind: Kind
    message_id: str | None = None
    comparison_id: str | None = None
    value: Any

    def checked(self) -> dict[str, Any]:
        """Return the validated value as plain JSON; raises ThumbwiseError saying what is wrong."""
        target = "comparison_id" if self.kind in ON_COMPARISONS else "message_id"
        other = "message_id" if target == "comparison_id" else "comparison_id"
        if getattr(self, target) is None or getattr(self, other) is not None:
            raise ThumbwiseError(f"Feedback of kind {self.kind} needs {target} and no {other}.")
        value = {"thumb": self.value} if self.kind == "thumb" else self.value
        if self.kind == "rank" and value == "none_usable":
            value = {"none_usable": True}
        shape = VALUES[self.kind]
        if isinstance(value, dict) and len(value) > len(shape.model_fields):  # each wrong field would be an error
            raise ThumbwiseError(f"The value of {self.kind} has only {', '.join(shape.model_fields)}: send these.")
        try:
            checked = TypeAdapter(shape).validate_python(value)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(str(part) for part in first["loc"])
            raise ThumbwiseError(
                f"The value of {self.kind} is wrong{f' at {where[:80]}' if where else ''}: {first['msg'].lower()}.",
                param="value",
            ) from None
        return checked.model_dump()


def tier_of(vote: dict[str, Any], shown: Sequence[str]) -> dict[str, int]:
    """The tier of each of the drafts `shown`, the best first, by a vote that is TELLING."""
    if "tiers" in vote:
        return {draft: number for number, tier in enumerate(vote["tiers"]) for draft in tier}
    left, right = shown
    return {left: int(vote["choice"] == "right"), right: int(vote["choice"] == "left")}

"""The bodies of API requests: bounded, checked until the first error, and lenient about fields without effect.

Clients send fields that nobody set: null, 0, empty lists, "auto". A field that cannot change the answer is accepted and
dropped. A field that would change it and is not supported is refused, with its name. A body goes from bytes to its
model in one step, so neither a list of a million wrong items nor half an emoji reaches code that does not expect it.
Left out: tools, images, `n`, `top_logprobs`, `response_format` other than text.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar

from fastapi import Depends, Request
from pydantic import BaseModel, ConfigDict, FailFast, Field, PrivateAttr, ValidationError, model_validator
from pydantic_core import PydanticCustomError
from starlette.requests import ClientDisconnect

from thumbwise.chat.turns import MAX_MESSAGES, PUBLIC_NAME, too_long
from thumbwise.contracts import Message
from thumbwise.engine.client import Sampling
from thumbwise.errors import ThumbwiseError
from thumbwise.feedback.records import FeedbackRequest, Kind
from thumbwise.serving.auth import MAX_USER

MAX_PARTS = 100
MAX_STOPS = 4
MAX_STOP = 256
_INT64 = 2**63
_EMPTY: tuple[Any, ...] = (None, "", [], {})

Id = Annotated[str, Field(max_length=64)]
User = Annotated[str, Field(max_length=MAX_USER)]
Length = Annotated[int, Field(ge=1)]
Read = TypeVar("Read", bound="Body")


class Body(BaseModel):
    """A JSON body. A field that the model does not declare is dropped if it is harmless or neutral, else refused."""

    model_config = ConfigDict(extra="allow")
    harmless: ClassVar[frozenset[str]] = frozenset()
    """Fields that never change the answer."""
    neutral: ClassVar[dict[str, tuple[Any, ...]]] = {}
    """By field, values that do not change the answer. Null and empty values never do."""

    @model_validator(mode="after")
    def _refuse_unsupported(self) -> Self:
        for name, value in (self.__pydantic_extra__ or {}).items():
            if name not in self.harmless and value not in (*_EMPTY, *self.neutral.get(name, ())):
                raise _unsupported(name)
        return self


class ChatMessage(Body):
    """One message of a prompt: text, whole or in parts. `developer` is OpenAI's newer word for `system`."""

    harmless = frozenset({"name", "cache_control"})
    role: Literal["system", "developer", "user", "assistant"]
    content: Any = None
    _text: str = PrivateAttr("")

    @model_validator(mode="after")
    def _is_text(self) -> Self:
        self._text = "" if self.content is None and self.role == "assistant" else _text(self.content)
        return self

    @property
    def plain(self) -> Message:
        """The message as it is stored and sent to vLLM."""
        return Message(role="system" if self.role == "developer" else self.role, content=self._text)


Messages = Annotated[list[ChatMessage], FailFast(), Field(max_length=MAX_MESSAGES)]


class StreamOptions(Body):
    """Options of a stream."""

    harmless = frozenset({"include_obfuscation"})
    include_usage: bool | None = None


class ChatRequest(Body):
    """`POST /v1/chat/completions`."""

    harmless = frozenset(
        {"metadata", "service_tier", "parallel_tool_calls", "safety_identifier", "prompt_cache_key",
         "prompt_cache_retention"}
    )  # fmt: skip
    neutral = {
        "frequency_penalty": (0,), "presence_penalty": (0,), "repetition_penalty": (1,), "top_k": (0, -1),
        "min_p": (0,), "top_logprobs": (0,), "tool_choice": ("auto", "none"), "function_call": ("auto", "none"),
        "response_format": ({"type": "text"},), "modalities": (["text"],), "verbosity": ("medium",),
        "reasoning_effort": ("auto", "none", "default", "medium"),
    }  # fmt: skip
    model: Annotated[str, Field(max_length=256)] | None = None
    messages: Messages
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Length | None = None
    max_completion_tokens: Length | None = None
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    seed: int | None = Field(None, ge=-_INT64, lt=_INT64)
    stop: Any = None
    logprobs: bool | None = None
    user: User | None = None
    store: bool | None = None
    n: Literal[1] | None = None
    _stops: tuple[str, ...] = PrivateAttr(())

    @model_validator(mode="after")
    def _check_stops(self) -> Self:
        self._stops = _stops(self.stop)
        return self

    @property
    def version(self) -> str:
        """The model that the client names, or the public name."""
        return self.model or PUBLIC_NAME

    @property
    def usage(self) -> bool:
        """Whether a stream ends with its token counts."""
        return bool(self.stream_options and self.stream_options.include_usage)

    def sampling(self, default: Sampling) -> Sampling:
        """Return how to sample, with `default` for every field that was not sent."""
        return Sampling(
            temperature=default.temperature if self.temperature is None else self.temperature,
            max_tokens=self.max_completion_tokens or self.max_tokens or default.max_tokens,
            top_p=1.0 if self.top_p is None else self.top_p,
            seed=self.seed,
            stop=self._stops,
            logprobs=bool(self.logprobs),
        )


class ComparisonRequest(Body):
    """`POST /v1/comparisons`."""

    messages: Messages
    k: int = Field(2, ge=2, le=9)
    max_tokens: Length | None = None
    user: User | None = None


class FeedbackBody(Body):
    """`POST /v1/feedback`: a vote, and the user who gives it."""

    kind: Kind
    message_id: Id | None = None
    comparison_id: Id | None = None
    value: Any
    user: User | None = None

    @property
    def vote(self) -> FeedbackRequest:
        """The vote without the user."""
        return FeedbackRequest(
            kind=self.kind, message_id=self.message_id, comparison_id=self.comparison_id, value=self.value
        )


def plain(messages: list[ChatMessage]) -> list[Message]:
    """Return messages as they are stored and sent to vLLM."""
    return [message.plain for message in messages]


def _unsupported(name: str) -> PydanticCustomError:
    return PydanticCustomError("unsupported", "is not supported: leave it out", {"field": name})


def _wrong(field: str, sentence: str) -> PydanticCustomError:
    return PydanticCustomError("wrong", "{sentence}", {"field": field, "sentence": sentence})


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or len(content) > MAX_PARTS:
        raise _wrong("content", f"must be text, or a list of at most {MAX_PARTS} parts of type text")
    return "".join(_part(number, part) for number, part in enumerate(content))


def _part(number: int, part: Any) -> str:
    where = f"content.{number}"
    kind = part.get("type") if isinstance(part, dict) else None
    if kind != "text":
        named = {"image_url": "images are", "input_audio": "audio is", "file": "files are"}
        what = named.get(kind, "other parts are") if isinstance(kind, str) else "other parts are"
        raise _wrong(where, f"{what} not supported, because this assistant reads text only: send parts of type text")
    if not isinstance(part.get("text"), str):
        raise _wrong(where, "text is missing: send {type: text, text: …}")
    for name, value in part.items():
        if name not in ("type", "text", "cache_control") and value not in _EMPTY:
            raise _unsupported(f"{where}.{name}")
    return str(part["text"])


def _stops(stop: Any) -> tuple[str, ...]:
    several = [stop] if isinstance(stop, str) else stop or []
    if not isinstance(several, list) or len(several) > MAX_STOPS:
        raise _wrong("stop", f"must be text, or a list of at most {MAX_STOPS} texts")
    if not all(isinstance(one, str) and len(one) <= MAX_STOP for one in several):
        raise _wrong("stop", f"each must be text of at most {MAX_STOP} characters")
    return tuple(one for one in several if one)


def reader(model: type[Read]) -> Callable[[Request], Awaitable[Read]]:
    """Return a function that reads a body as `model`, whatever its Content-Type is: plain `curl -d` says form."""

    async def read(http: Request) -> Read:
        try:
            return model.model_validate_json(await http.body())
        except ClientDisconnect:
            raise ThumbwiseError("The body is incomplete: send it again.", status=499) from None
        except ValidationError as error:
            raise first_error(error) from None

    return read


def first_error(error: ValidationError) -> ThumbwiseError:
    """Return the first error of a body as one sentence."""
    first = error.errors(include_url=False, include_input=False)[0]
    kind, context = first["type"], first.get("ctx", {})
    if kind == "json_invalid":
        if any(word in str(context["error"]) for word in ("surrogate", "hex escape")):
            return ThumbwiseError("The body contains half a character (a lone surrogate): send whole ones.")
        return ThumbwiseError("The body is not JSON: send one object.")
    if kind == "too_long" and first["loc"] == ("messages",):
        return too_long()
    where = ".".join(str(part) for part in (*first["loc"], *([context["field"]] if "field" in context else [])))[:80]
    if kind == "unsupported":
        return ThumbwiseError(f"{where} {first['msg']}.", code="unsupported_parameter", param=where)
    said = first["msg"] if kind == "wrong" else first["msg"].lower()
    return ThumbwiseError(f"{where or 'The body'}: {said[:300]}.", param=where or None)


Chat = Annotated[ChatRequest, Depends(reader(ChatRequest))]
Drafts = Annotated[ComparisonRequest, Depends(reader(ComparisonRequest))]
Vote = Annotated[FeedbackBody, Depends(reader(FeedbackBody))]

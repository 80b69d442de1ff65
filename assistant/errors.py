"""Errors that reach people: one clear sentence with what was wrong and what to do.

Any other exception that escapes is a bug and keeps its traceback. An error has its HTTP status with it, because the
same refusal is shown on the command line, on a page and by the API.
"""

from __future__ import annotations

CODES = {
    400: "invalid_request", 401: "invalid_api_key", 403: "forbidden", 404: "not_found", 405: "method_not_allowed",
    409: "conflict", 413: "too_large", 422: "unusable", 429: "rate_limit_exceeded", 499: "reader_gone",
    502: "engine_failed", 503: "unavailable", 507: "disk_full",
}  # fmt: skip
"""What API clients read as `error.code` if an error has no code of its own."""
TOO_LONG = "context_length_exceeded"
"""The code that tells clients that a shorter prompt would be answered.

LangChain and LiteLLM look at the sentence instead: both know "prompt is too long".
"""


class ThumbwiseError(Exception):
    """Something that a person can correct. `str(error)` is the sentence; `status` is the HTTP status.

    `param` names the field of the request that is wrong.
    """

    status = 400

    def __init__(
        self, message: str, *, status: int | None = None, code: str | None = None, param: str | None = None
    ) -> None:
        super().__init__(message)
        if status is not None:
            self.status = status
        self.code = code or CODES.get(self.status, "server_error" if self.status >= 500 else "refused")
        self.param = None if param is None else param[:80]


class NotFound(ThumbwiseError):
    """The thing named does not exist, or this user may not see it."""

    status = 404


class Conflict(ThumbwiseError):
    """The request contradicts what is already recorded (a moved pointer, a used key, a live lease)."""

    status = 409


class EngineUnavailable(ThumbwiseError):
    """vLLM is starting, restarting or gone: try again later."""

    status = 503


class EngineFailed(ThumbwiseError):
    """vLLM answered with an error, or stopped in the middle of a reply."""

    status = 502

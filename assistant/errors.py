"""Errors that reach people: one clear sentence with what was wrong and what to do.

Anything else that escapes is a bug and keeps its traceback. The HTTP status rides along because the
same refusal is met on the command line, on a page and through the API.
"""

from __future__ import annotations

CODES = {
    400: "invalid_request", 401: "invalid_api_key", 403: "forbidden", 404: "not_found", 405: "method_not_allowed",
    409: "conflict", 413: "too_large", 422: "unusable", 429: "rate_limit_exceeded", 499: "reader_gone",
    502: "engine_failed", 503: "unavailable", 507: "disk_full",
}  # fmt: skip
"""What API clients read as `error.code` where an error brings none of its own."""
TOO_LONG = "context_length_exceeded"
"""The code by which clients know that a shorter prompt would be answered.

LangChain and LiteLLM look at the sentence instead; "prompt is too long" is what both of them know.
"""


class ThumbwiseError(Exception):
    """Something a person can mend. `str(error)` is the sentence; `status` is the HTTP status.

    `param` names the field of the request that is at fault.
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
    """The thing named does not exist, or is not this user's to see."""

    status = 404


class Conflict(ThumbwiseError):
    """The request contradicts what is already recorded (a moved pointer, a used key, a live lease)."""

    status = 409


class EngineUnavailable(ThumbwiseError):
    """vLLM is starting, restarting or gone: worth trying again later."""

    status = 503


class EngineFailed(ThumbwiseError):
    """vLLM answered with an error or stopped in mid-reply."""

    status = 502

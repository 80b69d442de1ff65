"""Errors that reach people: one clear sentence with what was wrong and what to do.

Anything else that escapes is a bug and keeps its traceback. The HTTP status rides along because the
same refusal is met on the command line, on a page and through the API.
"""

from __future__ import annotations


class ThumbwiseError(Exception):
    """Something a person can mend. `str(error)` is the sentence; `status` is the HTTP status."""

    status = 400

    def __init__(self, message: str, *, status: int | None = None, code: str | None = None) -> None:
        super().__init__(message)
        if status is not None:
            self.status = status
        self.code = code or type(self).__name__


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

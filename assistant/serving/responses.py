"""Errors in HTTP answers, in OpenAI's format: `{"error": {"message", "type", "code", "param"}}`."""

from __future__ import annotations

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from thumbwise.errors import ThumbwiseError
from thumbwise.faults import disk_is_full

_TYPES = {
    401: "authentication_error", 403: "permission_error", 404: "not_found_error",
    409: "conflict_error", 429: "rate_limit_error", 503: "unavailable_error",
}  # fmt: skip


def error_body(error: ThumbwiseError) -> dict[str, object]:
    """Return the body of an error answer."""
    kind = _TYPES.get(error.status, "server_error" if error.status >= 500 else "invalid_request_error")
    return {"error": {"message": str(error), "type": kind, "code": error.code, "param": error.param}}


def error_response(error: ThumbwiseError) -> JSONResponse:
    """Return an answer with the error's sentence."""
    headers = {"Retry-After": "5"} if error.status in (429, 503) else None
    return JSONResponse(error_body(error), error.status, headers)


def install(app: FastAPI) -> None:
    """Give every error answer of `app` this format."""

    @app.exception_handler(ThumbwiseError)
    async def ours(request: Request, error: ThumbwiseError) -> JSONResponse:
        return error_response(error)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"] if part != "body")[:80]
        if first["type"] == "json_invalid":
            return error_response(ThumbwiseError("The body is not JSON: send one object."))
        if first["type"] == "extra_forbidden":
            message = f"{where} is not supported: leave it out."
        else:
            message = f"{where or 'The body'}: {first['msg'].lower()}."
        return error_response(ThumbwiseError(message, param=where or None))

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> JSONResponse:
        if disk_is_full(error):  # Starlette calls a full temporary folder "an error parsing the body"
            return _full()
        return error_response(ThumbwiseError(str(error.detail), status=error.status_code))

    @app.exception_handler(Exception)  # Starlette logs it with its traceback after this answer
    async def unforeseen(request: Request, error: Exception) -> JSONResponse:
        fault = ThumbwiseError("Something went wrong in the assistant: its log says what.", status=500)
        return error_response(fault)

    @app.exception_handler(UnicodeEncodeError)
    async def half(request: Request, error: UnicodeEncodeError) -> JSONResponse:
        if error.reason != "surrogates not allowed":
            raise error
        return error_response(
            ThumbwiseError("The request contains half a character (a lone surrogate): send whole ones.")
        )

    @app.exception_handler(OSError)
    async def system(request: Request, error: OSError) -> JSONResponse:
        if not disk_is_full(error):
            raise error
        return _full()


def _full() -> JSONResponse:
    return error_response(ThumbwiseError("The disk is full: nothing was saved. Make room, then try again.", status=507))

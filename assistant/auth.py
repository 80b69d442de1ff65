"""Who may ask: a Host check on every request, an Origin check on every change, a token for the job.

The assistant listens on loopback only, and any web page can make a browser post to a local port, so a
request that changes something must come from our own pages (Origin equal to scheme and Host) or from no
browser at all (no Origin). The Host check stops names that were rebound to 127.0.0.1. Until there are
accounts the user is `local`, or whom the request's `user` field names, or an API key's client
(`thumbwise.keys`). Which browser it is counts for votes and limits only (`thumbwise.browsers`).
"""

from __future__ import annotations

import hmac
import ipaddress
from urllib.parse import urlsplit

from fastapi import Request
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from thumbwise.artifacts import MAX_BYTES, MAX_JSON
from thumbwise.errors import ThumbwiseError
from thumbwise.feedback.records import LOCAL_USER
from thumbwise.responses import error_response

SAFE = {"GET", "HEAD", "OPTIONS"}
MAX_BODY = 4 * 1024**2
OPS = "/ops/api/"
MAX_OPS_BODY = MAX_BYTES + 4 * MAX_JSON
"""Adapters are larger than MAX_BODY, and only the job's token may send them."""


def is_loopback(host: str) -> bool:
    """Whether `host` (a name or an address, no port) is this machine's loopback."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def refusal(method: str, scheme: str, path: str, headers: Headers, token: str) -> ThumbwiseError | None:
    """Why a request may not pass, or None; `token` is the job's."""
    host = headers.get("host", "")
    try:
        name = urlsplit(f"//{host}").hostname or ""
    except ValueError:
        name = ""
    if not is_loopback(name):
        return ThumbwiseError("This assistant answers on this machine only: use http://127.0.0.1.", status=403)
    if method in SAFE:
        return None
    origin = headers.get("origin")
    if origin is not None and origin != f"{scheme}://{host}":
        return ThumbwiseError("This request comes from another site and is refused.", status=403)
    if headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        return ThumbwiseError("This request comes from another site and is refused.", status=403)
    length = headers.get("content-length", "0")
    if not length.isdigit() or int(length) > limit(path):
        return _too_large(path)
    if path.startswith(OPS) and not is_token(headers.get("authorization"), token):  # before a byte of it is kept
        return _no_token()
    return None


def limit(path: str) -> int:
    """The most bytes that the body of a request to `path` may have."""
    return MAX_OPS_BODY if path.startswith(OPS) else MAX_BODY


def _too_large(path: str) -> ThumbwiseError:
    return ThumbwiseError(f"The request is larger than {limit(path)} bytes: send less.", status=413)


def _counted(receive: Receive, path: str) -> Receive:
    """`receive`, raising once more bytes came than may: a body that is sent in chunks does not say its length."""
    got, most = 0, limit(path)

    async def counting() -> Message:
        nonlocal got
        message = await receive()
        got += len(message.get("body", b""))
        if got > most:
            raise HTTPException(413, str(_too_large(path)))  # FastAPI lets this one pass while it reads a body
        return message

    return counting


class Guard:
    """ASGI middleware that refuses foreign hosts and origins before anything else sees the request."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self.app, self.token = app, token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer with the refusal."""
        if scope["type"] == "websocket":  # nothing here speaks it
            await send({"type": "websocket.close"})
            return
        if scope["type"] == "http":
            why = refusal(scope["method"], scope["scheme"], scope["path"], Headers(scope=scope), self.token)
            if why is not None:
                await error_response(why)(scope, receive, send)
                return
            receive = _counted(receive, scope["path"])
        await self.app(scope, receive, send)


def bearer(authorization: str | None) -> str:
    """The token in an Authorization header, or nothing."""
    kind, _, token = (authorization or "").partition(" ")
    return token.strip() if kind.lower() == "bearer" else ""


def is_token(authorization: str | None, token: str) -> bool:
    """Whether an Authorization header has the job's bearer token."""
    return bool(token) and hmac.compare_digest(bearer(authorization).encode(), token.encode())


def check_token(request: Request, token: str) -> None:
    """Raise 401 unless the request carries the job's bearer token."""
    if not is_token(request.headers.get("authorization"), token):
        raise _no_token()


def _no_token() -> ThumbwiseError:
    return ThumbwiseError("The job's token is missing or wrong: it is in job.token in the home.", status=401)


def user_of(named: str | None) -> str:
    """The user a request speaks for: `local`, or the person its `user` field names."""
    if named is None or named == "":
        return LOCAL_USER
    if len(named) > 64 or not named.isprintable():
        raise ThumbwiseError("`user` must be 1 to 64 printable characters.")
    return named

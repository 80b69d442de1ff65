"""Who may ask: checks of Host and Origin on every request, a token for the job, a key for API clients.

| check | why |
|---|---|
| Host is a name of this machine | stops DNS rebinding: other names that resolve to 127.0.0.1 |
| Origin is our own, or absent | any web page can make a browser call a local port |
| a request from another site is a link that a person follows | links to the pages work, and nothing else does |
| `/ops/api` has the job's token; `/v1` has an API key, once one exists | programs |

All of this is checked before a byte of a body is read. The assistant listens on loopback only. Until there are accounts
the user is `local`, or the name in the request's `user` field, or the client of an API key (`thumbwise.accounts.keys`).
Which browser sends a request matters only for votes and limits (`thumbwise.accounts.browsers`).
"""

from __future__ import annotations

import hmac
import ipaddress
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from fastapi import Request
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from thumbwise.accounts.keys import PREFIX
from thumbwise.errors import NotFound, ThumbwiseError
from thumbwise.feedback.records import LOCAL_USER
from thumbwise.serving.responses import error_response
from thumbwise.versions.artifacts import MAX_BYTES, MAX_JSON

if TYPE_CHECKING:
    from thumbwise.accounts.keys import Key, Keys

SAFE_METHODS = {"GET", "HEAD", "OPTIONS"}
API = "/v1/"
MAX_API_BODY = 3 * 1024**2 // 2
"""The longest conversation has 200,000 characters, and JSON may need six bytes for each of them."""
MAX_BODY = 4 * 1024**2
MAX_USER = 256
OPS = "/ops/api/"
MAX_OPS_BODY = MAX_BYTES + 4 * MAX_JSON
"""Adapters are larger than MAX_BODY. Only requests with the job's token may send them."""


GRADIO = "/gradio_api/"
GRADIO_CALLS = {f"{GRADIO}{call}" for call in ("queue/join", "cancel", "reset")}
"""What our pages post to Gradio. Its other routes cannot be removed. One stores uploaded files, others run code."""
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}
"""Headers of every answer: other sites cannot embed or open it, and browsers do not guess its type."""


def is_loopback(host: str) -> bool:
    """Whether `host` (a name or an address, no port) is this machine's loopback."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def refusal(method: str, scheme: str, path: str, headers: Headers, token: str) -> ThumbwiseError | None:
    """Return why a request is refused, or None. `token` is the job's."""
    host = headers.get("host", "")
    try:
        name = urlsplit(f"//{host}").hostname or ""
    except ValueError:
        name = ""
    if not is_loopback(name):
        return ThumbwiseError("This assistant answers on this machine only: use http://127.0.0.1.", status=403)
    if headers.get("origin", f"{scheme}://{host}") != f"{scheme}://{host}" or (
        headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none")
        and not (method in SAFE_METHODS and _is_link(headers))
    ):
        return ThumbwiseError("This request comes from another site and is refused.", status=403)
    if method in SAFE_METHODS:
        return None
    if path.startswith(GRADIO) and path.rstrip("/") not in GRADIO_CALLS:
        return NotFound("The pages do not use this address.")
    length = headers.get("content-length", "0")
    if not length.isdigit() or int(length) > body_limit(path):
        return _too_large(path)
    # This too before a byte of the body is read: an adapter may be large.
    if path.startswith(OPS) and not is_job_token(headers.get("authorization"), token):
        return _no_token()
    return None


def _is_link(headers: Headers) -> bool:
    """Whether a person followed a link, so that the browser shows the answer as a page of its own."""
    return headers.get("sec-fetch-mode") == "navigate" and headers.get("sec-fetch-dest") == "document"


def body_limit(path: str) -> int:
    """Return the largest size of a body to `path`, in bytes."""
    if path.startswith(OPS):
        return MAX_OPS_BODY
    return MAX_API_BODY if path.startswith(API) else MAX_BODY


def _too_large(path: str) -> ThumbwiseError:
    return ThumbwiseError(f"The request is larger than {body_limit(path)} bytes: send less.", status=413)


def _limited(receive: Receive, path: str) -> Receive:
    """Return a `receive` that raises if the body is too large, because a body in chunks does not tell its length."""
    got, most = 0, body_limit(path)

    async def counting() -> Message:
        nonlocal got
        message = await receive()
        got += len(message.get("body", b""))
        if got > most:
            raise HTTPException(413, str(_too_large(path)))  # FastAPI passes this exception on while it reads a body
        return message

    return counting


class Guard:
    """ASGI middleware that refuses a request before anything else sees it."""

    def __init__(self, app: ASGIApp, token: str, keys: Keys) -> None:
        self.app, self.token, self.keys = app, token, keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer with the refusal."""
        if scope["type"] == "websocket":  # no route uses websockets
            await send({"type": "websocket.close"})
            return
        if scope["type"] == "http":
            send = _with_headers(send)
            if (why := self._refusal(scope)) is not None:
                await error_response(why)(scope, receive, send)
                return
            receive = _limited(receive, scope["path"])
        await self.app(scope, receive, send)

    def _refusal(self, scope: Scope) -> ThumbwiseError | None:
        headers, path = Headers(scope=scope), scope["path"]
        why = refusal(scope["method"], scope["scheme"], path, headers, self.token)
        if why is None and path.startswith(API):
            try:
                key_of(self.keys, headers.get("authorization"), "feedback" if path == f"{API}feedback" else "chat")
            except ThumbwiseError as error:
                return error
        return why


def _with_headers(send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            MutableHeaders(scope=message).update(HEADERS)
        await send(message)

    return sending


def key_of(keys: Keys, authorization: str | None, scope: str) -> Key | None:
    """Return the API key of a request, or None while no key is needed. Raises 401 and 403.

    OpenAI's clients must send some text as a key. Text that is not one of our keys counts as no key. It is enough until
    the first key is made.
    """
    text = bearer(authorization)
    if text.startswith(PREFIX):
        return keys.check(text, scope)
    if keys.needed():
        raise ThumbwiseError(
            "Send an API key (`Authorization: Bearer tw-…`): `thumbwise keys create` makes one.", status=401
        )
    return None


def bearer(authorization: str | None) -> str:
    """Return the token in an Authorization header, or an empty text."""
    kind, _, token = (authorization or "").partition(" ")
    return token.strip() if kind.lower() == "bearer" else ""


def is_job_token(authorization: str | None, token: str) -> bool:
    """Whether an Authorization header has the job's bearer token."""
    return bool(token) and hmac.compare_digest(bearer(authorization).encode(), token.encode())


def check_token(request: Request, token: str) -> None:
    """Raise 401 unless the request carries the job's bearer token."""
    if not is_job_token(request.headers.get("authorization"), token):
        raise _no_token()


def _no_token() -> ThumbwiseError:
    return ThumbwiseError("The job's token is missing or wrong: it is in job.token in the home.", status=401)


def user_of(named: str | None) -> str:
    """Return the user of a request: `local`, or the name in its `user` field."""
    if named is None or named == "":
        return LOCAL_USER
    if len(named) > MAX_USER or not named.isprintable():
        raise ThumbwiseError(f"`user` must be 1 to {MAX_USER} printable characters.", param="user")
    return named

"""The guard: the first code that sees a request. It refuses, or says who asks and passes the request on.

All of this is checked before a byte of a body is read. `OPEN` names what answers people who are not logged in.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import urlencode

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import RedirectResponse

from thumbwise.errors import ThumbwiseError
from thumbwise.serving.address import path_of
from thumbwise.serving.auth import OPS, SAFE_METHODS, body_limit, job_may, refusal, too_large
from thumbwise.serving.responses import error_response

if TYPE_CHECKING:
    from starlette.responses import Response
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from thumbwise.accounts.principal import Principal
    from thumbwise.serving.who import Who

OPEN = {"/login", "/logout", "/pending", "/setup", "/join", "/reset", "/health/live", "/health/ready"}
OPEN_BELOW = ("/oidc/",)
"""Paths that answer people who are not logged in. None of them leads to Gradio."""
LOGIN_NEEDED = "login_needed"
"""The code of an answer by which scripts see that the login has ended."""

HINT = "use the one in operator.token in the home."

HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}
"""Headers of every answer: other sites cannot embed or open it, and browsers do not guess its type."""


class Guard:
    """ASGI middleware that refuses a request before anything else sees it, and tells the others who sends it."""

    def __init__(self, app: ASGIApp, who: Who) -> None:
        self.app, self.who = app, who

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer with the refusal."""
        if scope["type"] == "websocket":  # no route uses websockets
            await send({"type": "websocket.close"})
            return
        if scope["type"] == "http":
            send, scope = _with_headers(send), self.who.address.settle(scope)
            try:
                principal = await self._admitted(scope)
            except ThumbwiseError as error:
                await self._refused(error, scope)(scope, receive, send)
                return
            scope["state"]["principal"] = principal
            receive = _limited(receive, path_of(scope))
            if scope["method"] == "GET" and path_of(scope) == "":  # relative links of a page need the slash
                await RedirectResponse(f"{scope['path']}/", 308)(scope, receive, send)
                return
        await self.app(scope, receive, send)

    async def _admitted(self, scope: Scope) -> Principal | None:
        """Return who sends a request that may go on; None for nobody, on an open path. Raises the refusal."""
        method, path = scope["method"], path_of(scope)
        if (why := refusal(scope, Headers(scope=scope), self.who.address)) is not None:
            raise why
        if not is_open(path):
            await self.who.welcome(scope)
        principal = self._found(scope, path)
        if principal is not None and principal.is_job and not job_may(method, path):
            raise ThumbwiseError(f"The job's token does not open {path[:80]}: {HINT}", status=403)
        if path.startswith(OPS) and method not in SAFE_METHODS:
            operator(principal)  # before a byte of the body is read: an adapter may be large
        if principal is None and not is_open(path):
            raise ThumbwiseError("Log in first.", status=401, code=LOGIN_NEEDED)
        return principal

    def _found(self, scope: Scope, path: str) -> Principal | None:
        try:
            return self.who.find(scope)
        except ThumbwiseError:
            if is_open(path):  # health checks too
                return None
            raise

    def _refused(self, error: ThumbwiseError, scope: Scope) -> Response:
        """Return the answer of a refusal: people who open a page are sent to the login."""
        headers = Headers(scope=scope)
        if error.code == LOGIN_NEEDED and scope["method"] == "GET" and "text/html" in headers.get("accept", ""):
            query = scope.get("query_string", b"").decode("latin-1")
            wanted = path_of(scope) + (f"?{query}" if query else "")
            return RedirectResponse(f"{self.who.address.prefix}/login?{urlencode({'next': wanted})}", 303)
        return error_response(error)


def is_open(path: str) -> bool:
    """Whether a path answers people who are not logged in."""
    return path in OPEN or path.startswith(OPEN_BELOW)


def _with_headers(send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            MutableHeaders(scope=message).update(HEADERS)
        await send(message)

    return sending


def _limited(receive: Receive, path: str) -> Receive:
    """Return a `receive` that raises if the body is too large, because a body in chunks does not tell its length."""
    got, most = 0, body_limit(path)

    async def counting() -> Message:
        nonlocal got
        message = await receive()
        got += len(message.get("body", b""))
        if got > most:
            raise HTTPException(413, str(too_large(path)))  # FastAPI passes this exception on while it reads a body
        return message

    return counting


def operator(principal: Principal | None) -> Principal:
    """Return who may operate the assistant. Raises 403 for an account without that role, 401 for anybody else."""
    if principal is not None and principal.may("operator"):
        return principal
    if principal is not None and principal.account is not None:
        raise ThumbwiseError("This needs the role operator: ask an operator for it.", status=403)
    raise ThumbwiseError(f"This is for operators only. With a token, {HINT}", status=401)

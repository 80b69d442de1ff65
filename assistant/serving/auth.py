"""Rules that look at a request only: Host, Origin, the size of its body, its bearer token, its `user` field.

| check | why |
|---|---|
| Host is the name in `public_url`, or loopback from this machine | stops DNS rebinding: other names of our address |
| Origin is our own, or absent | any web page can make a browser call a local port |
| a request from another site is a link that a person follows | links to the pages work, and nothing else does |

`thumbwise.serving.guard` applies them to every request, and `thumbwise.serving.who` says who sends it.
"""

from __future__ import annotations

import hmac
import re
from dataclasses import replace
from typing import TYPE_CHECKING

from thumbwise.errors import NotFound, ThumbwiseError
from thumbwise.feedback.records import ACCOUNT, LOCAL_USER
from thumbwise.serving.address import path_of
from thumbwise.versions.artifacts import MAX_BYTES, MAX_JSON

if TYPE_CHECKING:
    from starlette.datastructures import Headers
    from starlette.types import Scope

    from thumbwise.feedback.records import Asker
    from thumbwise.serving.address import Address

SAFE_METHODS = {"GET", "HEAD", "OPTIONS"}
API = "/v1/"
MAX_API_BODY = 3 * 1024**2 // 2
"""The longest conversation has 200,000 characters, and JSON may need six bytes for each of them."""
MAX_BODY = 4 * 1024**2
MAX_USER = 256
OPS = "/ops/api/"
MAX_OPS_BODY = MAX_BYTES + 4 * MAX_JSON
"""Adapters are larger than MAX_BODY. Only operators and the job may send them."""
METRICS = "/metrics"
_VERSION = r"policies/[^/]+"
_JOB = re.compile(
    rf"GET {OPS}(policies|{_VERSION}/files/[^/]+|snapshots/[^/]+)|PUT {OPS}{_VERSION}|(GET|HEAD) {METRICS}"
    rf"|POST {OPS}(runs|runs/[^/]+/(resume|heartbeat|lineage|finish)|snapshots|{_VERSION}/(promote|reject))"
)
"""What the job's token opens. A promotion also needs the lease of a run: see `thumbwise.api.ops`."""


GRADIO = "/gradio_api/"
GRADIO_CALLS = {f"{GRADIO}{call}" for call in ("queue/join", "cancel", "reset")}
"""What our pages post to Gradio. Its other routes cannot be removed. One stores uploaded files, others run code."""


def refusal(scope: Scope, headers: Headers, address: Address) -> ThumbwiseError | None:
    """Return why a settled request is refused whoever sends it, or None."""
    method, scheme, path, host = scope["method"], scope["scheme"], path_of(scope), headers.get("host", "")
    if len(headers.getlist("host")) != 1 or not address.admits(host, scope["state"]["peer"]):
        return _wrong_host(address)
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
        return too_large(path)
    return None


def _wrong_host(address: Address) -> ThumbwiseError:
    if address.local:
        return ThumbwiseError("This assistant answers on this machine only: use http://127.0.0.1.", status=403)
    if address.name:
        use = f"use {address.scheme}://{address.host}{address.prefix}. A proxy in front must pass on the Host header."
    else:
        use = "as its operator, set `public_url` to the address that people use."
    return ThumbwiseError(f"This assistant does not answer at this address: {use}", status=403)


def _is_link(headers: Headers) -> bool:
    """Whether a person followed a link, so that the browser shows the answer as a page of its own."""
    return headers.get("sec-fetch-mode") == "navigate" and headers.get("sec-fetch-dest") == "document"


def body_limit(path: str) -> int:
    """Return the largest size of a body to `path`, in bytes."""
    if path.startswith(OPS):
        return MAX_OPS_BODY
    return MAX_API_BODY if path.startswith(API) else MAX_BODY


def too_large(path: str) -> ThumbwiseError:
    """The refusal of a body that is too large."""
    return ThumbwiseError(f"The request is larger than {body_limit(path)} bytes: send less.", status=413)


def bearer(authorization: str | None) -> str:
    """Return the token in an Authorization header, or an empty text."""
    kind, _, token = (authorization or "").partition(" ")
    return token.strip() if kind.lower() == "bearer" else ""


def is_token(authorization: str | None, token: str) -> bool:
    """Whether an Authorization header has this bearer token."""
    return bool(token) and hmac.compare_digest(bearer(authorization).encode(), token.encode())


def job_may(method: str, path: str) -> bool:
    """Whether the job's token opens a path: what a round of training needs, and nothing else."""
    return _JOB.fullmatch(f"{method} {path}") is not None


def user_of(named: str | None) -> str:
    """Return the user of a request of a program without a key: `local`, or the name in its `user` field."""
    if not named:
        return LOCAL_USER
    if named.startswith(ACCOUNT):
        raise ThumbwiseError(f"`user` cannot begin with {ACCOUNT}, as accounts do: use another.", param="user")
    return _checked(named)


def user_below(asker: Asker, named: str | None) -> Asker:
    """Return `asker`, or the user below it whom a request names. This never is another account, nor another key."""
    return replace(asker, user=f"{asker.user}/{_checked(named)}") if named else asker


def _checked(named: str) -> str:
    if len(named) > MAX_USER or not named.isprintable():
        raise ThumbwiseError(f"`user` must be 1 to {MAX_USER} printable characters.", param="user")
    return named

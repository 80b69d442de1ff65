"""Makes pages from the templates in this folder. All values are escaped; no page needs a script.

Pages are the same in each browser: one column, in the reader's light or dark setting. A form that succeeds answers with
a redirect, so that loading the page again sends nothing twice. One that fails comes back with its error.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.responses import HTMLResponse, RedirectResponse

from thumbwise.pages.look import ICON, THUMB

if TYPE_CHECKING:
    from fastapi import Request

    from thumbwise.accounts.principal import Principal
    from thumbwise.errors import ThumbwiseError

_FOLDER = Path(__file__).parent
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'unsafe-inline'; img-src data:; form-action 'self'; frame-ancestors 'none'; "
        "base-uri 'none'"
    ),
    # Not no-referrer: with it, browsers send `Origin: null` with our own forms, and the guard refuses that.
    "Referrer-Policy": "same-origin",
    "Cache-Control": "no-store",
}
"""Headers of every page: no script, nothing from elsewhere, and no cache keeps it."""


@cache
def _templates() -> Environment:
    templates = Environment(
        loader=FileSystemLoader(_FOLDER), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    templates.globals |= {
        "style": (_FOLDER / "forms.css").read_text(encoding="utf-8"), "thumb": THUMB, "icon": ICON,
        "refresh": 0, "error": None, "field": "",
    }  # fmt: skip
    templates.globals["f"] = templates.get_template("fields.html").module
    return templates


def page(template: str, status: int = 200, **values: Any) -> HTMLResponse:
    """Return the page of `<template>.html`, with its values. Nothing of it may be kept in a cache.

    `error` is a sentence, `field` the name of the field that it is about, `refresh` the seconds until the page loads
    itself again. All three may be left out.
    """
    text = _templates().get_template(f"{template}.html").render(values)
    return HTMLResponse(text, status, headers=HEADERS)


def refused(template: str, error: ThumbwiseError, field: str = "", **values: Any) -> HTMLResponse:
    """Return a form again, with the sentence of an error at the field that it is about."""
    answer = page(template, error.status, error=str(error), field=field, **values)
    if error.status == 429:
        answer.headers["Retry-After"] = "60"
    return answer


def go(request: Request, path: str, cookie: str | None = None) -> RedirectResponse:
    """Send the browser to a path of ours; `cookie` is a Set-Cookie header."""
    answer = RedirectResponse(request.scope.get("root_path", "") + path, 303, headers={"Cache-Control": "no-store"})
    if cookie is not None:
        answer.headers.append("Set-Cookie", cookie)
    return answer


def local_path(wanted: str) -> str:
    """Return the path to go to after a login: `wanted` if it is one of ours, else `/`.

    A form must not send people to another site. Browsers read a backslash as a slash and leave out control characters.
    """
    plain = unquote(wanted)
    if not wanted.startswith("/") or plain.startswith("//") or "\\" in plain or not plain.isprintable():
        return "/"
    try:
        parts = urlsplit(wanted)
    except ValueError:
        return "/"
    return "/" if parts.scheme or parts.netloc or parts.path.rstrip("/") in _NOT_AFTER_LOGIN else wanted


_NOT_AFTER_LOGIN = {"/login", "/logout", "/setup", "/join", "/reset", "/pending"}


def user_of(request: Request) -> Principal | None:
    """Return who sends a request to an open path, or None."""
    found: Principal | None = request.scope["state"].get("principal")
    return found


def address_of(request: Request) -> str:
    """Return the network address of a request."""
    return request.client.host if request.client else ""

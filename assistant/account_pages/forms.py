"""Makes pages from the templates in this folder. All values are escaped; no page needs a script.

Pages are the same in each browser: one column, in the reader's light or dark setting.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.responses import HTMLResponse

from thumbwise.pages.look import THUMB
from thumbwise.pages.security import HEADERS

_FOLDER = Path(__file__).parent


@cache
def _templates() -> Environment:
    templates = Environment(
        loader=FileSystemLoader(_FOLDER), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    templates.globals["style"] = (_FOLDER / "forms.css").read_text(encoding="utf-8")
    templates.globals["thumb"] = THUMB
    return templates


def page(template: str, status: int = 200, **values: Any) -> HTMLResponse:
    """Return the page of `<template>.html`, with its values. Nothing of it may be kept in a cache."""
    text = _templates().get_template(f"{template}.html").render(values)
    return HTMLResponse(text, status, headers={**HEADERS, "Cache-Control": "no-store"})

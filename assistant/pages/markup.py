"""Text from people and models as safe HTML.

A message is Markdown. The server parses it once; HTML in it is ordinary text. The parser's output then passes a
sanitiser with a short allow-list of elements and attributes. So nothing in a message has an id, a class, a style, a
label or a form, and nothing is loaded from other hosts.
"""

from __future__ import annotations

import html
from functools import lru_cache

import nh3

from thumbwise.pages.dialect import BLOCKS, SCHEMES, parser

LONGEST = 50_000
"""A message with more characters is shown as it was typed, not read as Markdown."""

_TEMPLATES = str.maketrans({"{": "&#123;", "$": "&#36;", "`": "&#96;", "\\": "&#92;"})
_MATH = (
    *("math", "mrow", "mi", "mn", "mo", "mtext", "mspace", "mfrac", "msqrt", "mroot", "msub", "msup", "msubsup"),
    *("munder", "mover", "munderover", "mtable", "mtr", "mtd", "mstyle", "mpadded", "mphantom"),
)
_WIDTHS = {"0", "0em", "0.167em", "0.222em", "0.278em", "0.333em", "0.5em", "1em", "2em"}
_SIZES = {"1.2em", "1.623em", "2.047em", "2.470em"}
_TRUTH = {"true", "false"}
_VALUES: dict[str, dict[str, set[str]]] = {
    **{block: {"dir": {"auto"}} for block in BLOCKS},
    "pre": {"dir": {"ltr"}},
    **{cell: {"align": {"left", "center", "right"}} for cell in ("th", "td")},
    "math": {"display": {"block", "inline"}},
    "mi": {"mathvariant": {"normal", "bold", "italic"}},
    "mo": {
        "form": {"prefix", "postfix"},
        "minsize": _SIZES,
        "maxsize": _SIZES,
        **dict.fromkeys(("stretchy", "fence", "separator", "accent", "largeop", "movablelimits"), _TRUTH),
    },
    "mspace": {"width": _WIDTHS},
    "mfrac": {"linethickness": {"0"}},
    "mover": {"accent": _TRUTH},
    "mstyle": {"displaystyle": _TRUTH, "scriptlevel": {"0", "1", "2"}},
    "mtable": {"displaystyle": _TRUTH},
    "mtd": {"columnalign": {"left", "center", "right"}},
}
_SANITISER = nh3.Cleaner(
    tags={
        *BLOCKS,
        *_MATH,
        *("a", "br", "code", "em", "hr", "li", "pre", "s", "strong", "tbody", "td", "th", "thead", "tr"),
    },
    attributes={"a": {"href", "title"}, "ol": {"start"}, "code": {"data-language"}},
    tag_attribute_values=_VALUES,
    set_tag_attribute_values={"a": {"target": "_blank"}},
    link_rel="noopener noreferrer nofollow",
    url_schemes=set(SCHEMES),
    url_relative="deny",
)


_MARKDOWN = parser()


def render(text: str) -> str:
    """Return the HTML of a message, in one `div`. It has no character that a template engine would interpret.

    >>> render("**Yes** <b>")
    '<div class="tw-md"><p dir="auto"><strong>Yes</strong> &lt;b&gt;</p>\\n</div>'
    """
    if len(text) > LONGEST:
        return plain(text)
    return _short(text) if len(text) <= 4_000 else _long(text)


def render_once(text: str) -> str:
    """Return the same as `render` without a cache, for a text that is still being written."""
    return _rendered(text) if len(text) <= LONGEST else plain(text)


def plain(text: str) -> str:
    """Return HTML that shows a message as it was typed, for one that is too long or too much work for Markdown."""
    text = text.encode("utf-8", "replace").decode()
    return f'<div class="tw-md tw-plain" dir="auto">{html.escape(text).translate(_TEMPLATES)}</div>'


def _rendered(text: str) -> str:
    try:
        written = _SANITISER.clean(_MARKDOWN.render(text, {}))
    except Exception:  # a message must be shown, whatever the parser raises
        return plain(text)
    return f'<div class="tw-md">{written.translate(_TEMPLATES)}</div>'


# A message is parsed once, not at each load of a page. Two caches by length, so that their memory is bounded.
_short = lru_cache(maxsize=1024)(_rendered)
_long = lru_cache(maxsize=64)(_rendered)


def escape(text: str) -> str:
    """Escape a text for `gr.HTML`: for HTML, and for the template engines that this component applies."""
    return html.escape(text).translate(_TEMPLATES)


def short(version: str) -> str:
    """Return a version without its hash: `policy-0003` for `policy-0003-1f2e3d4c5b6a`."""
    return "-".join(version.split("-")[:2])

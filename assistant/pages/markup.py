"""Text from people and models made fit for the page.

A message is Markdown. A parser reads it once, here on the server; HTML in it is text like any other. What the
parser writes then passes a sanitiser that lets through a short list of elements and attributes, so that
nothing in a message has an id, a class, a style, a label or a form, and nothing is asked for from elsewhere.
"""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import nh3
from markdown_it import MarkdownIt
from markdown_it.common.utils import escapeHtml
from markdown_it.renderer import RendererHTML
from markdown_it.rules_core import StateCore
from markdown_it.token import Token
from mdit_py_plugins.gfm_autolink import gfm_autolink_plugin

from thumbwise.pages.formulas import formulas

LONGEST = 30_000
"""Characters of a message that is read as Markdown. A longer one is shown as it was typed."""

_TEMPLATES = str.maketrans({"{": "&#123;", "$": "&#36;", "`": "&#96;", "\\": "&#92;"})
_SCHEMES = ("http", "https", "mailto")
_BLOCKS = ("p", "h1", "h2", "h3", "h4", "h5", "h6", "ul", "ol", "blockquote", "table")
_MATH = (
    *("math", "mrow", "mi", "mn", "mo", "mtext", "mspace", "mfrac", "msqrt", "mroot", "msub", "msup", "msubsup"),
    *("munder", "mover", "munderover", "mtable", "mtr", "mtd", "mstyle", "mpadded", "mphantom"),
)
_WIDTHS = {"0", "0em", "0.167em", "0.222em", "0.278em", "0.333em", "0.5em", "1em", "2em"}
_SIZES = {"1.2em", "1.623em", "2.047em", "2.470em"}
_TRUTH = {"true", "false"}
_VALUES: dict[str, dict[str, set[str]]] = {
    **{block: {"dir": {"auto"}} for block in _BLOCKS},
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
        *_BLOCKS,
        *_MATH,
        *("a", "br", "code", "em", "hr", "li", "pre", "s", "strong", "tbody", "td", "th", "thead", "tr"),
    },
    attributes={"a": {"href", "title"}, "ol": {"start"}, "code": {"data-language"}},
    tag_attribute_values=_VALUES,
    set_tag_attribute_values={"a": {"target": "_blank"}},
    link_rel="noopener noreferrer nofollow",
    url_schemes=set(_SCHEMES),
    url_relative="deny",
)


def _allowed(url: str) -> bool:
    # The plugin for bare addresses takes `xmpp:` off the text before it asks: the sanitiser takes the address away.
    return url.lower().startswith(tuple(f"{scheme}:" for scheme in (*_SCHEMES, "xmpp")))


def _fence(_: Any, tokens: Sequence[Token], index: int, options: Mapping[str, Any], env: Mapping[str, Any]) -> str:
    token = tokens[index]
    language = token.info.strip()
    data = f' data-language="{escapeHtml(language)}"' if language else ""
    return f'<pre dir="ltr"><code{data}>{escapeHtml(token.content)}</code></pre>\n'


_TEXT = RendererHTML()


def _picture(image: Token, in_link: bool, md: MarkdownIt, env: Any) -> list[Token]:
    """A link to a picture, so that nothing is asked for before somebody follows it."""
    source = str(image.attrs["src"])
    text = Token("text", "", 0, content=_TEXT.renderInlineAsText(image.children, md.options, env) or source)
    if in_link:
        return [text]
    return [Token("link_open", "a", 1, attrs={"href": source}), text, Token("link_close", "a", -1)]


def _without_pictures(tokens: Sequence[Token], md: MarkdownIt, env: Any) -> list[Token]:
    kept: list[Token] = []
    links = 0
    for token in tokens:
        links += token.nesting if token.tag == "a" else 0
        kept += _picture(token, links > 0, md, env) if token.type == "image" else [token]
    return kept


def _finish(state: StateCore) -> None:
    """Directions of writing, alignments without a style, and links for pictures."""
    for token in state.tokens:
        if token.level == 0 and token.nesting == 1 and token.tag in _BLOCKS:
            token.attrSet("dir", "auto")
        elif token.type == "code_block":
            token.attrSet("dir", "ltr")
        elif token.tag in ("th", "td") and token.nesting == 1 and "style" in token.attrs:
            token.attrSet("align", str(token.attrs.pop("style")).removeprefix("text-align:"))
        elif token.children and any(child.type == "image" for child in token.children):
            token.children = _without_pictures(token.children, state.md, state.env)


def _parser() -> MarkdownIt:
    md = MarkdownIt("commonmark", {"html": False, "breaks": True, "xhtmlOut": False})
    md.enable(["table", "strikethrough"])
    # Reference definitions would be left out of what is shown; entities are shown as they were typed.
    md.disable(["html_block", "html_inline", "entity", "reference"])
    md.use(gfm_autolink_plugin).use(formulas)
    md.validateLink = _allowed  # type: ignore[method-assign]
    md.core.ruler.push("finish", _finish)
    md.add_render_rule("fence", _fence)
    return md


_MARKDOWN = _parser()


def render(text: str) -> str:
    """HTML of a message, in one `div`; it has no mark that a template engine would follow.

    >>> render("**Yes** <b>")
    '<div class="tw-md"><p dir="auto"><strong>Yes</strong> &lt;b&gt;</p>\\n</div>'
    """
    return _short(text) if len(text) <= LONGEST // 8 else _long(text) if len(text) <= LONGEST else plain(text)


def plain(text: str) -> str:
    """HTML that shows a message as it was typed: what becomes of one that is too long to be read as Markdown."""
    text = text.encode("utf-8", "replace").decode()
    return f'<div class="tw-md tw-plain" dir="auto">{html.escape(text).translate(_TEMPLATES)}</div>'


def _rendered(text: str) -> str:
    try:
        written = _SANITISER.clean(_MARKDOWN.render(text, {}))
    except Exception:  # a message has to be shown, whatever a parser makes of it
        return plain(text)
    return f'<div class="tw-md">{written.translate(_TEMPLATES)}</div>'


# A message is parsed once, not at each load; two sizes, so that the memory is bounded too.
_short = lru_cache(maxsize=1024)(_rendered)
_long = lru_cache(maxsize=64)(_rendered)


# To go with Gradio's chat component, which reads Markdown by itself.
# Fenced and inline code and formulas: what the Markdown renderer escapes by itself.
_VERBATIM = re.compile(r"(```.*?(?:```|\Z)|~~~.*?(?:~~~|\Z)|`[^`\n]+`|\$\$.+?\$\$)", re.DOTALL)


# What could be a tag or an entity; a `<` or `&` alone stays, for in code by indentation it is shown as it stands.
_TAG, _ENTITY = re.compile(r"<(?=[A-Za-z/!?])"), re.compile(r"&(?=#?\w+;)")
# Gradio takes away the indentation that all lines but the first have in common, as of a docstring. This one has none;
# page.js hides it.
_UNINDENTED = "\n\n\u200b"


def markdown(text: str) -> str:
    """Markdown of a message with its tags shown as text and its pictures as links."""
    parts = _VERBATIM.split(text)
    parts[::2] = [_TAG.sub("&lt;", _ENTITY.sub("&amp;", part)).replace("![", "&#33;[") for part in parts[::2]]
    rest = [line for line in text.split("\n")[1:] if line.strip()]
    dedented = bool(rest) and all(line[0].isspace() for line in rest)
    return "".join(parts) + (_UNINDENTED if dedented else "")


def escape(text: str) -> str:
    """Text for `gr.HTML`: escaped for HTML, and for the template engines that the component runs it through."""
    return html.escape(text).translate(_TEMPLATES)


def short(version: str) -> str:
    """A version without its hash: `policy-0003-1f2e3d4c5b6a` is shown as `policy-0003`."""
    return "-".join(version.split("-")[:2])

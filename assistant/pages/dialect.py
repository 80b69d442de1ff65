"""The Markdown of messages: CommonMark with tables, strikethrough, bare addresses and formulas, without HTML.

Everything that was typed is shown. So there are no reference definitions, which would disappear, and entities stay as
they are. The work is bounded: every attempt of a rule is counted, and a text with too many raises `TooMuch`.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.common.utils import escapeHtml
from markdown_it.renderer import RendererHTML
from markdown_it.rules_block import StateBlock
from markdown_it.rules_block import table as read_table
from markdown_it.rules_core import StateCore
from markdown_it.rules_inline import StateInline
from markdown_it.token import Token

from thumbwise.pages.formulas import formulas

MOST_WORK = 20_000
"""Places in one text where rules are tried, plus cells of tables. Each takes 10 to 25 microseconds."""

SCHEMES = ("http", "https", "mailto")
BLOCKS = ("p", "h1", "h2", "h3", "h4", "h5", "h6", "ul", "ol", "blockquote", "table")
_TEXT = RendererHTML()
_LONGEST_ADDRESS = 2_000
_NO_ADDRESS = frozenset('<>"`|\\，。；：！？）】》、」')  # a bare address ends before these, and before spaces
_AFTER_ADDRESS = "?!.,:;*_~'"


class TooMuch(Exception):
    """The text takes more work than one message is allowed."""


def parser() -> MarkdownIt:
    """Return a parser of messages. The `env` of each text counts its work."""
    md = MarkdownIt("commonmark", {"html": False, "breaks": True, "xhtmlOut": False})
    md.enable(["table", "strikethrough"])
    md.disable(["html_block", "html_inline", "entity", "reference"])
    md.use(formulas)
    md.block.ruler.at("table", _table, {"alt": ["paragraph", "reference"]})
    md.inline.ruler.push("address", _address)
    every = ["paragraph", "reference", "blockquote", "list"]
    md.block.ruler.before("table", "work", lambda state, *_: _spend(state.env, 1), {"alt": every})
    md.inline.ruler.before("text", "work", lambda state, _: _spend(state.env, 1))
    md.core.ruler.push("finish", _finish)
    md.add_render_rule("fence", _fence)
    md.validateLink = _allowed  # type: ignore[method-assign]
    return md


def _spend(env: MutableMapping[str, Any], work: int) -> bool:
    """Count work. As a rule of the parser this matches nothing."""
    env["work"] = env.get("work", 0) + work
    if env["work"] > MOST_WORK:
        raise TooMuch
    return False


def _table(state: StateBlock, line: int, end_line: int, silent: bool) -> bool:
    """The parser's rule for tables. Cells count as work, because it fills short rows with empty cells."""
    if silent or not read_table(state, line, end_line, True):
        return silent and read_table(state, line, end_line, True)
    last = line + 2
    while last < end_line and not state.isEmpty(last):
        last += 1
    columns = state.src.count("|", state.bMarks[line + 1], state.eMarks[line + 1]) + 1
    _spend(state.env, columns * (last - line))
    return read_table(state, line, end_line, False)


def _address(state: StateInline, silent: bool) -> bool:
    """A rule that makes a link of a bare `https://...`."""
    if silent or state.linkLevel or not state.src.startswith("://", state.pos):
        return False
    scheme = next((s for s in ("https", "http") if state.pending[-5:].lower().endswith(s)), None)
    start = state.pos - len(scheme or "")
    if scheme is None or (start and state.src[start - 1].isalnum()):
        return False
    end = _end_of_address(state.src, state.pos + 3, state.posMax)
    url = state.md.normalizeLink(state.src[start:end])
    if end == state.pos + 3 or not state.md.validateLink(url):
        return False
    state.pending = state.pending[: -len(scheme)]
    for token in _link(url, state.src[start:end]):
        state.push(token.type, token.tag, token.nesting).attrs = token.attrs
        state.tokens[-1].content = token.content
    state.pos = end
    return True


def _end_of_address(src: str, start: int, limit: int) -> int:
    end = start
    limit = min(limit, start + _LONGEST_ADDRESS)
    while end < limit and not src[end].isspace() and src[end] not in _NO_ADDRESS:
        end += 1
    while end > start:
        lone = src[end - 1] == ")" and src.count("(", start, end) < src.count(")", start, end)
        if not lone and src[end - 1] not in _AFTER_ADDRESS:
            break
        end -= 1
    return end


def _link(url: str, text: str) -> list[Token]:
    return [
        Token("link_open", "a", 1, attrs={"href": url}),
        Token("text", "", 0, content=text),
        Token("link_close", "a", -1),
    ]


def _allowed(url: str) -> bool:
    return url.lower().startswith(tuple(f"{scheme}:" for scheme in SCHEMES))


def _fence(_: Any, tokens: Sequence[Token], index: int, options: Mapping[str, Any], env: Mapping[str, Any]) -> str:
    token = tokens[index]
    language = token.info.strip()
    data = f' data-language="{escapeHtml(language)}"' if language else ""
    return f'<pre dir="ltr"><code{data}>{escapeHtml(token.content)}</code></pre>\n'


def _without_pictures(tokens: Sequence[Token], md: MarkdownIt, env: Any) -> list[Token]:
    """Replace pictures by links to them, so that the browser loads nothing until somebody follows one."""
    kept: list[Token] = []
    links = 0
    for token in tokens:
        links += token.nesting if token.tag == "a" else 0
        if token.type != "image":
            kept.append(token)
            continue
        source = str(token.attrs["src"])
        text = _TEXT.renderInlineAsText(token.children, md.options, env) or source
        kept += [Token("text", "", 0, content=text)] if links else _link(source, text)
    return kept


def _finish(state: StateCore) -> None:
    """Set writing directions, turn the style of cells into `align`, and replace pictures by links."""
    for token in state.tokens:
        if token.level == 0 and token.nesting == 1 and token.tag in BLOCKS:
            token.attrSet("dir", "auto")
        elif token.type == "code_block":
            token.attrSet("dir", "ltr")
        elif token.tag in ("th", "td") and token.nesting == 1 and "style" in token.attrs:
            token.attrSet("align", str(token.attrs.pop("style")).removeprefix("text-align:"))
        elif token.children and any(child.type == "image" for child in token.children):
            token.children = _without_pictures(token.children, state.md, state.env)

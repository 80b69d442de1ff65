"""Formulas in messages: `$...$`, `$$...$$`, `\\(...\\)` and `\\[...\\]`, as MathML, which browsers draw.

A library (latex2mathml) turns LaTeX into MathML. This module finds formulas in Markdown, tells them apart from money
and from escaped brackets, and bounds the work. If the library cannot read a formula, it is shown as it was typed, in
code.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple
from xml.etree.ElementTree import Element, tostring

from latex2mathml.converter import Converter
from markdown_it import MarkdownIt
from markdown_it.common.utils import escapeHtml
from markdown_it.rules_block import StateBlock
from markdown_it.rules_inline import StateInline
from markdown_it.token import Token

LONGEST = 2_000  # characters of one formula
ALL_FORMULAS = 8_000  # characters of all formulas of one message: the library needs about 20 microseconds for each
_LINES = 60  # lines of one formula
_WIDEST = 36  # characters of a formula inside a line; a longer formula gets a line of its own, which scrolls
_MARKS = frozenset("\\^_=+-*/<>{}|")  # text between dollars that contains one of these is a formula


class _Delimiters(NamedTuple):
    opening: str
    closing: str
    display: bool


_DELIMITERS = tuple(
    _Delimiters(*d) for d in (("$$", "$$", True), ("$", "$", False), ("\\(", "\\)", False), ("\\[", "\\]", True))
)


class _NoMacros(dict[str, Any]):
    """Refuses macro definitions: a few of them can expand to a formula of any length."""

    def __setitem__(self, name: str, value: Any) -> None:
        raise ValueError(f"{name}: no definitions in formulas")


def formulas(md: MarkdownIt) -> None:
    """A plugin for markdown-it-py. `env["formulas"]` is the number of characters of formulas that are still allowed."""
    md.inline.ruler.before("escape", "formula", _inline)
    md.block.ruler.before("fence", "formula_block", _block, {"alt": ["paragraph", "blockquote", "list"]})
    md.add_render_rule("formula", _render)
    md.add_render_rule("formula_block", _render)


def _prose(content: str) -> bool:
    """Whether the text between two dollars or escaped brackets is prose: `$5 to US$`, `\\[not a link\\]`."""
    if _MARKS.intersection(content):
        return False
    least = 2 if content[0].isdigit() else 3
    return any(len(word) >= least and word.isalpha() and not word.isupper() for word in content.split())


def _dollar_fits(src: str, start: int, end: int) -> bool:
    """Whether the dollars before `start` and at `end` enclose a formula, and do not mean money or a shell variable."""
    content, after = src[start:end], src[end + 1 : end + 2]
    if start > 1 and (src[start - 2].isalnum() or src[start - 2] == "$"):
        return False
    if content[0].isspace() or content[-1].isspace() or "\n" in content or after == "$":
        return False
    return not (after.isalnum() and not src.startswith("th", end + 1)) and not (
        content[0].isdigit() and _prose(content)
    )


def _fits(delimiters: _Delimiters, src: str, start: int, end: int) -> bool:
    content = src[start:end]
    if not content.strip():
        return False
    if delimiters.opening == "$":
        return _dollar_fits(src, start, end)
    if delimiters.opening == "$$":
        after = src[end + 2 : end + 3]
        loose = content[0].isspace() or content[0].isdigit()
        return not after.isalnum() and after != "$" and not (loose and _prose(content.strip()))
    return not _prose(content.strip())


def _closing(state: StateInline, closing: str, start: int) -> int:
    """Return where the formula that begins at `start` ends, or -1. A dollar after a backslash does not end it."""
    known: dict[str, tuple[str, int]] = state.env.setdefault("closings", {})  # so that no text is searched twice
    src, end = known.get(closing, ("", 0))
    if src is not state.src or 0 <= end < start:
        end = state.src.find(closing, start)
        while end > start and closing[0] == "$" and state.src[end - 1] == "\\":
            end = state.src.find(closing, end + 1)
        known[closing] = (state.src, end)
    return end if end + len(closing) <= state.posMax else -1


def _inline(state: StateInline, silent: bool) -> bool:
    for delimiters in _DELIMITERS:
        if not state.src.startswith(delimiters.opening, state.pos):
            continue
        start = state.pos + len(delimiters.opening)
        end = _closing(state, delimiters.closing, start)
        if end <= start or not _fits(delimiters, state.src, start, end):
            return False
        if not silent:
            _push(state.push("formula", "math", 0), delimiters, state.src[start:end])
        state.pos = end + len(delimiters.closing)
        return True
    return False


def _block(state: StateBlock, line: int, end_line: int, silent: bool) -> bool:
    start = state.bMarks[line] + state.tShift[line]
    delimiters = next((d for d in _DELIMITERS if d.display and state.src.startswith(d.opening, start)), None)
    if delimiters is None or state.is_code_block(line):
        return False
    lines: list[str] = []
    start += len(delimiters.opening)
    for number in range(line, min(end_line, line + _LINES)):
        if number > line:
            start = min(state.bMarks[number] + state.tShift[number], state.eMarks[number])
            if state.sCount[number] < state.blkIndent or state.src.startswith("\\[", start):
                return False
        text = state.src[start : state.eMarks[number]].rstrip()
        if delimiters.closing in text:
            if not text.endswith(delimiters.closing) or text.index(delimiters.closing) != len(text) - 2:
                return False
            lines.append(text[:-2])
            return _end_block(state, delimiters, "\n".join(lines), (line, number + 1), silent)
        lines.append(text)
    return False


def _end_block(state: StateBlock, delimiters: _Delimiters, content: str, lines: tuple[int, int], silent: bool) -> bool:
    if not _fits(delimiters, content, 0, len(content)):
        return False
    if not silent:
        state.line = lines[1]
        token = state.push("formula_block", "math", 0)
        token.map = list(lines)
        _push(token, delimiters, content)
    return True


def _push(token: Token, delimiters: _Delimiters, content: str) -> None:
    token.content = content
    token.meta = {"display": delimiters.display}
    token.markup = f"{delimiters.opening}{content}{delimiters.closing}"


def _render(_: Any, tokens: Sequence[Token], index: int, options: Mapping[str, Any], env: dict[str, Any]) -> str:
    token = tokens[index]
    written = mathml(token.content, token.meta["display"]) if _affordable(token.content, env) else None
    if written is not None:
        return written
    code = f"<code>{escapeHtml(token.markup)}</code>"
    return f'<pre dir="ltr">{code}</pre>' if token.type == "formula_block" else code


def _affordable(content: str, env: dict[str, Any]) -> bool:
    left: int = env.get("formulas", ALL_FORMULAS) - len(content)
    if len(content) > LONGEST or left < 0:
        return False
    env["formulas"] = left
    return True


def mathml(latex: str, display: bool) -> str | None:
    """Return the MathML of a formula, or None if the library cannot read it."""
    converter = Converter(display="block" if display else "inline")
    converter.macros = _NoMacros()
    try:
        tree = converter.convert_to_element(latex.strip())
        _settle(tree)
        if sum(len(element.text or "") for element in tree.iter()) > _WIDEST:
            tree.set("display", "block")
        return tostring(tree, encoding="unicode", short_empty_elements=False)
    except Exception:  # the library raises anything, also StopIteration and KeyError; a message must always be shown
        return None


def _settle(tree: Element) -> None:
    """Replace the library's character references (`&#x2211;`) by characters, so that everything is escaped once."""
    del tree.attrib["xmlns"]
    for element in tree.iter():
        if element.text:
            element.text = html.unescape(element.text)

"""Text from people and models made fit for the page: escaped, and in Markdown that reaches for nothing.

Gradio sanitises HTML too, but a sanitiser removes what a reader should see (`<script>` in a question about
scripts), so tags are shown as text. Left out: HTML in replies.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator

# Fenced and inline code and formulas: what the Markdown renderer escapes by itself.
_VERBATIM = re.compile(r"(```.*?(?:```|\Z)|~~~.*?(?:~~~|\Z)|`[^`\n]+`|\$\$.+?\$\$)", re.DOTALL)


_ITEM = re.compile(r" {0,3}(?:[-*+]|\d{1,9}[.)])(?:\s|$)")
# Gradio takes away the indentation that all lines but the first have in common, as of a docstring. This one has none.
_UNINDENTED = "\n\u200b"


def markdown(text: str) -> str:
    """Markdown of a message with its tags shown as text and its pictures as links."""
    parts = _VERBATIM.split(text)
    parts[::2] = ["\n".join(_shown(part.split("\n"))) for part in parts[::2]]
    rest = [line for line in text.split("\n")[1:] if line.strip()]
    dedented = bool(rest) and all(line[0].isspace() for line in rest)
    return "".join(parts) + (_UNINDENTED if dedented else "")


def _shown(lines: list[str]) -> Iterator[str]:
    """Escaped lines, but for those of code by indentation: after a blank line, and not in a list."""
    code = blank = listed = False
    for line in lines:
        if not line.strip():
            blank = True
        elif line.startswith(("    ", "\t")):
            code = code or (blank and not listed)
            blank = False
        else:
            code = blank = False
            listed = _ITEM.match(line) is not None
        yield line if code else line.replace("&", "&amp;").replace("<", "&lt;").replace("![", "&#33;[")


def escape(text: str) -> str:
    """Text for `gr.HTML`: escaped for HTML, and for the template engines that the component runs it through."""
    escaped = html.escape(text)
    return escaped.replace("{", "&#123;").replace("$", "&#36;").replace("`", "&#96;").replace("\\", "&#92;")


def short(version: str) -> str:
    """A version without its hash: `policy-0003-1f2e3d4c5b6a` is shown as `policy-0003`."""
    return "-".join(version.split("-")[:2])

"""Text from people and models made fit for the page: escaped, and in Markdown that reaches for nothing.

Gradio sanitises HTML too, but a sanitiser removes what a reader should see (`<script>` in a question about
scripts), so tags are shown as text. Left out: HTML in replies.
"""

from __future__ import annotations

import html
import re

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
    escaped = html.escape(text)
    return escaped.replace("{", "&#123;").replace("$", "&#36;").replace("`", "&#96;").replace("\\", "&#92;")


def short(version: str) -> str:
    """A version without its hash: `policy-0003-1f2e3d4c5b6a` is shown as `policy-0003`."""
    return "-".join(version.split("-")[:2])

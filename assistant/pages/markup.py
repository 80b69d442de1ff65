"""Text from people and models made fit for the page: escaped, and in Markdown that reaches for nothing.

Gradio sanitises HTML too, but a sanitiser removes what a reader should see (`<script>` in a question about
scripts), so tags are shown as text. Left out: HTML in replies.
"""

from __future__ import annotations

import html
import re

# Fenced and inline code and formulas: what the Markdown renderer escapes by itself.
_VERBATIM = re.compile(r"(```.*?(?:```|\Z)|~~~.*?(?:~~~|\Z)|`[^`\n]+`|\$\$.+?\$\$)", re.DOTALL)


def markdown(text: str) -> str:
    """Markdown of a message with its tags shown as text and its pictures as links."""
    parts = _VERBATIM.split(text)
    parts[::2] = [part.replace("&", "&amp;").replace("<", "&lt;").replace("![", "&#33;[") for part in parts[::2]]
    return "".join(parts)


def escape(text: str) -> str:
    """Text for `gr.HTML`: escaped for HTML, and for the template engines that the component runs it through."""
    escaped = html.escape(text)
    return escaped.replace("{", "&#123;").replace("$", "&#36;").replace("`", "&#96;").replace("\\", "&#92;")


def short(version: str) -> str:
    """A version without its hash: `policy-0003-1f2e3d4c5b6a` is shown as `policy-0003`."""
    return "-".join(version.split("-")[:2])

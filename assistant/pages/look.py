"""The look of the pages: theme, icons, and the style sheets and scripts in this folder.

The pages follow the reader's light or dark setting: Gradio sets the class `dark`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import quote

import gradio as gr

_FOLDER = Path(__file__).parent
_SANS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif")
_MONO = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace")

_PATH = "M9.5 21.5h9.1a3 3 0 0 0 2.95-2.45l1.3-7A2.5 2.5 0 0 0 20.4 9.1h-5.1l.75-3.6a2.6 2.6 0 0 0-4.8-1.8L8 9.6"
THUMB = (
    '<svg viewBox="0 0 26 26" fill="none" stroke="currentColor" stroke-width="2.1" stroke-linecap="round" '
    f'stroke-linejoin="round" aria-hidden="true"><path d="{_PATH}"/>'
    '<rect x="3" y="9.6" width="4.9" height="11.9" rx="1.6" fill="currentColor" stroke="none"/></svg>'
)
"""The logo: a thumb, drawn for this project, in the colour of the text around it."""

_LINES = (
    '<svg viewBox="0 0 24 24" fill="none" stroke="currentColor" stroke-width="1.8" stroke-linecap="round" '
    'stroke-linejoin="round" aria-hidden="true">{}</svg>'
)
_HAND = (
    '<path d="M8.5 20h8.4a2.6 2.6 0 0 0 2.56-2.1l1.1-6A2.2 2.2 0 0 0 18.4 9.3h-4.5l.65-3.1a2.3 2.3 0 0 0-4.2-1.6'
    'L7.5 9.7M3.2 9.7h4.3V20H3.2z"/>'
)
THUMB_UP = _LINES.format(_HAND)
THUMB_DOWN = _LINES.format(f'<g transform="rotate(180 12 12)">{_HAND}</g>')
COPY = _LINES.format(
    '<rect x="8.5" y="8.5" width="12" height="12" rx="2.5"/>'
    '<path d="M15.5 5.5v-1a2 2 0 0 0-2-2h-8a2 2 0 0 0-2 2v8a2 2 0 0 0 2 2h1"/>'
)
"""The icons of the buttons below a reply: the thumbs, and copy."""

ICON = "data:image/svg+xml," + quote(
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="-4 -4 34 34"><rect x="-4" y="-4" width="34" height="34" rx="9" '
    f'fill="#17664f"/><g stroke="#fff" fill="none" stroke-width="2.3" stroke-linecap="round" stroke-linejoin="round">'
    f'<path d="{_PATH}"/></g><rect x="3" y="9.6" width="4.9" height="11.9" rx="1.6" fill="#fff"/></svg>'
)


def theme() -> gr.themes.Base:
    """Return Gradio's plain theme with system fonts, so that no font is loaded. style.css has the rest of the look."""
    base = gr.themes.Base(font=_SANS, font_mono=_MONO)
    return base.set(  # for the first paint, before any style sheet is loaded
        body_background_fill="#faf9f6",
        body_background_fill_dark="#151816",
        body_text_color="#1f2320",
        body_text_color_dark="#e8ebe8",
    )


def head() -> str:
    """Return elements for `<head>`: the icon, the scripts, and the style sheets, whose rules Gradio would prefix."""
    styles = "".join(f"<style>{_file(name)}</style>" for name in ("style.css", "messages.css"))
    scripts = "".join(f"<script>{_file(name)}</script>" for name in ("page.js", "chat.js", "compare.js"))
    return styles + f'<link rel="icon" href="{ICON}"><meta name="color-scheme" content="light dark">' + scripts


def _file(name: str) -> str:
    return (_FOLDER / name).read_text(encoding="utf-8")


def html(value: str = "", **options: Any) -> gr.HTML:
    """Return a component with our own HTML, without the style that Gradio gives to prose."""
    return gr.HTML(value, apply_default_css=False, **options)

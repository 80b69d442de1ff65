"""How the pages look: one accent, system fonts, a thumb. The style sheet and the script are files beside this.

Both follow the reader's light or dark setting by themselves (Gradio sets the class `dark`).
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
"""The mark: a thumb, drawn for this project, in the colour of the text around it."""

_ICON = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="-4 -4 34 34"><rect x="-4" y="-4" width="34" height="34" rx="9" '
    f'fill="#17664f"/><g stroke="#fff" fill="none" stroke-width="2.3" stroke-linecap="round" stroke-linejoin="round">'
    f'<path d="{_PATH}"/></g><rect x="3" y="9.6" width="4.9" height="11.9" rx="1.6" fill="#fff"/></svg>'
)


def theme() -> gr.themes.Base:
    """Gradio's plain theme with our fonts, which load nothing; the rest of the look is in style.css."""
    base = gr.themes.Base(font=_SANS, font_mono=_MONO)
    return base.set(  # the first paint, before any style sheet is there
        body_background_fill="#faf9f6",
        body_background_fill_dark="#151816",
        body_text_color="#1f2320",
        body_text_color_dark="#e8ebe8",
    )


def head() -> str:
    """Elements for `<head>`: the icon, the style sheet (Gradio would prefix its rules) and the script."""
    style = (_FOLDER / "style.css").read_text(encoding="utf-8")
    script = (_FOLDER / "page.js").read_text(encoding="utf-8")
    return (
        f"<style>{style}</style>"
        f'<link rel="icon" href="data:image/svg+xml,{quote(_ICON)}">'
        '<meta name="color-scheme" content="light dark">'
        f"<script>{script}</script>"
    )


def html(value: str = "", **options: Any) -> gr.HTML:
    """A piece of our own markup, without the style that Gradio gives to prose."""
    return gr.HTML(value, apply_default_css=False, **options)

"""Rendered messages in Chromium: formulas and code are drawn; nothing covers the page, votes, or asks for anything."""

from __future__ import annotations

from pathlib import Path

import pytest
from chromium import DESKTOP, PHONE, picture
from playwright.sync_api import Browser, Page
from tricky_messages import TRICKS

from thumbwise.pages import markup

pytestmark = pytest.mark.browser

STYLE = (Path(markup.__file__).parent / "style.css").read_text(encoding="utf-8")
VOTES = "".join(
    f"<button id={name} onclick='votes.push(this.id)' style='width:20%'>{name}</button>"
    for name in ("tw-much-1", "tw-better-1", "tw-same", "tw-better-2", "tw-much-2")
)
SHOWN = """
Euler's $e^{i\\pi} + 1 = 0$, for $5 and not for $6, in \\(\\mathbf{x} \\in \\mathbb{R}^n\\):

$$
\\int_0^\\infty e^{-x^2}\\,dx = \\frac{\\sqrt{\\pi}}{2}
\\qquad \\begin{pmatrix} a & b \\\\ c & d \\end{pmatrix}
\\qquad f(x) = \\begin{cases} 1 & x > 0 \\\\ 0 & \\text{otherwise} \\end{cases}
$$

A wide one, $a_1 + a_2 + a_3 + a_4 + a_5 + a_6 + a_7 + a_8 + a_9 + b_1 + b_2 + b_3 + b_4 + b_5$, and more.

## A heading

1. one **bold** and ~~gone~~
   - nested `code`

> said by somebody

```python
def wide(): return "%s"
```

| left | centre | right |
|:-----|:------:|------:|
| 1 | $x^2$ | https://example.org/a_b_c |

שלום, זה **טקסט** מימין לשמאל.

- ראשון
- שני
""" % ("x" * 300)


@pytest.fixture
def page(browser: Browser) -> Page:
    page = browser.new_context(viewport=DESKTOP, offline=True).new_page()
    page.requests, page.dialogs = [], []  # type: ignore[attr-defined]
    page.on("request", lambda request: page.requests.append(request.url))  # type: ignore[attr-defined]
    page.on("dialog", lambda dialog: (page.dialogs.append(dialog.message), dialog.dismiss()))  # type: ignore[attr-defined]
    return page


def show(page: Page, messages: list[str]) -> None:
    drafts = "".join(f"<section style='margin:8px 16px'>{markup.render(message)}</section>" for message in messages)
    page.set_content(
        f"<!doctype html><style>{STYLE}</style><body class=gradio-container data-state=ready>"
        "<script>var votes = []</script>"
        f"<main>{drafts}</main><div id=tw-votes style='position:fixed;bottom:0;left:0;right:0'>{VOTES}</div>"
    )


def test_no_message_covers_the_page_or_votes(page: Page) -> None:
    for trick in TRICKS:
        show(page, [trick, trick])
        strange = page.locator(
            ".tw-md :is(label, form, input, button, textarea, select, video, audio, img, svg, iframe, object, "
            "embed, style, script, link, meta, base, foreignObject, annotation-xml, [id], "
            "[for], [name], [style], [action], [src])"
        )
        assert strange.count() == 0, trick
        assert page.locator("main :not(section, .tw-md)[class]").count() == 0, trick
        reached = page.evaluate(
            """() => [...document.querySelectorAll('#tw-votes button')].map(button => {
                const box = button.getBoundingClientRect();
                return document.elementFromPoint(box.x + box.width / 2, box.y + box.height / 2) === button;
            })"""
        )
        assert reached == [True] * 5, trick
        page.evaluate("document.querySelectorAll('main :not(a, a *)').forEach(element => element.click?.())")
        page.keyboard.press("2")
        assert page.evaluate("votes") == [], trick
        assert page.evaluate("getComputedStyle(document.querySelector('main')).position") == "static"
        placed = (
            "[...document.querySelectorAll('main *')].filter(e => getComputedStyle(e).position !== 'static').length"
        )
        assert page.evaluate(placed) == 0, trick
    assert page.requests == []  # type: ignore[attr-defined]
    assert page.dialogs == []  # type: ignore[attr-defined]


def test_a_message_is_drawn_and_never_widens_the_page(page: Page) -> None:
    show(page, [SHOWN])
    picture(page, "message")
    for viewport in (DESKTOP, PHONE):
        page.set_viewport_size(viewport)  # type: ignore[arg-type]
        assert page.evaluate("document.documentElement.scrollWidth") == viewport["width"]
    picture(page, "message-phone")
    assert page.locator("math").count() == 5
    box = page.locator("math[display=block] mfrac").bounding_box()
    line = page.locator("math[display=block] mfrac > :first-child").bounding_box()
    assert box is not None
    assert line is not None
    assert box["height"] > 1.5 * line["height"], "a fraction is drawn as one above the other"
    directions = page.locator("main :is(p, ul)").evaluate_all("all => all.map(e => getComputedStyle(e).direction)")
    assert directions.count("rtl") == 2
    assert "$5 and not for $6" in page.locator("main").inner_text()
    assert page.requests == []  # type: ignore[attr-defined]

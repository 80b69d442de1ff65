"""Messages as HTML: Markdown and formulas are shown, nothing in them acts."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any
from xml.etree.ElementTree import Element

import html5lib
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tricky_messages import TRICKS

from thumbwise.pages import dialect, markup
from thumbwise.pages.dialect import MOST_WORK
from thumbwise.pages.formulas import ALL_FORMULAS, LONGEST, mathml
from thumbwise.pages.markup import escape, plain, render

ELEMENTS = {
    *("div", "p", "h1", "h2", "h3", "h4", "h5", "h6", "ul", "ol", "li", "blockquote", "table", "thead", "tbody"),
    *("tr", "th", "td", "a", "br", "code", "em", "hr", "pre", "s", "strong"),
}
FORMULA = "math mrow mi mn mo mtext mspace mfrac msqrt mroot msub msup msubsup munder mover munderover mtable mtr mtd"
MATHML = {*FORMULA.split(), "mstyle", "mpadded", "mphantom"}
ATTRIBUTES = {
    *("dir", "align", "href", "title", "target", "rel", "start", "data-language", "class"),
    *("display", "mathvariant", "stretchy", "fence", "separator", "accent", "largeop", "movablelimits", "form"),
    *("minsize", "maxsize", "width", "linethickness", "displaystyle", "scriptlevel", "columnalign"),
}


def elements(html: str) -> Iterator[tuple[str, dict[str, str]]]:
    """Every element as a browser would build it, MathML with its own names."""
    fragment: Element = html5lib.parseFragment(html, treebuilder="etree", namespaceHTMLElements=False)
    for element in fragment.iter():
        name = str(element.tag)
        if name != "DOCUMENT_FRAGMENT":
            yield name.removeprefix("{http://www.w3.org/1998/Math/MathML}"), dict(element.attrib)


def text_of(html: str) -> str:
    return "".join(html5lib.parseFragment(html, treebuilder="etree", namespaceHTMLElements=False).itertext())


def check(html: str) -> None:
    """Only what is on the list, and nothing that acts, names, or lies elsewhere."""
    assert not set("{$`\\") & set(html)
    for number, (name, attributes) in enumerate(elements(html)):
        assert name in (ELEMENTS | MATHML), name
        assert set(attributes) <= ATTRIBUTES, attributes
        assert ("class" in attributes) == (number == 0), "the outermost element has our class, and no other has one"
        assert name == "mo" or "form" not in attributes
        if name == "a" and "href" in attributes:
            assert attributes["href"].startswith(("http://", "https://", "mailto:")), attributes
            assert (attributes["target"], attributes["rel"]) == ("_blank", "noopener noreferrer nofollow")


@pytest.mark.parametrize("text", TRICKS)
def test_nothing_in_a_message_acts(text: str) -> None:
    check(render(text))
    check(plain(text))


PIECES = st.sampled_from(
    [
        *TRICKS,
        *(
            "~~~",
            "```",
            "````",
            "`",
            "$",
            "$$",
            "\\(",
            "\\)",
            "\\[",
            "\\]",
            "*",
            "**",
            "_",
            "~~",
            "[",
            "](",
            ")",
            "![",
            "<",
        ),
        *(
            "\n",
            "\n\n",
            "    ",
            "\t",
            "> ",
            "- ",
            "1. ",
            "# ",
            "|",
            "|-|-|",
            "\\",
            "&lt;",
            "&#60;",
            "\\text{",
            "\\frac",
            "}",
        ),
        *(
            "^",
            "x",
            "https://e.org",
            "mailto:",
            "xmpp:a@b.c",
            "www.",
            "a@b.de",
            "\u200f",
            "א",
            "\ud800",
            "\0",
            "<!--",
            "-->",
        ),
        *("<script>", "</div>", '" onload="x', "<mtext>", "<annotation-xml>", "\\begin{matrix}", "\\end{matrix}", "&"),
    ]
)


@settings(max_examples=300, deadline=None)
@given(st.lists(PIECES | st.text(max_size=8), max_size=12).map("".join))
def test_whatever_is_written_only_listed_elements_come_out(text: str) -> None:
    check(render(text))


@settings(deadline=None)
@given(
    st.lists(st.text(alphabet="abcxyz ,.;:'éßñ日本语אבג0123456789", min_size=1, max_size=40), min_size=1, max_size=5)
)
def test_plain_words_stay_what_they_are(lines: list[str]) -> None:
    lines = [f"w{' '.join(line.split())}" for line in lines]
    assert text_of(render("\n\n".join(lines))).split("\n")[:-1] == lines


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a < b & c, <b> &amp; &#60;", "a < b & c, <b> &amp; &#60;"),
        ("`<b>` </b>", "<b> </b>"),
        ("Text\n\n    if a &lt; b && c:\n        pass", "Text\nif a &lt; b && c:\n    pass"),
        ("    if a:\n        b", "if a:\n    b"),
        ("````\n```\n<b>\n```\n````\n<b>", "```\n<b>\n```\n\n<b>"),
        ("```\n<b> unfinished", "<b> unfinished"),
        ("Say ``` or ~~~ <b>", "Say ``` or ~~~ <b>"),
        ("`a <b>\nc`", "a <b> c"),
        ("![p](https://example.com/p.png)", "p"),
        ("![](https://example.com/p.png)", "https://example.com/p.png"),
        ("$$5 per head … $$6 with wine", "$$5 per head … $$6 with wine"),
        ("$5 and $6, US$7 or $8/kg", "$5 and $6, US$7 or $8/kg"),
        ("echo $HOME/bin:$PATH", "echo $HOME/bin:$PATH"),
        ("\\[no link\\](u), \\(see below\\), \\$5", "[no link](u), (see below), $5"),
        ("[//]: # (said)\n[a]: https://e.org", "[//]: # (said)\n[a]: https://e.org"),
    ],
)
def test_a_message_is_shown_as_it_was_said(text: str, shown: str) -> None:
    assert text_of(render(text)).strip() == shown


@pytest.mark.parametrize(
    "text",
    [
        *(
            "$x^2$",
            "$$x^2$$",
            "\\(x^2\\)",
            "\\[x^2\\]",
            "so $x$, the $n$th",
            "$ABC$",
            "\\(AB\\)",
            "in $$ E = mc^2 $$ it",
        ),
        *("$$\na\n- b\n$$", "Thus:\n\\[\na = b\n\\]\nand", "- $$\n  a\n  $$", "> $$x$$", "| $a$ |\n|-|\n| b |"),
    ],
)
def test_formulas_are_mathml(text: str) -> None:
    names = [name for name, _ in elements(render(text))]
    assert "math" in names
    assert not set("$\\") & set(text_of(render(text)))


def test_a_wide_formula_has_a_line_of_its_own() -> None:
    short, long = render("see $x+y$ here"), render(f"see ${'+'.join('xyz' * 10)}$ here")
    assert [dict(elements(html))["math"]["display"] for html in (short, long)] == ["inline", "block"]


def test_a_formula_that_cannot_be_read_is_shown_as_it_was_typed() -> None:
    for formula in ("$\\frac$", "$x^y^z$", "$\\newcommand{\\a}{x}\\a$", "$" + "{" * 1500 + "$"):
        assert text_of(render(f"see {formula}")).strip() == f"see {formula}"
        assert "code" in dict(elements(render(formula)))


def test_formulas_of_a_message_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def counted(latex: str, display: bool) -> str | None:
        seen.append(len(latex))
        return mathml(latex, display)

    monkeypatch.setattr("thumbwise.pages.formulas.mathml", counted)
    render(" ".join(f"$x_{{{number}}}+{'y' * 90}$" for number in range(150)))
    assert 0.9 * ALL_FORMULAS < sum(seen) <= ALL_FORMULAS
    seen.clear()
    assert "x+x" in text_of(render(f"$${'x+' * LONGEST}x$$"))
    assert not seen


ODD = [
    *(
        "[",
        "![",
        "[a](",
        "](",
        "*",
        "**a ",
        "a**",
        "_a ",
        "~~a ",
        "`",
        "`a",
        "$",
        "$a ",
        "\\(",
        "\\[\n",
        "$$a\n",
        "<",
        "<a ",
        "&",
    ),
    *(
        "> ",
        "> a\n",
        "- ",
        "- a\n",
        "1. a\n",
        " - a\n",
        "# a\n",
        "=\n",
        "a\n=\n",
        "a\n---\n",
        "|",
        "|a|\n|-|\n",
        "|-",
        "```\n",
        "~~~\n",
    ),
    *(
        "[a]: b\n",
        "[a][",
        "://",
        "http://",
        "http://a ",
        "<http://a>",
        ":",
        "a@b ",
        "www.a ",
        "\n",
        " ",
        "\t",
        "\\",
        "[![",
        "*_",
        "$x$ ",
    ),
]
TABLES = [
    "|a" * 200 + "\n" + "|-" * 200 + "\n" + "|b\n" * 10_000,
    "|a" * 1_000 + "\n" + "|-" * 1_000 + "\n" + "|\n" * 10_000,
    ("|a" * 40 + "\n" + "|-" * 40 + "\n" + "|\n" * 100 + "\n") * 50,
]


@pytest.mark.parametrize("text", [odd * (markup.LONGEST // len(odd)) for odd in ODD] + TABLES)
def test_no_message_costs_more_than_it_may(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    work: list[int] = []
    spend = dialect._spend
    monkeypatch.setattr(
        dialect, "_spend", lambda env, more: bool(work.append(env.get("work", 0) + more)) or spend(env, more)
    )
    text = text[: markup.LONGEST]
    html = markup._rendered(text)
    assert max(work, default=0) <= MOST_WORK or "tw-plain" in html
    assert len(work) <= MOST_WORK + 1
    check(html)
    assert "tw-plain" in render(text * 4)
    assert "tw-plain" in render(text + "x" * markup.LONGEST)


def test_a_long_reply_is_still_read_as_markdown() -> None:
    words = "Some *words* and `code`, a [link](https://e.org), $x^2$.\n\n- one\n- two\n\n```\ncode\n```\n\n"
    assert "tw-plain" not in render(words * (30_000 // len(words)))
    assert "tw-plain" not in render("Words and words. " * 2_900)


def test_a_message_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    first = render("Said *once* only.")
    monkeypatch.setattr(markup, "_MARKDOWN", None)
    assert render("Said *once* only.") == first


def test_what_a_parser_cannot_read_is_shown_as_it_was_typed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(markup, "_MARKDOWN", None)
    assert text_of(markup._rendered("*This* <b>")) == "*This* <b>"


def test_definitions_do_not_multiply() -> None:
    names = "abcdefghijklmnopqrstuvwxyz"
    doubled = "".join(f"\\newcommand{{\\{a}q}}{{\\{b}q\\{b}q}}" for a, b in pairwise(names))
    assert mathml(f"{doubled}\\aq", False) is None
    assert mathml(doubled.replace("newcommand", "def") + "\\aq", False) is None


def test_what_is_written_from_right_to_left_says_so() -> None:
    blocks: list[tuple[str, Any]] = list(
        elements(render("שלום\n\n- א\n- ב\n\n> ג\n\n```\nx\n```\n\n| א |\n|-|\n| ב |"))
    )
    assert {name: a.get("dir") for name, a in blocks if "dir" in a} == {
        "p": "auto", "ul": "auto", "blockquote": "auto", "pre": "ltr", "table": "auto",
    }  # fmt: skip
    assert 'dir="auto"' in plain("שלום")


def test_text_in_html_carries_no_tag_and_no_template() -> None:
    assert not set(escape("<b>\"'${x}{{y}}`\\")) & set("<>\"'${`\\")

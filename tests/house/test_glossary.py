"""docs/glossary.md: one entry a word, in order, and an entry for every word that it uses as one."""

from __future__ import annotations

import re
from pathlib import Path

PAGE = (Path(__file__).parents[2] / "docs" / "glossary.md").read_text()
ENTRY = re.compile(r"\*\*(?P<word>[^*]+)\*\*: (?P<meaning>.+[.]) \[[^]]+\]\(\S+/[A-Z]+\.md\S*\)")


def entries() -> list[tuple[str, str]]:
    """Return each word with its meaning, in the order of the page."""
    _, *items = [" ".join(item.split()) for item in re.split(r"^- ", PAGE, flags=re.MULTILINE)]
    found = [ENTRY.fullmatch(item) for item in items]
    assert all(found), [item for item, match in zip(items, found, strict=True) if not match]
    return [(match["word"], match["meaning"]) for match in found if match]


def test_each_word_has_one_entry_in_order_with_a_link_to_its_room() -> None:
    words = [word for word, _ in entries()]
    assert len(words) > 30
    assert words == sorted(set(words), key=str.casefold)


def test_every_word_that_is_used_as_a_term_has_an_entry() -> None:
    words = {word.casefold() for word, _ in entries()}
    forms = words | {f"{word}s" for word in words} | {f"{word[:-1]}ies" for word in words if word.endswith("y")}
    for word, meaning in entries():
        used = {term.casefold() for term in re.findall(r"\*([^*]+)\*", meaning)}
        assert used <= forms, f"{word}: {used - forms}"
        assert word.casefold() not in used


def test_a_meaning_is_a_few_sentences() -> None:
    for word, meaning in entries():
        assert len(re.findall(r"[.] ", f"{meaning} ")) <= 4, word

"""What a rehearsal asks: the prompts that ship, a file's and every way it can be wrong, and what is held out."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from thumbwise.contracts import Prompt
from thumbwise.errors import ThumbwiseError
from thumbwise.feedback.records import prompt_sha256
from thumbwise.training.data.prompts import read_prompts, rehearsal_prompts, rehearsal_split, seed_prompts

ADVICE = ': write it as {"prompt": "...", "group": "..."} ("group" may be left out of all lines).'


def text(prompt: Prompt) -> str:
    (message,) = prompt.messages
    assert message["role"] == "user"
    return message["content"]


def prompt(content: str, group: str | None = None) -> Prompt:
    messages = ({"role": "user", "content": content},)
    return Prompt(messages, prompt_sha256(messages) if group is None else group)  # type: ignore[arg-type]


def rows(n: int, groups: int = 0) -> list[dict[str, Any]]:
    return [{"prompt": f"Question {i}?", **({"group": f"topic {i % groups}"} if groups else {})} for i in range(n)]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "prompts.jsonl"


def write(file: Path, lines: Sequence[dict[str, Any] | str]) -> None:
    parts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    file.write_text("\n".join(parts) + "\n", encoding="utf-8")


def refusal(file: Path) -> str:
    with pytest.raises(ThumbwiseError) as caught:
        read_prompts(file)
    return str(caught.value)


# --- the prompts that ship -----------------------------------------------------------------------------


def test_enough_prompts_ship_each_once_and_none_is_a_seed_prompt() -> None:
    shipped = rehearsal_prompts()
    asked = {text(p).casefold() for p in shipped}
    assert len(asked) == len(shipped) >= 220
    assert not asked & {text(p).casefold() for p in seed_prompts()}
    assert all(text(p) == text(p).strip() != "" for p in shipped)


def test_the_prompts_that_ship_are_in_many_topics_of_about_ten() -> None:
    groups = [p.group for p in rehearsal_prompts()]
    assert len(set(groups)) >= 22
    assert {group.partition(":")[0] for group in groups} == {"rehearsal"}
    assert all(8 <= groups.count(group) <= 12 for group in groups)


def test_the_file_that_ships_would_be_accepted_as_anybodys(tmp_path: Path) -> None:
    path = Path(__file__).parents[3] / "training" / "data" / "rehearsal_prompts.jsonl"
    assert [p.messages for p in read_prompts(path)] == [p.messages for p in rehearsal_prompts()]


def test_prompts_are_read_without_loading_torch() -> None:
    code = "import sys, thumbwise.training.data.prompts as p; p.rehearsal_split(p.rehearsal_prompts()); "
    code += "print([m for m in ('torch', 'transformers', 'httpx', 'gradio') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


# --- a file --------------------------------------------------------------------------------------------


def test_a_file_is_read_in_order_with_its_groups(file: Path) -> None:
    write(file, rows(40, 4))
    read = read_prompts(file)
    assert [text(p) for p in read] == [f"Question {i}?" for i in range(40)]
    assert [p.group for p in read] == [f"topic {i % 4}" for i in range(40)]


def test_a_prompt_without_a_group_is_its_own_as_in_the_store(file: Path) -> None:
    write(file, rows(40))
    read = read_prompts(file)
    assert [p.group for p in read] == [prompt_sha256(p.messages) for p in read]
    assert len({p.group for p in read}) == 40


def test_blank_lines_a_byte_order_mark_and_windows_line_ends_are_tolerated(file: Path) -> None:
    lines = [json.dumps(row) for row in rows(40)]
    file.write_bytes(b"\xef\xbb\xbf\r\n" + "\r\n \t\r\n".join(lines).encode() + b"\r\n\r\n")
    assert [text(p) for p in read_prompts(file)] == [f"Question {i}?" for i in range(40)]


def test_a_line_separator_inside_a_string_ends_no_line(file: Path) -> None:
    odd = {"prompt": "One\u2028two\x85three, naïve 日本 🙂"}
    file.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in [odd, *rows(39)]), encoding="utf-8")
    assert text(read_prompts(file)[0]) == odd["prompt"]


def test_of_equal_prompts_the_first_counts_and_blanks_around_them_do_not(file: Path) -> None:
    write(file, [*rows(40, 4), {"prompt": " Question 1?\n", "group": "other"}, *rows(40, 4)])
    read = read_prompts(file)
    assert len(read) == 40
    assert text(read[1]) == "Question 1?"
    assert "other" not in {p.group for p in read}


# --- what can be wrong with one ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        ("Why is the sky blue?", "is not JSON"),
        ('{"prompt": "Why?"', "is not JSON"),
        ('{"prompt": "Why?"} {"prompt": "How?"}', "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("9" * 5000, "is not JSON"),
        ('"Why?"', "is not a JSON object"),
        ('["Why?"]', "is not a JSON object"),
        ("null", "is not a JSON object"),
        ("{}", 'has no "prompt"'),
        ('{"group": "topic"}', 'has no "prompt"'),
        ('{"text": "Why?"}', 'has an unknown key "text"'),
        ('{"prompt": "Why?", "topic": "sky", "id": 1}', 'has an unknown key "id"'),
        ('{"prompt": "Why?", "a\\nb": 1}', 'has an unknown key "a\\nb"'),
        ('{"prompt": 3}', 'has a "prompt" that is not a string'),
        ('{"prompt": null}', 'has a "prompt" that is not a string'),
        ('{"prompt": ""}', 'has an empty "prompt"'),
        ('{"prompt": " \\n "}', 'has an empty "prompt"'),
        ('{"prompt": "\\ud83d"}', 'has a "prompt" with half a character in it (a lone \\ud800 to \\udfff)'),
        ('{"prompt": "Why?", "group": 3}', 'has a "group" that is not a string'),
        ('{"prompt": "Why?", "group": null}', 'has a "group" that is not a string'),
        ('{"prompt": "Why?", "group": ["sky"]}', 'has a "group" that is not a string'),
        ('{"prompt": "Why?", "group": " "}', 'has an empty "group"'),
        ('{"prompt": "Why?", "group": "\\udc00"}', 'has a "group" with half a character in it'),
    ],
)
def test_a_bad_line_is_named_by_its_number(file: Path, line: str, wrong: str) -> None:
    write(file, ["", *rows(40), line, *rows(3)])
    said = refusal(file)
    assert said.startswith(f"Line 42 of {file} {wrong}")
    assert said.endswith(ADVICE)
    assert "\n" not in said


def test_the_sentence_on_a_bad_line_is_whole(file: Path) -> None:
    write(file, ["{}"])
    assert refusal(file) == f'Line 1 of {file} has no "prompt"{ADVICE}'


def test_groups_are_given_in_every_line_or_in_none(file: Path) -> None:
    write(file, [*rows(39, 3), "", {"prompt": "Why?"}])
    assert refusal(file) == (
        f'Line 41 of {file} gives no "group", unlike the lines before it: give one in every line, or in none.'
    )
    write(file, [*rows(39), {"prompt": "Question 0?", "group": "sky"}])
    assert refusal(file) == (
        f'Line 40 of {file} gives a "group", unlike the lines before it: give one in every line, or in none.'
    )


def test_a_missing_file_is_one_sentence(file: Path) -> None:
    assert refusal(file) == f"There is no file {file}: check the path."


def test_a_folder_is_one_sentence(tmp_path: Path) -> None:
    said = f"{tmp_path} cannot be read (Is a directory): give a file of JSON lines that you may read."
    assert refusal(tmp_path) == said


def test_a_file_that_may_not_be_read_is_one_sentence(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> bytes:  # root may read a file of any mode
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    said = f"{file} cannot be read (Permission denied): give a file of JSON lines that you may read."
    assert refusal(file) == said


@pytest.mark.parametrize("bad", ["Café?".encode("latin-1"), "Why?".encode("utf-16")])
def test_a_file_that_is_not_utf_8_is_one_sentence(file: Path, bad: bytes) -> None:
    file.write_bytes(json.dumps(rows(1)[0]).encode() + b"\n" + bad)
    assert refusal(file) == f"{file} is not UTF-8 text (line 2): save it as UTF-8."


@pytest.mark.parametrize("nothing", [b"", b"\n \n\t\r\n", b"\xef\xbb\xbf"])
def test_an_empty_file_is_one_sentence(file: Path, nothing: bytes) -> None:
    file.write_bytes(nothing)
    assert refusal(file) == f'{file} is empty: write one JSON object a line, {{"prompt": "..."}}.'


def test_too_few_different_prompts_are_one_sentence(file: Path) -> None:
    write(file, [*rows(39), *rows(39)])
    assert refusal(file) == (
        f"{file} holds 39 different prompts, too few to hold some out: write at least 40, or leave the file out to use "
        "the prompts that ship with Thumbwise."
    )


# --- what is held out ----------------------------------------------------------------------------------

untimed = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
WORDS = st.text(st.characters(codec="utf-8"), min_size=1)


@untimed
@given(st.lists(WORDS, min_size=31, max_size=200, unique=True))
def test_without_groups_the_first_30_or_a_quarter_by_hash_are_held_out(words: list[str]) -> None:
    prompts = [prompt(word) for word in words]
    voters, held_out = rehearsal_split(prompts)
    hashes = [prompt_sha256(p.messages) for p in held_out]
    assert len(held_out) == max(30, len(words) // 4)
    assert hashes == sorted(prompt_sha256(p.messages) for p in prompts)[: len(hashes)]
    assert list(voters) == [p for p in prompts if p not in held_out]


@untimed
@given(st.lists(st.tuples(WORDS, st.integers(0, 12)), min_size=1, max_size=80, unique_by=lambda pair: pair[0]))
def test_with_groups_30_percent_of_them_are_held_out_whole(pairs: list[tuple[str, int]]) -> None:
    prompts = [prompt(word, f"topic {number}") for word, number in pairs]
    groups = {p.group for p in prompts}
    if len(groups) == 1:
        return
    voters, held_out = rehearsal_split(prompts)
    n = min(max(1, round(0.3 * len(groups))), len(groups) - 1)
    out = set(sorted(groups, key=lambda group: sha256(group.encode()).hexdigest())[:n])
    assert {p.group for p in held_out} == out
    assert list(voters) == [p for p in prompts if p.group not in out]
    assert len(voters) + len(held_out) == len(prompts)


@untimed
@given(st.lists(st.tuples(st.sampled_from("abcdefgh"), st.sampled_from(["one", "two", "three"])), max_size=60))
def test_no_prompt_is_on_both_sides_even_where_it_is_in_two_groups(pairs: list[tuple[str, str]]) -> None:
    prompts = [prompt(word, group) for word, group in pairs]
    try:
        voters, held_out = rehearsal_split(prompts)
    except ThumbwiseError:
        return
    assert voters
    assert held_out
    assert not {text(p) for p in voters} & {text(p) for p in held_out}


@untimed
@given(st.randoms(), st.sampled_from([0, 7]))
def test_the_order_of_the_file_changes_nothing_that_is_held_out(random: Any, groups: int) -> None:
    prompts = [prompt(row["prompt"], row.get("group")) for row in rows(60, groups)]
    shuffled = random.sample(prompts, len(prompts))
    assert rehearsal_split(shuffled)[1] == rehearsal_split(prompts)[1]
    assert set(map(text, rehearsal_split(shuffled)[0])) == set(map(text, rehearsal_split(prompts)[0]))


@pytest.mark.parametrize(("groups", "out"), [(2, 1), (3, 1), (4, 1), (5, 2), (10, 3), (22, 7)])
def test_the_number_of_groups_held_out_is_rounded(groups: int, out: int) -> None:
    prompts = [prompt(row["prompt"], row["group"]) for row in rows(66, groups)]
    assert len({p.group for p in rehearsal_split(prompts)[1]}) == out


def test_a_group_for_every_prompt_is_still_a_division_by_groups() -> None:
    prompts = [prompt(row["prompt"], row["group"]) for row in rows(50, 50)]
    assert len(rehearsal_split(prompts)[1]) == 15


def test_the_smallest_file_leaves_ten_to_ask(file: Path) -> None:
    write(file, rows(40))
    voters, held_out = rehearsal_split(read_prompts(file))
    assert (len(voters), len(held_out)) == (10, 30)


def test_of_the_prompts_that_ship_enough_are_on_either_side() -> None:
    voters, held_out = rehearsal_split(rehearsal_prompts())
    assert (len(voters), len(held_out)) == (180, 80)
    assert len({p.group for p in held_out[:20]}) >= 5, "the first held-out prompts are a mixture of topics"


@pytest.mark.parametrize("prompts", [[], [prompt("Why?")], [prompt(f"Why {i}?", "sky") for i in range(50)]])
def test_prompts_that_cannot_be_divided_are_one_sentence(prompts: list[Prompt]) -> None:
    with pytest.raises(ThumbwiseError) as caught:
        rehearsal_split(prompts)
    assert str(caught.value) == (
        "These prompts cannot be divided into some to ask and some to hold out: give more of them, in at least two "
        "groups or without groups."
    )

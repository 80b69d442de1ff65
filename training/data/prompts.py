"""Prompts that ship and prompts from a file: where rollouts start, and what simulated people ask in a rehearsal.

A file's lines are checked before anything slow begins, so a typing mistake costs a second. Nothing here imports torch.
If a file has no groups, each prompt is a group of its own, named by the prompt's hash, as in the store. So a split
needs no flag.

Left out:
- Conversations of several turns and system prompts: no rater needs them.
- A choice of what is held out: two results can be compared only if it is the same.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from thumbwise.contracts import Message, Prompt
from thumbwise.errors import ThumbwiseError
from thumbwise.feedback.records import prompt_sha256
from thumbwise.settings.training import TrainSettings
from thumbwise.training.data.operator_files import keep

FEWEST = 40
"""With fewer prompts, holding some out would leave too few to ask."""
INSTEAD = "leave the file out to use the prompts that ship with Thumbwise"
KEPT = "prompts.jsonl"
"""The operator's file, as it was when the run began, in the run's folder."""

HELD_OUT_GROUPS = 0.3
HELD_OUT_ALONE = 30


def rehearsal_prompts() -> tuple[Prompt, ...]:
    """The prompts that simulated people ask if no file is given, grouped by topic. None is a seed prompt."""
    return _shipped("rehearsal")


def seed_prompts() -> tuple[Prompt, ...]:
    """The prompts that ship for rollouts, grouped by topic. Simulated people never ask them."""
    return _shipped("seed")


def _shipped(name: str) -> tuple[Prompt, ...]:
    text = files("thumbwise.training.data").joinpath(f"{name}_prompts.jsonl").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in text.splitlines()]
    return tuple(_prompt(row["prompt"], f"{name}:{row['group']}") for row in rows)


def keep_prompts(train: TrainSettings, folder: Path) -> str:
    """Copy the operator's file of prompts into a run's folder, unless that is done. Returns its SHA-256.

    The result is empty if there is no file. Raises ThumbwiseError if its lines are not right.
    """

    def read(path: Path) -> str:
        check_prompts(train)
        return _read(path)

    return keep(train.prompts_file, folder / KEPT, read)


def check_prompts(train: TrainSettings) -> None:
    """Read the operator's file of prompts, if there is one. A ThumbwiseError says what is wrong with it."""
    if train.prompts_file:
        _operators(Path(train.prompts_file), train)


def our_prompts(train: TrainSettings, folder: Path) -> tuple[Prompt, ...]:
    """What rollouts start from besides people's prompts: those that ship, and those that `keep_prompts` kept."""
    own = _operators(folder / KEPT, train) if train.prompts_file else ()
    taken = {prompt.messages[0]["content"] for prompt in own}
    shipped = seed_prompts() if train.packaged_prompts else ()
    return (*own, *(prompt for prompt in shipped if prompt.messages[0]["content"] not in taken))


def _operators(path: Path, train: TrainSettings) -> tuple[Prompt, ...]:
    """Few are enough, because there are also the prompts that ship. Groups get a prefix: the store's are hashes."""
    if train.packaged_prompts:
        found = read_prompts(path, fewest=1)
    else:
        found = read_prompts(path, instead="set train.packaged_prompts, to use those that ship with Thumbwise too")
    return tuple(replace(prompt, group=f"file:{prompt.group}") for prompt in found)


def read_prompts(path: Path, *, fewest: int = FEWEST, instead: str = INSTEAD) -> tuple[Prompt, ...]:
    """Read a file of JSON lines {"prompt", "group"?}. Of equal prompts the first counts. Raises ThumbwiseError.

    `instead` says what else the operator can do than write at least `fewest` prompts.
    """
    prompts: dict[str, Prompt] = {}
    grouped: bool | None = None
    for number, line in enumerate(_read(path).split("\n"), 1):  # not splitlines: JSON strings may hold U+2028
        if not line.strip():
            continue
        try:
            text, group = _row(line)
        except ValueError as error:
            raise ThumbwiseError(
                f'Line {number} of {path} {error}: write it as {{"prompt": "...", "group": "..."}} '
                '("group" may be left out of all lines).'
            ) from None
        if grouped not in (None, group is not None):
            raise ThumbwiseError(
                f'Line {number} of {path} gives {"no" if group is None else "a"} "group", unlike the lines before it: '
                "give one in every line, or in none."
            )
        grouped = group is not None
        prompts.setdefault(text, _prompt(text, group))
    if len(prompts) < fewest:
        raise ThumbwiseError(
            f"{path} holds {len(prompts)} different prompts, too few to hold some out: write at least {fewest}, or "
            f"{instead}."
        )
    return tuple(prompts.values())


def _read(path: Path) -> str:
    """The text of a file, without the byte order mark that some editors put first."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise ThumbwiseError(f"There is no file {path}: check the path.") from None
    except OSError as error:
        raise ThumbwiseError(
            f"{path} cannot be read ({error.strerror}): give a file of JSON lines that you may read."
        ) from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ThumbwiseError(f"{path} is not UTF-8 text (line {line}): save it as UTF-8.") from None
    if not text.strip():
        raise ThumbwiseError(f'{path} is empty: write one JSON object a line, {{"prompt": "..."}}.')
    return text


def _row(line: str) -> tuple[str, str | None]:
    """One line's prompt and group. The ValueError says what is wrong; its text goes after the line's number."""
    try:
        row: Any = json.loads(line)
    except (ValueError, RecursionError):
        raise ValueError("is not JSON") from None
    if not isinstance(row, dict):
        raise ValueError("is not a JSON object")
    if unknown := sorted(row.keys() - {"prompt", "group"}):
        raise ValueError(f"has an unknown key {json.dumps(unknown[0])}")
    if "prompt" not in row:
        raise ValueError('has no "prompt"')
    return _text(row, "prompt"), _text(row, "group") if "group" in row else None


def _text(row: dict[str, Any], key: str) -> str:
    """A value that must be text. Blanks around it are dropped, so that they do not make two prompts of one."""
    value = row[key]
    if not isinstance(value, str):
        raise ValueError(f'has a "{key}" that is not a string')
    if any("\ud800" <= letter <= "\udfff" for letter in value):  # JSON can escape it, but no request can hold it
        raise ValueError(f'has a "{key}" with half a character in it (a lone \\ud800 to \\udfff)')
    if not value.strip():
        raise ValueError(f'has an empty "{key}"')
    return value.strip()


def _prompt(text: str, group: str | None) -> Prompt:
    """A user's first message; without a group it is a group of its own."""
    messages = (Message(role="user", content=text),)
    return Prompt(messages, prompt_sha256(messages) if group is None else group)


def rehearsal_split(prompts: Sequence[Prompt]) -> tuple[tuple[Prompt, ...], tuple[Prompt, ...]]:
    """What is asked and what is held out: by whole groups if the prompts have any, else by prompt.

    The order is that of a hash, so the same prompts are held out whatever the seed or the file's order. Held-out
    prompts are in that order too, so any first n of them are a mixture of the groups. No prompt is on both sides.
    """
    alone = all(prompt.group == prompt_sha256(prompt.messages) for prompt in prompts)
    ordered = sorted(prompts, key=lambda prompt: prompt_sha256(prompt.messages))
    if alone:
        held_out = ordered[: max(HELD_OUT_ALONE, len(prompts) // 4)]
    else:
        out = _held_out_groups({prompt.group for prompt in prompts})
        held_out = [prompt for prompt in ordered if prompt.group in out]
    hashes = {prompt_sha256(prompt.messages) for prompt in held_out}
    voters = tuple(prompt for prompt in prompts if prompt_sha256(prompt.messages) not in hashes)
    if not voters or not held_out:
        raise ThumbwiseError(
            "These prompts cannot be divided into some to ask and some to hold out: give more of them, in at least two "
            "groups or without groups."
        )
    return voters, tuple(held_out)


def _held_out_groups(groups: set[str]) -> set[str]:
    """A share of the groups, at least one and never all."""
    n = min(max(1, round(HELD_OUT_GROUPS * len(groups))), len(groups) - 1)
    return set(sorted(groups, key=lambda group: hashlib.sha256(group.encode()).hexdigest())[:n])

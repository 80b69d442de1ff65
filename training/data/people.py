"""How much of what is learned from may be one person's: votes, corrections and prompts over that are set aside.

A person is whom the assistant counts as one: a browser, an API key with all the names below it, or all programs
without a key together. Names below a person divide its part. What is set aside does not come back with less weight:
a thousand votes at a weight of fifty would still be a thousand votes to cross-validation, and speak more clearly
than fifty. Which ones stay is by names in turn and by a hash, so the same votes stay every time. What browsers gave
before they were told apart is of many people, and nobody can add to it: it stays whole.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from thumbwise.feedback.migrations import BROWSERS_BEFORE
from thumbwise.feedback.records import NEW_BROWSER, PROGRAMS, is_browser

SETTLED = 10
"""Votes from which somebody is one of a crowd, and others' votes from which a person is not alone."""
LEAST_CROWD = 5
"""Settled people below which there is no crowd to hold anybody against."""
A_DAY = 600
"""Votes, corrections and prompts, together, that one person may have given by hand in a browser's first day."""
FEW = 50
"""Votes that nobody is brought below in a crowd: beside a few guests, the one who votes is worth hearing."""
SHARE = 0.25
"""Of corrections and prompts, the most that may be one person's where there are several."""

Item = TypeVar("Item")


def capped(totals: NDArray[np.float64], share: float, least: float) -> NDArray[np.float64]:
    """Factors [people] that bring nobody's part of the sum over `share`, or over an equal part where that is more.

    Nobody is brought below `least`.
    """
    down = np.sort(totals)[::-1]
    share = max(share, 1 / max(1, int((totals > 0).sum())))
    level = np.inf
    for over in range(len(down)):  # how many are brought down to the level at which each of them has exactly `share`
        if over * share >= 1 - 1e-9:
            level = down[over - 1]
            break
        level = share * down[over:].sum() / (1 - over * share)
        if down[over] <= level * (1 + 1e-9):
            break
    factors: NDArray[np.float64] = np.minimum(1.0, max(level, least) / np.maximum(totals, 1e-12))
    return factors


def vote_limits(weights: Mapping[str, float], counts: Mapping[str, int], share: float, enough: int) -> dict[str, float]:
    """How much weight each person's votes may have, from what they have (`weights`) and how many there are (`counts`).

    In a crowd that is `share` of all, or FEW votes; programs without a key and new browsers have one share together.
    Fewer people are not held to shares, since one who votes on two machines would lose most of the votes. But programs
    without a key are held to `share`, or to an equal part, and so are new browsers, which have as many votes as it
    takes to begin (`enough`), unless they were the one browser that is known. With a `share` of 1 all is heard.
    """
    found = dict(weights)
    if share >= 1:
        return found
    whole = {name: weight for name, weight in weights.items() if name == BROWSERS_BEFORE}
    if crowd(counts):
        joined: dict[str, float] = {}
        for person, weight in weights.items():
            joined[unknown_as_one(person)] = joined.get(unknown_as_one(person), 0.0) + weight
        factors = dict(zip(joined, capped(np.array(list(joined.values()), np.float64), share, FEW), strict=True))
        return {person: float(weight * factors[unknown_as_one(person)]) for person, weight in weights.items()} | whole
    for unknown, least in ((NEW_BROWSER, enough), (PROGRAMS, 0)):
        if unknown == NEW_BROWSER and only_browser(counts):
            continue
        others = [person for person in weights if person not in (unknown, PROGRAMS)]
        if unknown in found and sum(counts[person] for person in others) >= SETTLED:
            part = max(share, 1 / (1 + len(others)))
            theirs = sum(found[person] for person in others)
            found[unknown] = min(found[unknown], max(part / (1 - part) * theirs, least))
    return found


def unknown_as_one(person: str) -> str:
    """The person, where all who may be anybody are one: what one of them may do, the same program may do twice."""
    return PROGRAMS if person == NEW_BROWSER else person


def crowd(counts: Mapping[str, int]) -> bool:
    """Whether there are people enough to hold each against the others, by how much each gave."""
    return len({unknown_as_one(person) for person, count in counts.items() if count >= SETTLED}) >= LEAST_CROWD


def only_browser(counts: Mapping[str, int]) -> str:
    """The one browser that new ones were most likely, in its first day; empty where they may be anybody.

    That is so where no other is known, no program without a key is about, and one person may have given as much.
    """
    known = [
        person
        for person, count in counts.items()
        if is_browser(person) and person not in (NEW_BROWSER, BROWSERS_BEFORE) and count >= SETTLED
    ]
    unlikely = counts.get(PROGRAMS, 0) >= SETTLED or counts.get(NEW_BROWSER, 0) > A_DAY or crowd(counts)
    return "" if unlikely or len(known) != 1 else known[0]


def who(counts: Mapping[str, int]) -> Callable[[str], str]:
    """Says as whom a person counts where several are about, by how much each gave."""
    browser = only_browser(counts)
    return lambda person: browser if browser and person == NEW_BROWSER else unknown_as_one(person)


def alone(counts: Mapping[str, int]) -> bool:
    """Whether all but one person have too little to be somebody else.

    Where new browsers were most likely one that is known, what browsers gave before they were told apart was its too.
    """
    browser, joined = only_browser(counts), Counter[str]()
    for person, count in counts.items():
        joined[browser if browser and person in (NEW_BROWSER, BROWSERS_BEFORE) else unknown_as_one(person)] += count
    return joined.total() - max(joined.values(), default=0) < SETTLED


def equal_parts(counts: Mapping[str, int]) -> dict[str, float]:
    """How many corrections or prompts of each of several people are taken: SHARE of all, or an equal part.

    None where they are all of one person, for that is no part of several people's.
    """
    whole = {name: float(count) for name, count in counts.items() if name == BROWSERS_BEFORE}
    if len(counts) < 2:
        return dict.fromkeys(counts, 0.0) | whole
    totals = np.array(list(counts.values()), np.float64)
    return dict(zip(counts, (totals * capped(totals, SHARE, 0)).tolist(), strict=True)) | whole


def within(
    items: Sequence[Item], limits: Mapping[str, float], person: Callable[[Item], str],
    order: Callable[[Item], tuple[str, str]], weight: Callable[[Item], float] = lambda item: 1.0,
) -> list[Item]:  # fmt: skip
    """The `items` that stay, in their order: of each person those that come first until `limits` are reached.

    `order` gives an item's name below the person, and its id. Names come in turn, ids in the order of a hash.
    """
    numbers: dict[str, list[int]] = {}
    for number, item in enumerate(items):
        numbers.setdefault(person(item), []).append(number)
    kept: set[int] = set()
    for who, theirs in numbers.items():
        left = limits[who] + 1e-6
        for number in _in_turn(theirs, lambda number: order(items[number])):
            left -= weight(items[number])
            if left < 0:
                break
            kept.add(number)
    return [item for number, item in enumerate(items) if number in kept]


def _in_turn(numbers: Sequence[int], order: Callable[[int], tuple[str, str]]) -> list[int]:
    """The first of each name, then the second of each, and so on; within a name by a hash of the id."""
    hashed = {number: hashlib.sha256("\n".join(order(number)).encode()).hexdigest() for number in numbers}
    by_name = sorted(numbers, key=lambda number: (order(number)[0], hashed[number]))
    turns = {
        number: turn
        for _, group in groupby(by_name, key=lambda number: order(number)[0])
        for turn, number in enumerate(group)
    }
    return sorted(numbers, key=lambda number: (turns[number], hashed[number]))

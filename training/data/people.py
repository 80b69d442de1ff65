"""How much of what is learned may come from one person. Votes, corrections and prompts beyond that are set aside.

A person is whatever the assistant counts as one: a browser, an API key with all the names below it, or all programs
without a key together. Names below a person share its part.

What is set aside does not come back with less weight. A thousand votes at a weight of fifty would still be a thousand
votes to cross-validation, and speak more clearly than fifty. Names in turn and a hash decide which ones stay, so the
same votes stay every time.

What browsers gave before they were told apart is from many people, and nobody can add to it. It stays whole.
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
from thumbwise.feedback.records import ACCOUNT, NEW_BROWSER, PROGRAMS, is_browser

SETTLED = 10
"""With this many votes somebody is one of a crowd. With this many votes of others, a person is not alone."""
LEAST_CROWD = 5
"""With fewer settled people there is no crowd to compare anybody with."""
A_DAY = 600
"""The most votes, corrections and prompts, together, that one person may give by hand on a browser's first day."""
FEW = 50
"""In a crowd nobody is limited to fewer votes: if there are only a few guests, the regular voter should count."""
NEW_ACCOUNTS = "accounts:new"
"""All young accounts together, where their votes are not borne out."""
SHARE = 0.25
"""The most of all corrections or prompts that may be one person's, if there are several people."""

Item = TypeVar("Item")


def capped(totals: NDArray[np.float64], share: float, least: float) -> NDArray[np.float64]:
    """Factors [people] that limit everybody's part of the sum to `share`, or to an equal part if that is more.

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


def vote_limits(
    weights: Mapping[str, float], counts: Mapping[str, int], share: float, enough: int,
    young: frozenset[str] = frozenset(),
) -> dict[str, float]:  # fmt: skip
    """How much weight each person's votes may have, from what they have (`weights`) and how many there are (`counts`).

    - In a crowd: `share` of all weight, or FEW votes. Programs without a key and new browsers have one share together.
    - With fewer people: no shares, because somebody who votes on two machines would lose most of the votes. But
      programs without a key are limited to `share`, or to an equal part. So are new browsers, which may have at least
      the votes that training needs to begin (`enough`). New browsers have no limit if they are most likely the one
      known browser.
    - With a `share` of 1: all votes count.
    - Accounts that are `young` take nothing from the others: in a crowd they are one person, and each has at most FEW
      votes. How many of them are learned from, the reward model says (`thumbwise.training.reward.settling`).
    """
    young = beside_settled(counts, young)
    found = dict(weights)
    if share >= 1:
        return found
    whole = {name: weight for name, weight in weights.items() if name == BROWSERS_BEFORE}
    if crowd(counts, young):
        joined: dict[str, float] = {}
        for person, weight in weights.items():
            joined[one(person, young)] = joined.get(one(person, young), 0.0) + weight
        factors = dict(zip(joined, capped(np.array(list(joined.values()), np.float64), share, FEW), strict=True))
        limits = {person: float(weight * factors[one(person, young)]) for person, weight in weights.items()}
        return limits | {person: min(weights[person], FEW) for person in young & weights.keys()} | whole
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
    """The person; new browsers and programs without a key count as one.

    What one of them may do, the same program could do twice.
    """
    return PROGRAMS if person == NEW_BROWSER else person


def one(person: str, young: frozenset[str]) -> str:
    """The person, where unknown ones count as one, and all accounts that are `young` too."""
    return NEW_ACCOUNTS if person in young else unknown_as_one(person)


def beside_settled(counts: Mapping[str, int], young: frozenset[str]) -> frozenset[str]:
    """The accounts that are `young`, if somebody older has given enough to compare them with.

    Else none: in the first week of a team everybody is young, and everybody counts.
    """
    older = any(person.startswith(ACCOUNT) and person not in young and n >= SETTLED for person, n in counts.items())
    return young if older else frozenset()


def crowd(counts: Mapping[str, int], young: frozenset[str] = frozenset()) -> bool:
    """Whether there are enough people to compare each with the others, by how much each gave."""
    return len({one(person, young) for person, count in counts.items() if count >= SETTLED}) >= LEAST_CROWD


def only_browser(counts: Mapping[str, int]) -> str:
    """The one browser that new browsers most likely were, on its first day; empty if they may be anybody.

    There is one if no other browser is known, there is no program without a key, and one person may have given as much.
    """
    known = [
        person
        for person, count in counts.items()
        if is_browser(person) and person not in (NEW_BROWSER, BROWSERS_BEFORE) and count >= SETTLED
    ]
    unlikely = counts.get(PROGRAMS, 0) >= SETTLED or counts.get(NEW_BROWSER, 0) > A_DAY or crowd(counts)
    return "" if unlikely or len(known) != 1 else known[0]


def who(counts: Mapping[str, int], young: frozenset[str] = frozenset()) -> Callable[[str], str]:
    """Maps each person to the person they count as if there are several people; `counts` is how much each gave."""
    browser, young = only_browser(counts), beside_settled(counts, young)
    return lambda person: browser if browser and person == NEW_BROWSER else one(person, young)


def alone(counts: Mapping[str, int]) -> bool:
    """Whether all people except one have given too little to be somebody else.

    If new browsers were most likely one known browser, what browsers gave before they were told apart was its too.
    """
    browser, joined = only_browser(counts), Counter[str]()
    for person, count in counts.items():
        joined[browser if browser and person in (NEW_BROWSER, BROWSERS_BEFORE) else unknown_as_one(person)] += count
    return joined.total() - max(joined.values(), default=0) < SETTLED


def equal_parts(counts: Mapping[str, int]) -> dict[str, float]:
    """How many corrections or prompts of each of several people are taken: SHARE of all, or an equal part.

    0 if they are all of one person: one person's are not a part of several people's.
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

    `order` gives an item's name below the person, and its id. Names take turns; ids are in the order of a hash.
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
    """The first of each name, then the second of each, and so on; within a name in the order of a hash of the id."""
    hashed = {number: hashlib.sha256("\n".join(order(number)).encode()).hexdigest() for number in numbers}
    by_name = sorted(numbers, key=lambda number: (order(number)[0], hashed[number]))
    turns = {
        number: turn
        for _, group in groupby(by_name, key=lambda number: order(number)[0])
        for turn, number in enumerate(group)
    }
    return sorted(numbers, key=lambda number: (turns[number], hashed[number]))

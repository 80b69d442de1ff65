"""Votes on made-up replies, for tests of reward models."""

from __future__ import annotations

import random
from typing import Any

import numpy as np

from thumbwise.contracts import Comparison, Labels, Sample
from thumbwise.training.data.votes import Votes


def reply(seed: int, share: float, length: int = 12) -> Sample:
    """Random ids, `share` of them under 70."""
    rng = random.Random(seed)
    ids = [rng.randrange(5, 70) if rng.random() < share else rng.randrange(70, 300) for _ in range(length)]
    return Sample((), "", (1, 9, 20 + seed % 40), tuple(ids), "length", "policy-0000", meta={"id": str(seed)})


def make_labels(n: int, ties: int = 5, left: str = "random") -> Labels:
    """Comparisons won by the reply with more ids under 70; four a prompt."""
    rng = random.Random(1)
    made = []
    for k in range(n + ties):
        good_left = {"random": rng.random() < 0.5, "always": True}[left]
        pair = [reply(2 * k, 0.8), reply(2 * k + 1, 0.2)]
        if not good_left:
            pair.reverse()
        choice: Any = "tie" if k >= n else ("left" if good_left else "right")
        made.append(Comparison(f"c{k}", f"u{k % 6}", f"g{k // 4}", *pair, choice))
    return Labels(tuple(made))


def votes_on(left: Any, right: Any, good: Any, group: tuple[str, ...], rater: Any = None, raters: int = 1) -> Votes:
    """Votes of weight 1."""
    n = len(left)
    who = np.zeros(n, np.int64) if rater is None else np.asarray(rater)
    alike = np.ones(n, bool)
    return Votes(np.asarray(left), np.asarray(right), np.asarray(good, float), np.ones(n), group, who, raters, alike)

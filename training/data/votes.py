"""Turns labels into votes on numbered replies: comparisons, rankings, ties and thumbs in one table.

Each reply has one row, however often it was judged. "Both bad" is a tie: it says that neither reply is better. A
ranking is all of its pairs at once (InstructGPT, equation 1). However many pairs there are, together they weigh as much
as K - 1 comparisons, because that is what the drafts can say.

Votes are alike if their replies were sampled as the run samples. What a reward model knows of other votes says little
about what a policy is trained on: in a first try, thumbs on chat replies were predicted to 82%, and which of two drafts
is better was not predicted at all.

Left out: comments, and demonstrations, which are not votes.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from thumbwise.contracts import Comparison, Labels, Ranking, Sample, Thumb
from thumbwise.training.data import people

Array = NDArray[np.float64]
Ints = NDArray[np.int64]
Vote = Comparison | Ranking | Thumb
TIE = 0.5
FEW = 50
"""Thumbs weigh as if there were at least this weight of comparisons with a winner. With fewer votes than this, an
accuracy is little more than a guess.
"""
OUTCOME = {"left": 1.0, "right": 0.0, "tie": TIE, "both_bad": TIE}


@dataclass(frozen=True)
class Sampling:
    """How a run samples: at `temperature`, from the whole vocabulary, up to a stop token of the model's own.

    Replies have at most as many tokens as the replies that people judged, and at most `longest`
    (train.max_reply_tokens). If a judged reply does not name its limit, that was `max_tokens`.
    """

    temperature: float
    max_tokens: int
    longest: int

    def alike(self, sample: Sample) -> bool:
        """Whether a judged reply was sampled as the run samples. What is not known of its sampling counts as alike."""
        so = {"temperature": self.temperature, "top_p": 1.0, "stop": []}
        return len(sample.response_ids) <= self.longest and so.items() <= (so | _sampling(sample)).items()

    def limit(self, sample: Sample) -> int:
        """The token limit of a rollout that is to be like this reply."""
        return min(self.asked(sample), self.longest)

    def asked(self, sample: Sample) -> int:
        """The token limit that this reply had."""
        return int(_sampling(sample).get("max_tokens") or self.max_tokens)


def _sampling(sample: Sample) -> dict[str, Any]:
    return dict(sample.meta.get("sampling") or {})


@dataclass(frozen=True)
class Votes:
    """Votes on N replies, by row number: comparisons, then thumbs (`right` is -1 for a thumb).

    - `good` is 1 if the left reply won or the thumb is up, 0 if not, TIE for a tie.
    - `weight` is how much a vote counts.
    - `group` names its prompt.
    - `rater` [n] is the person who gave it, a number below `raters`.
    - `alike` [n] is whether its replies were sampled as the run samples.
    - `names` are the people's names.
    - `given` [raters] is how many votes each gave, including those that were set aside.
    - `young` are the names of those whose accounts are new.
    - `when` [n] are ids that sort in the order in which the votes were given.
    """

    left: Ints
    right: Ints
    good: Array
    weight: Array
    group: tuple[str, ...]
    rater: Ints
    raters: int
    alike: NDArray[np.bool_]
    names: tuple[str, ...] = ()
    given: Array | None = None
    when: tuple[str, ...] = ()
    young: frozenset[str] = frozenset()

    @property
    def counts(self) -> Array:
        """How many votes each person gave, [raters]."""
        return np.bincount(self.rater, minlength=self.raters).astype(float) if self.given is None else self.given

    def pick(self, which: NDArray[np.bool_]) -> Votes:
        """The votes where `which` is true."""
        kept = tuple(g for g, keep in zip(self.group, which, strict=True) if keep)
        when = tuple(w for w, keep in zip(self.when, which, strict=True) if keep) if self.when else ()
        return replace(
            self, left=self.left[which], right=self.right[which], good=self.good[which], weight=self.weight[which],
            group=kept, rater=self.rater[which], alike=self.alike[which], when=when,
        )  # fmt: skip

    def reweighted(self, factor: Array) -> Votes:
        """The same votes with their weights times `factor`."""
        return replace(self, weight=self.weight * factor)

    def with_others(self, factor: float) -> Votes:
        """The same votes; those on replies that were sampled otherwise weigh `factor` times as much."""
        return self.reweighted(np.where(self.alike, 1.0, factor))

    @property
    def is_pair(self) -> NDArray[np.bool_]:
        """True for comparisons with a winner."""
        return np.asarray((self.right >= 0) & (self.good != TIE))

    @property
    def is_tie(self) -> NDArray[np.bool_]:
        """True for comparisons without one."""
        return np.asarray((self.right >= 0) & (self.good == TIE))

    @property
    def is_thumb(self) -> NDArray[np.bool_]:
        """True for thumbs."""
        return self.right < 0

    @property
    def telling(self) -> NDArray[np.bool_]:
        """The votes that accuracy is counted on: comparisons with a winner, and thumbs, on replies that are alike."""
        return np.asarray(self.alike & (self.good != TIE))


def gather(labels: Labels, thumb_weight: float, sampling: Sampling | None = None) -> tuple[list[Sample], Votes]:
    """Unique replies, and the votes on them by row. Without `sampling` all are alike.

    Thumbs together weigh at most as much as the comparisons with a winner, or as FEW of them if there are fewer.
    """
    rows: dict[Any, int] = {}
    samples: list[Sample] = []
    names: dict[str, int] = {}

    def row(sample: Sample) -> int:
        key = sample.meta.get("id") or (sample.prompt_ids, sample.response_ids)
        if key not in rows:
            rows[key] = len(samples)
            samples.append(sample)
        return rows[key]

    def rater(vote: Vote) -> int:
        return names.setdefault(person_of(vote), len(names))

    def so(*judged: Sample) -> bool:
        return sampling is None or all(map(sampling.alike, judged))

    found = [
        (row(c.left), row(c.right), OUTCOME[c.choice], float(c.strength), c.group, rater(c), so(c.left, c.right), c.id)
        for c in labels.comparisons
    ]
    for ranking in labels.rankings:
        numbers, tiers = [row(draft) for draft in ranking.drafts], ranking.tiers
        pairs = list(combinations(range(len(numbers)), 2))
        for a, b in pairs:
            good = TIE if tiers[a] == tiers[b] else float(tiers[a] < tiers[b])
            counts = (len(numbers) - 1) / len(pairs)
            by, like = rater(ranking), so(*ranking.drafts)
            found.append((numbers[a], numbers[b], good, counts, ranking.group, by, like, ranking.id))
    given = votes_by_person(labels)
    untied = sum(vote[3] for vote in found if vote[2] != TIE)
    share = min(thumb_weight, max(untied, FEW) / max(1, len(labels.thumbs)))
    if share > 0:
        found += [(row(t.sample), -1, float(t.up), share, t.group, rater(t), so(t.sample), t.id) for t in labels.thumbs]
    left, right, outcome, weight, group, who, like_, when = zip(*found, strict=True) if found else ((),) * 8
    return samples, Votes(
        np.array(left, np.int64), np.array(right, np.int64), np.array(outcome), np.array(weight), tuple(group),
        np.array(who, np.int64), len(names), np.array(like_, bool), tuple(names),
        np.array([given[name] for name in names], float), tuple(when), labels.young,
    )  # fmt: skip


def alike(labels: Labels, sampling: Sampling) -> Labels:
    """The votes whose replies were all sampled as `sampling` says."""
    return replace(
        labels,
        comparisons=tuple(c for c in labels.comparisons if sampling.alike(c.left) and sampling.alike(c.right)),
        thumbs=tuple(t for t in labels.thumbs if sampling.alike(t.sample)),
        rankings=tuple(r for r in labels.rankings if all(map(sampling.alike, r.drafts))),
    )


def telling(labels: Labels, thumb_weight: float) -> int:
    """How many votes say which reply is better: what the reward model learns from. Ties only say how near two are.

    If there are only thumbs and all of them say the same, they tell nothing. Thumbs without weight tell nothing either.
    """
    untied = sum(c.choice in ("left", "right") for c in labels.comparisons)
    untied += sum(len(set(r.tiers)) > 1 for r in labels.rankings)
    thumbs = labels.thumbs if thumb_weight else ()
    return untied + len(thumbs) if untied or len({thumb.up for thumb in thumbs}) > 1 else 0


def person_of(vote: Vote) -> str:
    """The person that a vote counts as."""
    return vote.person or vote.user


def votes_by_person(labels: Labels) -> Counter[str]:
    """How many votes each person gave, including those set aside. A ranking of K drafts is K - 1 votes."""
    found: Counter[str] = Counter()
    votes: list[Vote] = [*labels.comparisons, *labels.thumbs, *labels.rankings]
    for vote in votes:
        found[person_of(vote)] += len(vote.drafts) - 1 if isinstance(vote, Ranking) else 1
    return found | Counter(labels.given)


def heard(labels: Labels, thumb_weight: float, share: float, enough: int) -> Labels:
    """The labels without a person's votes beyond that person's part (`thumbwise.training.data.people`)."""

    def weight(vote: Vote) -> float:
        if isinstance(vote, Ranking):
            return len(vote.drafts) - 1
        return float(vote.strength) if isinstance(vote, Comparison) else thumb_weight

    votes: list[Vote] = [*labels.comparisons, *labels.rankings, *labels.thumbs]
    counts, weights = votes_by_person(labels), dict[str, float]()
    for vote in votes:
        weights[person_of(vote)] = weights.get(person_of(vote), 0.0) + weight(vote)
    limits = people.vote_limits(weights, counts, share, enough, labels.young)
    kept = people.within(votes, limits, person_of, lambda vote: (vote.user, vote.id), weight)
    return Labels(
        tuple(vote for vote in kept if isinstance(vote, Comparison)),
        tuple(vote for vote in kept if isinstance(vote, Thumb)),
        tuple(vote for vote in kept if isinstance(vote, Ranking)),
        counts,
        labels.young,
    )


def bootstrap(votes: Votes, rng: np.random.Generator) -> Votes:
    """The votes, weighted by how often their prompts are drawn when prompts are drawn again with replacement.

    A draw without any weight is drawn again. That happens if the votes that remain are not trusted.
    """
    names = sorted(set(votes.group))
    while True:
        drawn = rng.multinomial(len(names), [1 / len(names)] * len(names))
        times = dict(zip(names, drawn.tolist(), strict=True))
        found = votes.reweighted(np.array([float(times[group]) for group in votes.group]))
        if found.weight.any() or not votes.weight.any():
            return found

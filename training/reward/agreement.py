"""How far a reward model agrees with votes that it was not fitted on: over all, by kind of vote and by length.

Left out: parts by the replies' token limit. Their actual length says what matters, and people can see it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from statistics import NormalDist

import numpy as np

from thumbwise.contracts import FitReport
from thumbwise.training.data.votes import FEW, Array, Votes
from thumbwise.training.evaluation.intervals import clustered_mean
from thumbwise.training.reward.prequential import LEAST, Mask, prequential_accuracy

LENGTHS = ((1, 64), (65, 256), (257, None))
"""Upper limits on the tokens of a vote's longest reply; None is no limit."""


def report(said: Array, votes: Votes, tokens: Sequence[int]) -> FitReport:
    """The accuracy of what a score `said` of votes on replies of `tokens` each, and its parts (`details["by"]`)."""
    longest = np.maximum(*(np.asarray([*tokens, 0])[rows] for rows in (votes.left, votes.right)))  # a thumb's -1 is 0
    parts = []
    for kind, which in (("pair", votes.is_pair), ("thumb", votes.is_thumb)):
        for low, high in LENGTHS:
            within = which & (longest >= low) & (longest <= (high or longest.max(initial=0)))
            accuracy, error, n = _accuracy(said[within], votes.pick(within))
            if n:
                parts.append({"kind": kind, "tokens": [low, high], "votes": n, "accuracy": accuracy, "error": error})
    accuracy, error, n = _accuracy(said, votes)
    return FitReport(accuracy, n, {"by": parts}, error)


def foretold(said: Array, votes: Votes, fit: FitReport) -> FitReport:
    """`fit`, plus how often a score `said` of votes, by models of the votes before them, agrees with the votes."""
    right = agreement(said, votes)
    told = ~np.isnan(right)
    sure = np.where(votes.is_pair, said, 1.0)  # a thumb's score says not how sure it is
    groups = [group for group, tells in zip(votes.group, told, strict=True) if tells]
    share, n, error = prequential_accuracy(right[told], sure[told], groups, _coin(said, votes)[told])
    return replace(fit, foretold=share, foretold_votes=n, foretold_error=error)


def told(fit: FitReport) -> str:
    """An accuracy and its parts, as a sentence."""
    if not fit.n:
        return "Reward model: no vote could be compared with a model that had not seen its conversation."
    parts = [_part(**part) for part in fit.details.get("by", [])]
    few = f" That is few: below {FEW} an accuracy is little more than a guess." if fit.n < FEW else ""
    by = f" ({', '.join(parts)})" if len(parts) > 1 else ""
    return f"Reward model: {fit.accuracy:.1%} of {fit.n} votes in cross-validation{by}.{few}"


def _part(kind: str, tokens: tuple[int, int | None], votes: int, accuracy: float, error: float) -> str:
    low, high = tokens
    length = f"over {low - 1}" if high is None else f"{low} to {high}"
    return f"{accuracy:.1%} of {votes} {kind}s at {length} tokens"


def _accuracy(said: Array, votes: Votes) -> tuple[float, float | None, int]:
    right = agreement(said, votes)
    told = ~np.isnan(right)
    if not told.any():
        return 0.5, None, 0
    prompts = [group for group, tells in zip(votes.group, told, strict=True) if tells]
    return *clustered_mean(right[told].tolist(), prompts), int(told.sum())


def agreement(said: Array, votes: Votes) -> Array:
    """How far a score agrees with each vote, [n]; NaN for votes that accuracy is not counted on.

    `said` [n] is what the score says of each vote: left minus right for comparisons, the reply's own score for thumbs,
    NaN for nothing.

    A comparison gets 1, 0, or 0.5 for equal scores.

    A thumb is compared with other thumbs of the same person. Thumbs of people with one thumb are compared with each
    other. The reason: lenient and strict people talk of different things, and who a thumb is from would tell its
    direction. The measure is the share of pairs of an up and a down that are ordered rightly: a stratified area under
    the ROC curve. It is 0.5 for a score that knows nothing, however rare one direction is. Its excess over 0.5 is
    scaled down to what comparisons would show (`as_pairs`).

    A thumb lies as far from the mean as its pairs together do, times n thumbs / M pairs (so it may be below 0 or above
    1). With one person that makes the variance of the area S10 / m_up + S01 / m_down (DeLong, DeLong and
    Clarke-Pearson, Biometrics 44, 1988, equation 5). With few thumbs each it is up to twice too large. It is too small
    if there is only a handful of one kind of thumb (`_coin`).
    """
    found, told = np.full(len(said), np.nan), votes.telling & ~np.isnan(said)
    pair, thumb = votes.is_pair & told, votes.is_thumb & told
    found[pair] = (np.sign(said[pair] * (2 * votes.good[pair] - 1)) + 1) / 2
    ordered, pairs = np.zeros(len(said)), np.zeros(len(said))
    for up, down in _against(thumb, votes):
        ordered[up], pairs[up] = _above(said[up], said[down]), down.sum()
        ordered[down], pairs[down] = _above(-said[down], -said[up]), up.sum()
    counted = pairs > 0
    if counted.any():
        area = ordered.sum() / pairs.sum()
        apart = (ordered - area * pairs)[counted] * counted.sum() / (pairs.sum() / 2)
        found[counted] = 0.5 + as_pairs(float(votes.good[counted].mean())) * (area - 0.5 + apart)
    return found


def _against(thumb: Mask, votes: Votes) -> Iterator[tuple[Mask, Mask]]:
    """Thumbs up and thumbs down that are compared, [n] each: of one person, or of people with one thumb."""
    often = np.bincount(votes.rater[thumb], minlength=votes.raters) > 1
    stratum = np.where(often[votes.rater], votes.rater, -1)
    for number in np.unique(stratum[thumb]):
        up, down = (thumb & (stratum == number) & (votes.good == good) for good in (1, 0))
        yield up, down


def _coin(said: Array, votes: Votes) -> Array:
    """How far each vote's agreement with a score that knows nothing spreads about a half, [n].

    For a thumb, n of them spread as their area does. The variance of the area is then known: M (m_up + m_down + 1) / 12
    of each person's M = m_up m_down pairs (Mann and Whitney, Ann. Math. Statist. 18, 1947). If there are few thumbs of
    one kind, the spread that those few show is too small.
    """
    found, thumb = np.full(len(said), LEAST), votes.is_thumb & votes.telling & ~np.isnan(said)
    counts = np.array([(up.sum(), down.sum()) for up, down in _against(thumb, votes)], float).reshape(-1, 2)
    ups, downs = counts[counts.all(1)].T
    pairs = ups * downs
    if pairs.size:
        n = (ups + downs).sum()
        area = math.sqrt((pairs * (ups + downs + 1)).sum() / 12) / pairs.sum()
        found[thumb] = as_pairs(ups.sum() / n) * area * math.sqrt(n)
    return found


def as_pairs(ups: float) -> float:
    """Scales the excess over 0.5 of a thumb's area under the ROC curve to that of comparisons; `ups`: share of ups.

    A reply that got a thumb up and one that got a thumb down are further apart than any two replies are. Suppose that
    what people like and the score are normal with correlation r. Then comparisons are ordered rightly 1/2 + asin(r) /
    pi of the time. With a share `ups` above t, the area is 1/2 + r pdf(t) / (sqrt(4 pi) ups (1 - ups)) to the first
    order: sqrt(2) times as far from 1/2 if half the thumbs are up. This is within 1 point up to 70%, and 4 points below
    at 80%.
    """
    normal = NormalDist()
    return 2 / math.sqrt(math.pi) * ups * (1 - ups) / normal.pdf(normal.inv_cdf(ups))


def _above(scores: Array, others: Array) -> Array:
    """The number of `others` that each score is above; equal ones count half."""
    ranks = [np.searchsorted(np.sort(others), scores, side) for side in ("left", "right")]
    above: Array = (ranks[0] + ranks[1]) / 2
    return above

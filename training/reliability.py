"""How far to trust each rater: weights from how their votes fit what all the others' votes say, and a cap.

A rater's vote agrees with the better reply with probability eta: P(left) = eta s(d) + (1 - eta) s(-d) (Chen et al.
2013, "Pairwise ranking aggregation in a crowdsourced setting", WSDM, equation 6), with d the log-odds by the votes of
all others, each weighted with what is believed of them. Over a few values of eta with a prior that most people are
honest this gives a posterior, whose mean of 2 eta - 1 is the information in a vote: 1 for somebody always right, 0 for
a coin, and below 0 for somebody who votes against, whose votes are then dropped.

Beliefs hang on each other. Begun with everybody trusted they stay there where contrary votes have made the opinion of
all no better than chance. So they begin with how far each two raters bear each other out: the leading eigenvector of
that shows the camps (Dalvi et al. 2013, "Aggregating crowdsourced binary ratings", WWW, for items that several have
voted on; here votes on different replies meet in a ridge regression on the features). The larger camp is believed.

Left out: turning contrary votes round in the reward model, because whoever knows of it could steer by it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from thumbwise.training.votes import FEW, Array, Votes

ETA = np.array([0.1, 0.3, 0.5, 0.7, 0.9])
PRIOR = np.array([0.06, 0.02, 0.06, 0.2, 0.66])
SCALES = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0)
"""Of margins with a root mean square of 1, to log-odds; the likeliest is taken (0: they say nothing)."""
LEAST_RATERS = 5
"""Below that there is no crowd to hold anybody against."""
MOST_DROPPED = 0.45
"""Of the votes; where more would be, there are camps, and which of them is right is not in the votes."""
ROUNDS = 10


def trust(margins: Array, lean: Array, rater: NDArray[np.int64], raters: int, counts: Array) -> Array:
    """The posterior mean of 2 eta - 1 of each rater as a share of the prior's, [raters].

    `margins` [n] are how far others' votes bear each vote out, in any unit; 0 says nothing. `lean` [n] are the log-odds
    that its rater votes so, whatever is asked; `counts` [n] how many independent votes each is.
    """
    unit = float(np.sqrt((margins**2).mean())) or 1.0
    best, posterior = -np.inf, np.tile(PRIOR, (raters, 1))
    for scale in SCALES:
        with_others = 1 / (1 + np.exp(-scale / unit * margins - lean))[:, None]
        against = 1 / (1 + np.exp(scale / unit * margins - lean))[:, None]
        total = np.tile(np.log(PRIOR), (raters, 1))
        np.add.at(total, rater, counts[:, None] * np.log(ETA * with_others + (1 - ETA) * against))
        evidence = np.logaddexp.reduce(total, axis=1)
        if evidence.sum() > best:
            best, posterior = evidence.sum(), np.exp(total - evidence[:, None])
    beliefs: Array = posterior @ (2 * ETA - 1) / (PRIOR @ (2 * ETA - 1))
    return beliefs


def capped(totals: Array, share: float, least: float) -> Array:
    """Factors [raters] that bring nobody's part of the sum over `share`, or over an equal part where that is more.

    Nobody is brought below `least` votes: beside a few guests with a vote each, the one who votes is worth hearing.
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
    factors: Array = np.minimum(1.0, max(level, least) / np.maximum(totals, 1e-12))
    return factors


class Crowd:
    """What each rater's votes say, as a direction among the features, and how votes look from there."""

    def __init__(self, seen: Array, votes: Votes) -> None:
        """`seen` [n, D] is what each vote sees of the features (`heads.observed`)."""
        self.rater, thumb = votes.rater, votes.is_thumb
        self.sign = np.where(votes.is_tie, 0.0, 2 * votes.good - 1)
        self.totals = np.bincount(votes.rater, votes.weight, votes.raters)
        # Where somebody's thumbs turn is their own: only what they like better than the rest of theirs tells.
        thumbs = np.bincount(votes.rater, thumb, votes.raters)
        ups = np.bincount(votes.rater, thumb * votes.good, votes.raters)
        mean = np.zeros((votes.raters, seen.shape[1]))
        np.add.at(mean, votes.rater[thumb], seen[thumb])
        mean /= np.maximum(thumbs, 1)[:, None]
        self.seen = np.where(thumb[:, None], seen - mean[votes.rater], seen)
        self.lean = np.where(thumb, self.sign * np.log((ups + 1) / (thumbs - ups + 1))[votes.rater], 0.0)
        said = np.zeros_like(mean)
        np.add.at(said, votes.rater, (self.sign * votes.weight)[:, None] * self.seen)
        # A ridge of one vote's size told contrary raters best, of 0.03 to 3 times that (docs/experiments.md).
        ridge = max(float((self.seen**2).sum(1).mean()), 1e-12) * np.eye(seen.shape[1])
        self.directions = np.linalg.solve(self.seen.T @ self.seen + ridge, said.T).T
        self.agreement = self.directions @ said.T
        self.own = (self.seen * self.directions[votes.rater]).sum(1)

    def margins(self, beliefs: Array) -> Array:
        """How far the others' votes, each rater's times `beliefs` [raters], bear each vote out, [n]."""
        found: Array = self.sign * (self.seen @ (beliefs @ self.directions) - beliefs[self.rater] * self.own)
        return found

    def camps(self, factors: Array) -> Array:
        """Leading eigenvector of the raters' agreement, [raters], its largest part 1; above 0 is the larger camp.

        `factors` [raters] weigh their votes.
        """
        among = self.agreement * factors[:, None] * factors
        np.fill_diagonal(among, 0.0)
        first = np.linalg.eigh(among)[1][:, -1]
        larger = np.sign(np.sign(first) @ (factors * self.totals))
        found: Array = larger * first / max(float(np.abs(first).max()), 1e-12)
        return found


def rater_weights(seen: Array, votes: Votes, share: float) -> Array:
    """A factor in [0, 1] a rater, [raters]: trust times what the cap leaves; all 1 where there are few raters.

    Nobody has more than `share` of all weight, or than FEW votes where that is more. Only evidence against somebody
    costs weight: with a few votes each, praise would be luck.
    """
    if votes.raters < LEAST_RATERS:
        return np.ones(votes.raters)
    crowd = Crowd(seen, votes)

    def cap(beliefs: Array) -> Array:
        found: Array = beliefs * capped(crowd.totals * np.abs(beliefs), share, FEW)
        return found

    # A ranking of K is K - 1 votes, not as many as it has pairs; how loud a vote is makes it no surer.
    counts = np.where(votes.is_thumb, 1.0, np.minimum(votes.weight, 1.0))
    everybody = cap(np.ones(votes.raters))
    beliefs = crowd.camps(everybody)
    for _ in range(ROUNDS):
        beliefs = trust(crowd.margins(cap(beliefs)), crowd.lean, votes.rater, votes.raters, counts)
    trusted = beliefs.clip(0, 1)
    dropped = 1 - (crowd.totals * everybody * trusted).sum() / max(float((crowd.totals * everybody).sum()), 1e-12)
    return everybody if dropped > MOST_DROPPED else cap(trusted)

"""How far to trust each rater: weights from how well their votes fit all other votes, and a cap.

A rater's vote agrees with the better reply with probability eta: P(left) = eta s(d) + (1 - eta) s(-d) (Chen et al.
2013, "Pairwise ranking aggregation in a crowdsourced setting", WSDM, equation 6). Here d is the log-odds by the votes
of all others, each weighted by how far it is believed. The posterior is over a few values of eta, with a prior that
most people are honest. Its mean of 2 eta - 1 is the information in a vote: 1 for somebody who is always right, 0 for a
coin, and below 0 for somebody who votes against. Votes below 0 are dropped.

Each belief depends on the others. Suppose that we start by trusting everybody, and contrary votes have made the common
opinion no better than chance. Then the estimate never leaves that start. So beliefs start from how far each pair of
raters agrees. The leading eigenvector of the agreements shows the camps (Dalvi et al. 2013, "Aggregating crowdsourced
binary ratings", WWW, for items that several have voted on; here votes on different replies meet in a ridge regression
on the features). The camp with more people is believed. Only people with ten votes or more count, because votes are
cheap for a program, and so are guests with one vote each. If that would silence many people, nothing is chosen, because
the votes do not say which camp is right.

A rater is a person (`thumbwise.training.data.people`).

Left out: reversing contrary votes in the reward model. Somebody who knows of it could steer by it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from thumbwise.errors import ThumbwiseError
from thumbwise.feedback.migrations import BROWSERS_BEFORE
from thumbwise.training.data.people import FEW, LEAST_CROWD, SETTLED, capped, unknown_as_one
from thumbwise.training.data.votes import Array, Votes

ETA = np.array([0.1, 0.3, 0.5, 0.7, 0.9])
PRIOR = np.array([0.06, 0.02, 0.06, 0.2, 0.66])
SCALES = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0)
"""Scales from margins with a root mean square of 1 to log-odds. The likeliest is taken (0: they say nothing)."""
MOST_SILENCED = 0.2
"""The largest share of people with SETTLED votes who may be dropped. If more would be, there are camps."""
MOST_DROPPED = 0.45
"""The largest share of the votes as given that may be dropped, unless MANY people with SETTLED votes are believed."""
MANY = 10
ROUNDS = 10
NAMED = 8
"""People who are named in a sentence."""


class Camps(ThumbwiseError):
    """Trust would silence too many people. The message says who they are."""


def trust(margins: Array, lean: Array, rater: NDArray[np.int64], raters: int, counts: Array) -> Array:
    """The posterior mean of 2 eta - 1 of each rater, as a share of the prior's, [raters].

    - `margins` [n] are how far others' votes agree with each vote, in any unit; 0 says nothing.
    - `lean` [n] are the log-odds that its rater votes so, whatever the question.
    - `counts` [n] are how many independent votes each one is worth.
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


class Crowd:
    """What each rater's votes say, as a direction among the features, and how votes look from that direction."""

    def __init__(self, seen: Array, votes: Votes) -> None:
        """`seen` [n, D] is what each vote sees of the features (`heads.observed`)."""
        self.rater, thumb = votes.rater, votes.is_thumb
        self.sign = np.where(votes.is_tie, 0.0, 2 * votes.good - 1)
        self.totals = np.bincount(votes.rater, votes.weight, votes.raters)
        self.settled = votes.counts >= SETTLED
        # Everybody has a threshold for thumbs: only what a person likes better than the rest of theirs tells.
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
        """How far the others' votes, each rater's times `beliefs` [raters], agree with each vote, [n]."""
        found: Array = self.sign * (self.seen @ (beliefs @ self.directions) - beliefs[self.rater] * self.own)
        return found

    def camps(self, factors: Array) -> Array:
        """Leading eigenvector of the raters' agreement, [raters], largest entry 1. Entries above 0 are the larger camp.

        `factors` [raters] weigh their votes. The larger camp is the one with more settled people.
        """
        among = self.agreement * factors[:, None] * factors
        np.fill_diagonal(among, 0.0)
        first = np.linalg.eigh(among)[1][:, -1]
        larger = np.sign(np.sign(first) @ self.settled)
        found: Array = larger * first / max(float(np.abs(first).max()), 1e-12)
        return found


def rater_weights(seen: Array, votes: Votes, share: float, strict: bool = False) -> Array:
    """A factor in [0, 1] for each rater, [raters]: trust times the cap's factor. All are 1 if there is no crowd.

    Nobody has more than `share` of all weight, or than FEW votes if that is more. Only evidence against somebody costs
    weight: with a few votes each, agreement would be luck. If trust would silence too many people, it is left out; with
    `strict` that raises Camps.
    """
    if _people(votes, votes.counts >= SETTLED) < LEAST_CROWD:
        return np.ones(votes.raters)
    crowd = Crowd(seen, votes)
    settled = crowd.settled
    whole = np.array([name == BROWSERS_BEFORE for name in votes.names] or [False])

    def cap(beliefs: Array) -> Array:
        factors = np.where(whole, 1.0, capped(crowd.totals * np.abs(beliefs), share, FEW))
        found: Array = beliefs * factors
        return found

    # A ranking of K drafts is K - 1 votes, not one for each pair. A stronger vote is not a surer one.
    counts = np.where(votes.is_thumb, 1.0, np.minimum(votes.weight, 1.0))
    everybody = cap(np.ones(votes.raters))
    beliefs = crowd.camps(everybody)
    for _ in range(ROUNDS):
        beliefs = trust(crowd.margins(cap(beliefs)), crowd.lean, votes.rater, votes.raters, counts)
    silenced = beliefs <= 0
    if _people(votes, silenced & settled) > max(1, MOST_SILENCED * _people(votes, settled)):
        if strict:
            raise Camps(_two_camps(votes, silenced & settled, settled))
        return everybody
    dropped = votes.counts[silenced].sum() / max(float(votes.counts.sum()), 1.0)
    if dropped > MOST_DROPPED and _people(votes, settled & ~silenced) < MANY:
        return everybody  # a handful of people cannot silence those who gave most of the votes
    return cap(beliefs.clip(0, 1))


def _people(votes: Votes, which: NDArray[np.bool_]) -> int:
    """The least number of people that the raters `which` are: those who may be anybody may all be one person."""
    names = votes.names or tuple(map(str, range(votes.raters)))
    return len({unknown_as_one(names[number]) for number in np.flatnonzero(which)})


def _two_camps(votes: Votes, silenced: NDArray[np.bool_], settled: NDArray[np.bool_]) -> str:
    names = [votes.names[number] for number in np.flatnonzero(silenced)] if votes.names else []
    whose = f" ({', '.join(names[:NAMED])}{', ...' if len(names) > NAMED else ''})" if names else ""
    against, among = _people(votes, silenced), _people(votes, settled)
    return (
        f"The votes form two camps, and they do not say which camp is right: {against} of {among} people with "
        f"{SETTLED} votes or more contradict the others{whose}. Look at what they vote for; "
        "train.rm_rater_weights = false in config.toml counts both sides equally."
    )

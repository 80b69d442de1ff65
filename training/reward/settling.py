"""Votes of young accounts: until they are borne out, all of them together are one person's.

Accounts are cheap where anybody may sign up, and whoever makes thirty would be thirty people. So what the votes of
settled accounts teach is estimated without the young ones. A young account whose own votes agree with that
significantly better than chance is a person of its own at once. The others share one person's part.

The test: each vote has a margin, by which settled people's votes agree with it. If the account voted at random, the
margins' signs would be coins, and their sum over the root of their sum of squares about a standard normal variable. An
account that passes by luck does no harm: passing means that its votes agree.

Where no settled account has voted enough, everybody counts: a new team is young as a whole.

Left out: testing inside each fold of cross-validation. The accuracy counts votes of accounts that were found to agree,
so it is a little too high while there are young accounts.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from thumbwise.training.data.people import (
    FEW,
    LEAST_CROWD,
    NEW_ACCOUNTS,
    SETTLED,
    beside_settled,
    unknown_as_one,
    within,
)
from thumbwise.training.data.votes import Array, Votes
from thumbwise.training.reward.reliability import Crowd, rater_weights

SURE = 1.645
"""Standard deviations above chance at which an account is borne out: the 95% point of the normal distribution."""


def settled(seen: Array, votes: Votes, share: float, enough: int) -> Votes:
    """The votes, where young accounts that are not borne out are one rater, with one person's part of all votes.

    `seen` [n, D] is what each vote sees of the features. The part is `share` of all weight, or an equal part if that is
    more, but at least FEW votes; where there is no crowd, at least the votes that training needs (`enough`).
    """
    counts = {name: int(count) for name, count in zip(votes.names, votes.counts, strict=True)}
    young = beside_settled(counts, votes.young)
    if not young or share >= 1:
        return votes
    unproven = np.array([name in young for name in votes.names]) & ~borne_out(seen, votes, young, share)
    theirs = unproven[votes.rater]
    if not theirs.any():
        return votes
    others = float(votes.weight[~theirs].sum())
    known = {unknown_as_one(name) for name in counts if name not in young and counts[name] >= SETTLED}
    part = max(share, 1 / (1 + len(known)))
    limit = max(part / (1 - part) * others, FEW if len(known) >= LEAST_CROWD else max(FEW, enough))
    weight: dict[str, float] = {}
    for number in np.flatnonzero(theirs):
        weight[votes.when[number]] = weight.get(votes.when[number], 0.0) + float(votes.weight[number])
    whose = {votes.when[number]: votes.names[votes.rater[number]] for number in np.flatnonzero(theirs)}
    heard = set(within(list(weight), {"": limit}, lambda id_: "", lambda id_: (whose[id_], id_), weight.__getitem__))
    kept = np.array([not his or id_ in heard for his, id_ in zip(theirs, votes.when, strict=True)], bool)
    return _as_one(votes.pick(kept), unproven, len(heard))


def borne_out(seen: Array, votes: Votes, young: frozenset[str], share: float) -> NDArray[np.bool_]:
    """Whether each rater's own votes agree with those of settled accounts significantly better than chance, [raters].

    Only raters with SETTLED votes can be.
    """
    older = np.array([name not in young for name in votes.names])
    among = older[votes.rater]
    counts = np.where(older, votes.counts, 0.0)
    trusted = rater_weights(seen[among], replace(votes.pick(among), given=counts), share) * older
    crowd = Crowd(seen, votes)
    margins = crowd.margins(trusted)
    said = sorted(set(zip(votes.rater.tolist(), votes.when, strict=True)))
    row = {vote: number for number, vote in enumerate(said)}
    total = np.zeros(len(said))  # of a ranking all pairs: they are one vote
    np.add.at(total, [row[vote] for vote in zip(votes.rater.tolist(), votes.when, strict=True)], margins)
    rater = np.array([vote[0] for vote in said], np.int64)
    agreed = np.bincount(rater, total, votes.raters)
    spread = np.sqrt(np.bincount(rater, total**2, votes.raters))
    enough = votes.counts >= SETTLED
    return np.asarray(enough & (agreed > SURE * np.maximum(spread, 1e-12)))


def _as_one(votes: Votes, which: NDArray[np.bool_], count: int) -> Votes:
    """The votes with the raters `which` as one, who gave `count` votes."""
    numbers = np.where(which, votes.raters, np.arange(votes.raters))
    counts = np.append(np.where(which, 0.0, votes.counts), float(count))
    names = (*votes.names, NEW_ACCOUNTS)
    return replace(votes, rater=numbers[votes.rater], raters=votes.raters + 1, names=names, given=counts)

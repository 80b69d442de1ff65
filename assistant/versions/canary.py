"""Decides about a canary, and about a version that has just become stable, from what people met and said.

Three tests watch a canary: replies that failed, thumbs down, and blind comparisons with stable. The first two take only
turns outside comparisons, and only of people to whom the rollout gave their version. Each is anytime-valid
(`thumbwise.versions.evidence`) and runs at alpha = `canary.level` / 3 (Bonferroni). So the probability that a canary
which is no worse is ever taken back is at most `canary.level`, however often we look. The canary is taken back as
soon as a test rejects its null hypothesis. It becomes stable once enough people met it and judged it, or at a greatest
age. After that one test goes on, at alpha = `canary.level`: blind comparisons with the version before.

People count, not turns: of one person only the first few outcomes of each kind do, whatever names a program gives. And
opinions take a version back only where the test rejects without any one person too, unless `canary.people` is 1. A
failed reply is the server's own measurement and no opinion, so there the turns of one person are enough.

Rows are read once, in the order in which they were written, so a clock that is set back loses none. Turns that still
stream are looked at again when they have ended.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

from thumbwise.feedback.records import REFUSED, TELLING, now_ns, tier_of
from thumbwise.settings.values import seconds_of
from thumbwise.versions.evidence import Preferences, Rates, Stream

if TYPE_CHECKING:
    from sqlite_utils import Database

    from thumbwise.feedback.store import Store
    from thumbwise.settings.canary import CanarySettings
    from thumbwise.versions.record import Pointer

TESTS = 3
"""How many tests watch a canary: each gets this part of `canary.level`."""

_TURN = "rowid AS at, policy_version, user_id, conversation_id, person, state, coalesce(finish_reason, '') AS reason"
TURNS = f"SELECT {_TURN} FROM replies WHERE rowid > ? AND comparison_id IS NULL ORDER BY rowid"
AGAIN = f"SELECT {_TURN} FROM replies WHERE rowid IN (SELECT value FROM json_each(?)) ORDER BY rowid"
THUMBS = """
    SELECT f.person, f.value, r.id, r.policy_version, r.user_id, r.conversation_id
    FROM feedback f CROSS JOIN replies r ON r.id = f.message_id
    WHERE f.seq > ? AND f.kind = 'thumb' AND r.rowid > ? AND r.comparison_id IS NULL ORDER BY f.seq
"""
PAIRS = f"""
    SELECT f.person, f.value, c.shown, (
        SELECT json_group_object(id, policy_version) FROM replies WHERE comparison_id = c.id) AS versions
    FROM feedback f CROSS JOIN comparisons c ON c.id = f.comparison_id WHERE f.seq > ? AND {TELLING} ORDER BY f.seq
"""
LAST = "SELECT (SELECT max(rowid) FROM replies) AS reply, (SELECT max(seq) FROM feedback) AS vote"


@dataclass(frozen=True)
class Review:
    """What to do with a canary now; both are empty while it goes on."""

    against: str = ""
    """Why it is taken back. A canary that is no worse ever gets this with a probability of at most `canary.level`."""
    ready: str = ""
    """Why it becomes stable."""


class Blind:
    """Blind comparisons of a version with an older one, in votes after `since` (a `seq`)."""

    def __init__(self, new: str, old: str, since: int, each: int) -> None:
        self.new, self.old, self.since, self.seq = new, old, since, since
        self.stream = Stream(Preferences, each)
        self.judged: Stream[Preferences] = Stream(Preferences, each)  # counts all, also those without a winner

    def read(self, db: Database) -> None:
        """Take in the votes that came since the last time."""
        for row in db.query(PAIRS, [self.seq]):
            versions = json.loads(row["versions"])
            tier = tier_of(json.loads(row["value"]), json.loads(row["shown"]))
            mine, theirs = ([draft for draft in tier if versions[draft] == which] for which in (self.new, self.old))
            if not mine or not theirs:
                continue
            self.judged.add(row["person"], True, False)
            # With several drafts of each version this is one outcome: pairs of one vote are not independent.
            lead = sum((tier[a] > tier[b]) - (tier[a] < tier[b]) for a, b in product(mine, theirs))
            if lead:
                self.stream.add(row["person"], True, lead > 0)

    def said(self, old: str) -> str:
        """The outcome in words."""
        test = self.stream.test
        return f"{old} was preferred in {test.lost} of {test.pairs} blind comparisons"


class Rollout:
    """What was read about one canary: the outcomes of each kind, each with its test."""

    def __init__(self, pointer: Pointer, settings: CanarySettings) -> None:
        assert pointer.canary is not None
        self.rollout, self.settings = pointer.rollout, settings
        self.at = self.first = pointer.from_reply
        self.replies, self.thumbs = Stream(Rates, settings.each), Stream(Rates, settings.each)
        self.blind = Blind(pointer.canary, pointer.stable, pointer.from_vote, settings.each)
        self._streaming: set[int] = set()
        self._thumbed: set[tuple[str, str]] = set()

    def read(self, db: Database, pointer: Pointer) -> None:
        """Take in what was written since the last time."""
        last = next(iter(db.query(LAST)))
        again = json.dumps(sorted(self._streaming))
        for sql, given in ((AGAIN, again), (TURNS, self.at)):
            for row in db.query(sql, [given]):
                self._turn(row, pointer)
        for row in db.query(THUMBS, [self.blind.seq, self.first]):
            self._thumb(row, pointer)
        self.blind.read(db)
        self.at, self.blind.seq = last["reply"] or 0, last["vote"] or 0

    def _turn(self, row: dict[str, Any], pointer: Pointer) -> None:
        if row["state"] == "streaming":
            self._streaming.add(row["at"])
            return
        self._streaming.discard(row["at"])
        if row["state"] in ("done", "failed") and row["reason"] != REFUSED and _assigned(row, pointer):
            self.replies.add(row["person"], row["policy_version"] == pointer.canary, row["state"] == "failed")

    def _thumb(self, row: dict[str, Any], pointer: Pointer) -> None:
        said = (row["id"], row["person"])
        if said in self._thumbed:
            return  # a change of mind: the first thumb counts, since whether people change it depends on the thumb
        self._thumbed.add(said)
        value = json.loads(row["value"])["thumb"]
        if value != "clear" and _assigned(row, pointer):
            self.thumbs.add(row["person"], row["policy_version"] == pointer.canary, value == "down")

    def review(self, since: int) -> Review:
        """What to do now; the rollout began at `since` (UTC ns)."""
        alpha = self.settings.level / TESTS
        failed, thumbs, blind = self.replies, self.thumbs, self.blind.stream
        against = []
        if failed.test.p <= alpha:
            against.append(failed.test.said("of its replies failed"))
        opinions: list[tuple[Stream[Rates] | Stream[Preferences], str]] = [
            (thumbs, thumbs.test.said("of its thumbs were down")),
            (blind, self.blind.said("stable")),
        ]
        rejecting = [(stream, said) for stream, said in opinions if stream.test.p <= alpha]
        enough = self.settings.people == 1  # then one person's opinion is
        against += [said for stream, said in rejecting if enough or not stream.depends_on_one_person(alpha)]
        if against:
            return Review(against="; ".join(against))
        return Review(ready=self._ready(since, bool(rejecting)))

    def _ready(self, since: int, one_against: bool) -> str:
        need, turns = self.settings, self.replies.test.all.turns
        people = len(self.replies.people() | self.thumbs.people() | self.blind.judged.people())
        judged = self.thumbs.test.all.turns + self.blind.judged.test.pairs
        met = f"no worse than stable (turns: {turns}, judgements: {judged}, people: {people})"
        if one_against:  # wait: others may still say something
            met += ", though one person alone judges it worse"
        elif turns >= need.turns and people >= need.people and judged >= need.judgements:
            return met
        if need.max_age and now_ns() - since >= seconds_of(need.max_age) * 1e9:
            return f"at its greatest age, {need.max_age}, {met}"
        return ""


def _assigned(row: dict[str, Any], pointer: Pointer) -> bool:
    """Whether the rollout chose this turn's version; a request may name one instead."""
    mine = row["policy_version"] == pointer.version_for(row["user_id"], row["conversation_id"])
    return mine and row["policy_version"] in (pointer.canary, pointer.stable)


class Reviewer:
    """Tests the canary, or the version that has just become stable; keeps what it has read. Blocking."""

    def __init__(self, store: Store, settings: CanarySettings) -> None:
        self.store, self.settings = store, settings
        self._rollout: Rollout | None = None
        self._swap: Blind | None = None

    def canary(self, pointer: Pointer) -> Review:
        """What to do with the canary now."""
        known, self._rollout = self._rollout, None  # an error half-way: next time everything is read again
        if known is None or known.rollout != pointer.rollout:
            known = Rollout(pointer, self.settings)
        with self.store.reading() as db:
            known.read(db, pointer)
        self._rollout = known
        return known.review(pointer.since)

    def swap(self, new: str, old: str, since: int) -> str:
        """Why `new`, stable since a vote, should give way to `old`, the version before it; or nothing."""
        swap, self._swap = self._swap, None
        if swap is None or (swap.new, swap.old, swap.since) != (new, old, since):
            swap = Blind(new, old, since, self.settings.each)
        with self.store.reading() as db:
            swap.read(db)
            swap.seq = next(iter(db.query(LAST)))["vote"] or 0
        self._swap = swap
        alpha = self.settings.level
        if swap.stream.test.p > alpha:
            return ""
        one_person = self.settings.people > 1 and swap.stream.depends_on_one_person(alpha)
        return "" if one_person else swap.said(old)

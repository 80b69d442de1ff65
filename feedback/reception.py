"""How people received each version: how often it answered, at what length, and what they thought of it.

Training and its gates see replies that are cut at `max_tokens`. Only chat shows how long replies get without this
limit. So lengths are of whole replies outside comparisons, without those that a reader stopped or that failed.
Comparisons draw, blind, from stable and the canary, or else the version before. What people prefer there is the only
measure of progress in which neither reward model nor judge has a part. Left out: likert ratings and flags, until a
page asks for them; who the people are, so somebody who votes often counts often.
"""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass
from itertools import permutations
from typing import TYPE_CHECKING

from thumbwise.feedback.records import TELLING, tier_of

if TYPE_CHECKING:
    from sqlite_utils import Database

    from thumbwise.feedback.store import Store

REPLIES = """
    SELECT policy_version AS version, sum(state = 'done') AS done, sum(state = 'stopped') AS stopped,
        sum(state = 'failed') AS failed,
        avg(CASE WHEN state = 'done' THEN json_array_length(response_ids) END) AS tokens,
        avg(CASE WHEN state = 'done' THEN finish_reason = 'stop' END) AS ended
    FROM replies WHERE comparison_id IS NULL AND state <> 'streaming' GROUP BY policy_version
"""
THUMBS = """
    SELECT r.policy_version AS version, json_extract(f.value, '$.thumb') AS thumb, count(*) AS n
    FROM current_on_replies f JOIN replies r ON r.id = f.message_id
    WHERE f.kind = 'thumb' GROUP BY version, thumb
"""
VOTES = f"""
    SELECT f.value, c.shown FROM feedback f JOIN comparisons c ON c.id = f.comparison_id WHERE {TELLING}
"""
DRAFTS = "SELECT id, policy_version FROM replies WHERE comparison_id IS NOT NULL"
NOTHING = {"done": 0, "stopped": 0, "failed": 0, "tokens": None, "ended": None}
_ON_VERSION = f"""
    SELECT f.person, f.value, c.shown, json_group_object(d.id, d.policy_version) AS versions
    FROM (SELECT DISTINCT comparison_id FROM replies WHERE policy_version = ? AND comparison_id IS NOT NULL) mine
    JOIN comparisons c ON c.id = mine.comparison_id JOIN feedback f ON f.comparison_id = c.id
    JOIN replies d ON d.comparison_id = c.id WHERE {TELLING} GROUP BY f.seq
"""
VERSIONS = "SELECT DISTINCT policy_version AS version FROM replies ORDER BY 1"


@dataclass
class Preference:
    """Pairs of drafts, and how many of them the version won; a tie counts half."""

    won: float = 0.0
    pairs: int = 0


@dataclass(frozen=True)
class Reception:
    """What people met of one version; means and shares are None if there are no replies for them."""

    version: str
    done: int
    """Whole replies outside comparisons."""
    stopped: int
    """Replies that their reader cut short."""
    failed: int
    tokens: float | None
    """Mean length of whole replies."""
    ended: float | None
    """Share of whole replies that ended by themselves, not at `max_tokens`."""
    up: int
    down: int
    preferred: dict[str, Preference]
    """By the other version: pairs of drafts of one comparison, one of each version, that somebody judged."""


def reception(store: Store) -> list[Reception]:
    """How people received each version that answered somebody, by name; blocking, without the store's lock."""
    with store.reading() as db:
        versions = [str(row["version"]) for row in db.query(VERSIONS)]
        said = {row["version"]: row for row in db.query(REPLIES)}
        thumbs = {(row["version"], row["thumb"]): int(row["n"]) for row in db.query(THUMBS)}
        preferred = _preferences(db)
    return [
        Reception(
            **said.get(version, {**NOTHING, "version": version}),
            up=thumbs.get((version, "up"), 0),
            down=thumbs.get((version, "down"), 0),
            preferred=dict(preferred[version]),
        )
        for version in versions
    ]


def _preferences(db: Database) -> defaultdict[str, defaultdict[str, Preference]]:
    """By version and other version, over all votes on comparisons."""
    version_of = {row["id"]: row["policy_version"] for row in db.query(DRAFTS)}
    preferred: defaultdict[str, defaultdict[str, Preference]] = defaultdict(lambda: defaultdict(Preference))
    for row in db.query(VOTES):
        tier = tier_of(json.loads(row["value"]), json.loads(row["shown"]))
        for one, other in permutations(tier, 2):
            if version_of[one] != version_of[other]:
                pair = preferred[version_of[one]][version_of[other]]
                pair.won += 0.5 if tier[one] == tier[other] else tier[one] < tier[other]
                pair.pairs += 1
    return preferred


def preferred(store: Store, version: str) -> list[tuple[str, float]]:
    """Each blind pair of a draft of this version and another's: who judged it, and 1 if it won, a half for a tie."""
    found: list[tuple[str, float]] = []
    with store.reading() as db:
        for row in db.query(_ON_VERSION, [version]):
            of = json.loads(row["versions"])
            tier = tier_of(json.loads(row["value"]), json.loads(row["shown"]))
            for one, other in permutations(tier, 2):
                if of[one] == version != of[other]:
                    found.append((row["person"], 0.5 if tier[one] == tier[other] else float(tier[one] < tier[other])))
    return found

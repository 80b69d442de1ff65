"""What learned from a person's votes, and how people receive it. It says nothing where nothing is known."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from thumbwise.feedback.mine import OWN
from thumbwise.feedback.reception import preferred
from thumbwise.training.evaluation.intervals import clustered_mean

if TYPE_CHECKING:
    from thumbwise.serving.assistant import Assistant

_SHOWN = 10
_USES = f"""
    SELECT p.version,
        count(DISTINCT CASE WHEN l.kind <> 'prompt' THEN l.feedback_id END) AS votes,
        count(DISTINCT CASE WHEN l.kind = 'prompt' THEN l.feedback_id END) AS questions
    FROM lineage l JOIN policies p ON p.run_id = l.run_id
    WHERE l.weight <> 0 AND (l.feedback_id IN (SELECT id FROM feedback t WHERE {OWN.format("t")})
        OR l.kind = 'prompt' AND l.feedback_id IN (SELECT id FROM replies t WHERE {OWN.format("t")}))
    GROUP BY p.version ORDER BY p.number DESC LIMIT {_SHOWN}
"""
"""The newest versions that something of a user went into. A weight of 0 means that a vote had no part."""
_USED_IN = """
    SELECT DISTINCT l.feedback_id, p.version FROM lineage l JOIN policies p ON p.run_id = l.run_id
    WHERE l.weight <> 0 AND l.feedback_id IN (SELECT value FROM json_each(?)) ORDER BY p.number
"""


@dataclass(frozen=True)
class Use:
    """What of one person went into a version, and in which share of blind comparisons people prefer it."""

    version: str
    votes: int
    questions: int
    share: float | None
    """In percent; None if fewer than two people compared it with another version."""
    error: float
    """Half of the 95% interval, in percent."""

    def __str__(self) -> str:
        said = [_number(self.votes, "vote"), _number(self.questions, "question")]
        what = " and ".join(part for part in said if part)
        verb = "is" if self.votes + self.questions == 1 else "are"
        whole = f"{what[:1].upper()}{what[1:]} of yours {verb} in {self.version}"
        if self.share is None:
            return f"{whole}."
        return f"{whole}, which people prefer in {self.share:.0f} ± {self.error:.0f}% of blind comparisons."


def _number(n: int, what: str) -> str:
    return f"{n} {what}{'' if n == 1 else 's'}" if n else ""


def uses(assistant: Assistant, user: str) -> list[Use]:
    """The newest versions that learned from this user, the newest first. Blocks."""
    with assistant.store.reading() as db:
        rows = list(db.query(_USES, {"user": user}))
    return [Use(row["version"], row["votes"], row["questions"], *_share(assistant, row["version"])) for row in rows]


def others(assistant: Assistant, user: str, known: Sequence[Use]) -> list[str]:
    """The other versions that learned from this user: from what was deleted since, or as a copy of such a version."""
    named = {use.version for use in known}
    return [version for version in assistant.versions.learned.from_user(user) if version not in named][-_SHOWN:]


def _share(assistant: Assistant, version: str) -> tuple[float | None, float]:
    judged = preferred(assistant.store, version)
    people = [person for person, _ in judged]
    if len(set(people)) < 2:  # one person's votes say nothing of people
        return None, 0.0
    mean, error = clustered_mean([won for _, won in judged], people)
    return 100 * mean, 100 * 1.96 * error


def used_in(assistant: Assistant, ids: Sequence[str]) -> dict[str, list[str]]:
    """By id, the versions that learned from these votes, oldest first. Blocks."""
    found: defaultdict[str, list[str]] = defaultdict(list)
    with assistant.store.reading() as db:
        for row in db.query(_USED_IN, [json.dumps(list(ids))]):
            found[row["feedback_id"]].append(row["version"])
    return dict(found)

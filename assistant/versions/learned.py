"""Which versions learned from what somebody said, also through versions that they began from.

A run says what it learned from (table `lineage`). Of runs from before that was recorded, all counts that was in their
snapshot, if it was forgotten since (table `redacted`). All methods block.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from thumbwise.feedback.store import Store

_WHOSE = "(user_id = :user OR user_id > :user || '/' AND user_id < :user || '0')"
_SAID = f"""
    SELECT p.version FROM lineage l JOIN policies p ON p.run_id = l.run_id
    WHERE l.weight <> 0 AND l.feedback_id IN (
        SELECT id FROM feedback WHERE {_WHOSE} UNION ALL SELECT id FROM replies WHERE {_WHOSE})
"""
_FORGOTTEN = """
    SELECT p.version FROM forgettings w CROSS JOIN forgotten f ON f.forgetting = w.id
    CROSS JOIN lineage l ON l.feedback_id = f.item JOIN policies p ON p.run_id = l.run_id
    WHERE l.weight <> 0 AND {which}
    UNION SELECT p.version FROM forgettings w JOIN redacted d ON d.forgetting = w.id
    JOIN policies p ON p.data_sha256 = d.snapshot_id LEFT JOIN runs r ON r.id = p.run_id
    WHERE r.learned IS NULL AND {which}
"""
"""Versions that learned from something forgotten since. Weight 0: it had no part in the reward model."""


class Learned:
    """Which versions learned from what; `parents` are the versions on record, and what each began from."""

    def __init__(self, store: Store, parents: Callable[[], Mapping[str, str | None]]) -> None:
        self.store, self.parents = store, parents

    def from_user(self, user: str) -> list[str]:
        """The versions that learned from what a user or names below it said, forgotten or not."""
        forgotten = _FORGOTTEN.format(which="w.user_id = :user")
        return self._with_later(f"{_SAID} UNION {forgotten}", user=user)

    def from_wish(self, wish: int) -> list[str]:
        """The versions that learned from what one wish made forgotten (`thumbwise.feedback.forget`)."""
        return self._with_later(_FORGOTTEN.format(which="w.id = :wish"), wish=wish)

    def from_forgotten(self) -> set[str]:
        """All versions that learned from something that was forgotten since."""
        return set(self._with_later(_FORGOTTEN.format(which="true")))

    def _with_later(self, sql: str, **given: Any) -> list[str]:
        """The versions that a query finds and those that began from them, oldest first."""
        found, known = {row["version"] for row in self.store.rows(sql, given)}, self.parents()
        for name, parent in known.items():  # oldest first: a version is younger than the one that it began from
            if parent in found:
                found.add(name)
        return [name for name in known if name in found]

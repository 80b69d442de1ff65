"""The record of training runs: a number that is never reused, and a lease that lets one run publish at a time.

A job renews its lease while it works. A run whose job was killed or lost its lease can be resumed with a fresh lease,
which voids the old one. This process measures a lease with its monotonic clock, which nobody can set. The time in the
table is for the next process. The table is made in `thumbwise.versions.migrations`.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Literal

from sqlite_utils import Database

from thumbwise.errors import Conflict, NotFound
from thumbwise.feedback.records import new_id, now_ns
from thumbwise.feedback.snapshot import redacted
from thumbwise.feedback.store import Store

LEASE_SECONDS = 120.0
_REDACTED = "SELECT 1 FROM runs r JOIN redacted d ON d.snapshot_id = r.snapshot_id WHERE true"
Outcome = Literal["promoted", "rejected", "too_little_data", "failed"]


@dataclass(frozen=True)
class Run:
    """A registered training run and the lease that lets it publish."""

    id: str
    number: int
    lease: str
    snapshot_id: str


class Runs:
    """The record of training runs, in the feedback database."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._until: dict[str, float] = {}  # when each unended run's lease ends, in monotonic seconds

    def _hold(self, run_id: str, seconds: float) -> float:
        """Let a run hold its lease for `seconds` from now; returns the end in UTC seconds, for the table."""
        self._until[run_id] = time.monotonic() + seconds
        return time.time() + seconds

    def _unended(self) -> dict[str, bool]:
        """Runs without an outcome, newest first, and whether a job works on them."""
        found = {}
        for row in self.store.rows("SELECT id, lease_until FROM runs WHERE outcome IS NULL ORDER BY number DESC"):
            if row["id"] not in self._until:  # it began before this process; the clock may have been set since then
                self._hold(row["id"], min(row["lease_until"] - time.time(), LEASE_SECONDS))
            found[str(row["id"])] = self._until[row["id"]] > time.monotonic()
        return found

    def begin(self, snapshot_id: str, seconds: float, above: int = 0) -> Run:
        """Register a run and give it the lease; raises Conflict while another run's lease is live.

        Its number is higher than `above`, the highest in the home's folders: the database may be an older copy.
        """
        run = {"id": new_id("run"), "snapshot_id": snapshot_id, "lease": secrets.token_urlsafe(18)}
        with self.store.write() as db:
            self._end_others(db)
            known = "SELECT number FROM runs UNION ALL SELECT number FROM policies"
            number = max(above, next(iter(db.query(f"SELECT coalesce(max(number), 0) AS n FROM ({known})")))["n"]) + 1
            until = self._hold(run["id"], seconds)
            db.table("runs").insert(run | {"number": number, "lease_until": until, "started_at": now_ns()})
        return Run(number=int(number), **run)

    def refuse_second(self, own: str = "") -> None:
        """Raise Conflict while the lease of a run other than `own` is live."""
        for run_id, live in self._unended().items():
            if live and run_id != own:
                raise Conflict(f"Training run {run_id} is under way: wait for it to end, or stop it.")

    def _end_others(self, db: Database, own: str = "") -> None:
        self.refuse_second(own)
        db.execute(
            "UPDATE runs SET outcome='failed', reason=?, ended_at=? WHERE outcome IS NULL AND id <> ?",
            ["its lease ran out", now_ns(), own],
        )

    def resume(self, run_id: str, seconds: float) -> dict[str, Any]:
        """Give an unfinished or failed run a fresh lease, which voids the old one, while no other run is live.

        Returns {"lease", "outcome", "reason", "version"}; a run that came to its end keeps its outcome.
        """
        with self.store.write() as db:
            found = list(db.query("SELECT outcome, reason FROM runs WHERE id=?", [run_id]))
            if not found:
                raise NotFound(f"There is no training run {run_id[:64]!r} here: start one with `thumbwise train`.")
            made = list(db.query("SELECT version FROM policies WHERE run_id=?", [run_id]))
            answer = {"lease": None, "version": made[0]["version"] if made else None, **found[0]}
            if answer["outcome"] not in (None, "failed"):
                return answer
            if list(db.query(f"{_REDACTED} AND r.id = ?", [run_id])):
                raise redacted()
            self._end_others(db, run_id)
            lease = secrets.token_urlsafe(18)
            db.execute(
                "UPDATE runs SET lease=?, lease_until=?, outcome=NULL, reason='', ended_at=NULL WHERE id=?",
                [lease, self._hold(run_id, seconds), run_id],
            )
        return answer | {"lease": lease, "outcome": None, "reason": ""}

    def numbers(self) -> set[int]:
        """The numbers of all runs; blocking."""
        return {int(row["number"]) for row in self.store.rows("SELECT number FROM runs")}

    def last_begun(self) -> float | None:
        """When the newest run was registered, in UTC seconds; None if there is none."""
        rows = self.store.rows("SELECT started_at FROM runs ORDER BY number DESC LIMIT 1")
        return rows[0]["started_at"] / 1e9 if rows else None

    def interrupted(self) -> bool:
        """Whether the newest run has no outcome, and no job works on it any more."""
        newest = self.store.rows("SELECT id FROM runs ORDER BY number DESC LIMIT 1")
        return bool(newest) and self._unended().get(newest[0]["id"]) is False

    def abandon(self, reason: str) -> None:
        """End the interrupted runs as failed."""
        with self.store.write() as db:
            for run_id, live in self._unended().items():
                if not live:
                    db.execute(
                        "UPDATE runs SET outcome='failed', reason=?, ended_at=? WHERE id=?", [reason, now_ns(), run_id]
                    )

    def void(self, snapshot_ids: Collection[str], reason: str) -> list[str]:
        """End the unended runs on these snapshots as failed, so that none publishes; returns their candidates."""
        with self.store.write() as db:
            runs = "SELECT id FROM runs WHERE outcome IS NULL AND snapshot_id IN (SELECT value FROM json_each(?))"
            ids = json.dumps([row["id"] for row in db.query(runs, [json.dumps(list(snapshot_ids))])])
            made = "SELECT version FROM policies WHERE run_id IN (SELECT value FROM json_each(?))"
            found = [str(row["version"]) for row in db.query(made, [ids])]
            db.execute(
                "UPDATE runs SET outcome='failed', reason=?, ended_at=? WHERE id IN (SELECT value FROM json_each(?))",
                [reason, now_ns(), ids],
            )
        return found

    def renew(self, run_id: str, lease: str, seconds: float) -> None:
        """Extend a run's lease; raises Conflict if the lease is not this run's any more."""
        self.check_lease(lease, run_id)
        until = self._hold(run_id, seconds)
        with self.store.write() as db:
            db.execute("UPDATE runs SET lease_until=? WHERE id=? AND lease=?", [until, run_id, lease])

    def check_lease(self, lease: str, run_id: str | None = None) -> str:
        """Return the id of the run that holds `lease`; raises Conflict for a stale or foreign one.

        A lease that ran out, for example because the machine slept, stays valid until another run begins or this run
        is resumed.
        """
        rows = self.store.rows("SELECT id FROM runs WHERE lease=? AND outcome IS NULL", [lease])
        if not rows and self.store.rows(f"{_REDACTED} AND r.lease = ?", [lease]):
            raise redacted()
        if not rows or (run_id is not None and rows[0]["id"] != run_id):
            raise Conflict(
                "This run's lease is not valid any more, and its result is refused: `thumbwise train --resume` goes on "
                "with it, where no other run has begun since."
            )
        return str(rows[0]["id"])

    def end(self, run_id: str, lease: str, outcome: Outcome, reason: str) -> None:
        """Record how a run ended and release its lease."""
        self.check_lease(lease, run_id)
        with self.store.write() as db:
            db.execute(
                "UPDATE runs SET outcome=?, reason=?, ended_at=? WHERE id=?",
                [outcome, reason, now_ns(), run_id],
            )

    def check_name(self, run_id: str, version: str, number: int) -> None:
        """Raise Conflict if `number` is not the run's, or the run has already handed over another version."""
        run = self.store.rows(
            "SELECT runs.number, policies.version FROM runs LEFT JOIN policies ON policies.run_id = runs.id"
            " WHERE runs.id = ?",
            [run_id],
        )[0]
        if number != run["number"] or run["version"] not in (None, version):
            raise Conflict(f"{version} is not the one version of this run, number {run['number']}: start a new run.")

"""The database record of policy versions: their states, the pointer, the log of its moves.

The pointer says which version is `stable`, and which is `canary` for what share of people. It is one row, and moves by
compare-and-set. Every move is logged with its reason, and rollback follows that log. Numbers and names are never
reused. This is only the record: `thumbwise.versions.lifecycle` handles files and engines. All of the record except the
log is also in memory, and is read again after every change. So reading waits for nothing, and an event loop can do it.
Left out: more than one canary at a time, because each would need its own people.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Literal

from sqlite_utils import Database

from thumbwise.errors import Conflict, NotFound
from thumbwise.faults import fault_point
from thumbwise.feedback.records import LOCAL_USER, account_of, new_id, now_ns
from thumbwise.feedback.store import Store
from thumbwise.names import BASE
from thumbwise.versions.learned import Learned
from thumbwise.versions.lineage import Lineage
from thumbwise.versions.migrations import migrations
from thumbwise.versions.runs import Runs
from thumbwise.versions.states import State, before

MOVES = ("promote", "rollback")  # moves of the stable version; the other entries of the log are about canaries

_LAST_REPLY = "(SELECT coalesce(max(rowid), 0) FROM replies)"
_LAST_VOTE = "(SELECT coalesce(max(seq), 0) FROM feedback)"


@dataclass(frozen=True)
class Pointer:
    """Which version answers whom. `canary` answers the `share` of people that `rollout` draws, since `since` (UTC ns).

    Names below an account's API keys are drawn with the account, so that a person meets one version. Without accounts
    all people in browsers are LOCAL_USER. Among them conversations are drawn: otherwise all of them would get the
    canary, or nobody.
    """

    stable: str
    canary: str | None
    share: float
    rollout: str
    since: int
    from_reply: int = 0
    """The last reply (its rowid) before the canary began."""
    from_vote: int = 0
    """The last vote (its seq) before the canary began."""
    swapped_at: int | None = None
    """The last vote (its seq) before stable was promoted; None if the last move was a rollback."""

    def version_for(self, user: str, conversation_id: str | None = None) -> str:
        """The version that answers `user` in this conversation: the same one for the whole rollout."""
        if self.canary is None:
            return self.stable
        who = conversation_id if conversation_id and user == LOCAL_USER else account_of(user) or user
        drawn = int.from_bytes(hashlib.sha256(f"{self.rollout}\0{who}".encode()).digest()[:8]) / 2**64
        return self.canary if drawn < self.share else self.stable


@dataclass(frozen=True)
class Version:
    """One policy version as the record has it; the shape of `policies list --json`."""

    version: str
    number: int
    parent: str | None
    state: State
    algorithm: str
    created_at: str
    data_sha256: str
    n_labels: int
    metrics: dict[str, Any]
    reason: str

    def as_json(self) -> dict[str, Any]:
        """The version as plain JSON."""
        return asdict(self)


@dataclass(frozen=True)
class _Record:
    """A copy of the database record, kept in memory until the next change."""

    pointer: Pointer
    stable_since: float | None
    versions: Mapping[str, Version]
    promoted_from: Mapping[str, str]
    """By version: what was stable before its last promotion."""


class Versions:
    """The record of versions, pointer and runs, in the feedback database.

    Methods that change it block, and so does `log`. All others read from memory.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        store.migrate(migrations)
        self._record = self._read()
        self.runs = Runs(store)
        self.learned = Learned(store, lambda: {name: version.parent for name, version in self._record.versions.items()})
        self.lineage = Lineage(store)

    def _read(self) -> _Record:
        rows = self.store.rows
        since = rows("SELECT max(at) AS at FROM pointer_log WHERE action IN (?, ?)", MOVES)[0]["at"]
        promoted = rows("SELECT old, new FROM pointer_log WHERE action='promote' ORDER BY seq")
        return _Record(
            Pointer(**rows(f"SELECT {', '.join(Pointer.__dataclass_fields__)} FROM pointer")[0]),
            None if since is None else since / 1e9,
            {row["version"]: _version(row) for row in rows("SELECT * FROM policies ORDER BY number")},
            {row["new"]: row["old"] for row in promoted},
        )

    def bind(self, digest: str, name: str) -> None:
        """Store which model the base is; raises Conflict if there are replies or versions of another model.

        Replies are stored as token ids, and adapters fit only the model that they were trained on.
        """
        with self.store.write() as db:
            known = next(iter(db.query("SELECT digest, name FROM base")), None)
            made = "EXISTS (SELECT 1 FROM policies WHERE number > 0)"
            (used,) = db.query(f"SELECT max(rowid) IS NOT NULL OR {made} AS used FROM replies")  # max: one row is read
            if known is not None and known["digest"] != digest and used["used"]:
                other = "now has other files" if known["name"] == name else f"is not {name}"
                raise Conflict(
                    f"This home's replies and versions are those of the base model {known['name']}, "
                    f"which {other}: start with the one it was (`--model`), or set THUMBWISE_HOME to another folder."
                )
            db.table("base").insert({"id": 1, "digest": digest, "name": name}, replace=True)

    @contextmanager
    def _changing(self) -> Iterator[Database]:
        """A transaction that changes the record; the copy in memory is read again, whether it succeeds or not."""
        with self.store.lock:
            try:
                with self.store.write() as db:
                    yield db
            finally:
                self._record = self._read()

    def pointer(self) -> Pointer:
        """Which version answers whom; each turn reads it once."""
        return self._record.pointer

    def stable(self) -> str:
        """The version that answers everybody except the people of a canary."""
        return self.pointer().stable

    def stable_since(self) -> float | None:
        """When the stable version last changed, in UTC seconds; None if it never changed."""
        return self._record.stable_since

    def all(self) -> list[Version]:
        """Every version, oldest first."""
        return list(self._record.versions.values())

    def get(self, version: str) -> Version:
        """One version; raises NotFound."""
        found = self._record.versions.get(version)
        if found is None:
            raise NotFound(f"There is no policy version {version[:80]!r}. `thumbwise policies list` names them all.")
        return found

    def stage(self, manifest: dict[str, Any], run_id: str | None) -> None:
        """Record a version whose folder is complete; a second call with the same name changes nothing."""
        with self._changing() as db:
            db.execute(
                "INSERT INTO policies (version, number, run_id, parent, state, algorithm, created_at, data_sha256,"
                " n_labels, metrics) VALUES (?, ?, ?, ?, 'staged', ?, ?, ?, ?, ?) ON CONFLICT (version) DO NOTHING",
                [
                    manifest["version"], manifest["number"], run_id, manifest["parent"], manifest["algorithm"],
                    manifest["created_at"], manifest["snapshot_id"], manifest["n_labels"],
                    json.dumps(manifest["metrics"]),
                ],
            )  # fmt: skip

    def set_state(self, version: str, state: State, reason: str = "") -> None:
        """Move a version that takes no traffic to another state, if that may follow its own; otherwise do nothing."""
        with self._changing() as db:
            db.execute(
                "UPDATE policies SET state = ?, reason = ? WHERE version = ?"
                " AND state IN (SELECT value FROM json_each(?))",
                [state, reason, version, json.dumps(before(state))],
            )

    def move_pointer(
        self, action: Literal["promote", "rollback"], new: str, expect: str, reason: str, actor: str = "operator"
    ) -> None:
        """Make `new` stable if `expect` still is, in one transaction; raises Conflict if it is not.

        A canary ends too, because it was compared with the old stable version.
        """
        with self._changing() as db:
            moved = db.execute(
                "UPDATE pointer SET stable = ?, canary = NULL, share = 0, generation = generation + 1,"
                f" swapped_at = CASE WHEN ? = 'promote' THEN {_LAST_VOTE} END WHERE id = 1 AND stable = ?",
                [new, action, expect],
            ).rowcount
            _check_moved(db, moved, expect)
            _end_canary(db, State.RETIRED, f"{new} became stable before it was judged", but=new)
            _set(db, expect, State.RETIRED, reason)
            _set(db, new, State.STABLE, "")
            _log(db, action, expect, new, reason, actor)
            fault_point("pointer_written")
        fault_point("pointer_moved")

    def start_canary(self, version: str, expect: str, share: float, reason: str, actor: str = "operator") -> None:
        """Let `version` answer `share` of people while `expect` is stable; raises Conflict if it is not.

        It replaces another canary, because it has learned from everything that the other one learned from. If it is the
        canary already, only the share changes. If the share grows, those who have it keep it, and what they said still
        counts.
        """
        with self._changing() as db:
            moved = db.execute(
                "UPDATE pointer SET canary = :version, share = :share, generation = generation + 1,"
                " rollout = CASE WHEN canary IS :version THEN rollout ELSE :rollout END,"
                " since = CASE WHEN canary IS :version THEN since ELSE :now END,"
                f" from_reply = CASE WHEN canary IS :version THEN from_reply ELSE {_LAST_REPLY} END,"
                f" from_vote = CASE WHEN canary IS :version THEN from_vote ELSE {_LAST_VOTE} END"
                " WHERE id = 1 AND stable = :expect",
                {"version": version, "share": share, "rollout": new_id("rollout"), "now": now_ns(), "expect": expect},
            ).rowcount
            _check_moved(db, moved, expect)
            _end_canary(db, State.RETIRED, f"{version} took its place before it was judged", but=version)
            _set(db, version, State.CANARY, reason)
            _log(db, "canary", expect, version, reason, actor)

    def withdraw_canary(self, version: str, reason: str, actor: str = "operator") -> None:
        """End a canary as rejected; nothing happens if it is not the canary any more."""
        with self._changing() as db:
            ended = db.execute(
                "UPDATE pointer SET canary = NULL, share = 0, generation = generation + 1 WHERE canary = ?", [version]
            ).rowcount
            if ended:
                _end_canary(db, State.REJECTED, reason)
                stable = next(iter(db.query("SELECT stable FROM pointer")))["stable"]
                _log(db, "withdraw", version, stable, reason, actor)

    def before(self, version: str) -> str | None:
        """The version to go back to from `version`: the one that was stable before its last promotion.

        Rejected versions are skipped. If the search goes in a circle (A, B, then A again), it is the base. None if
        there is no version before the base.
        """
        record, at, passed = self._record, version, {version}
        while (at := record.promoted_from.get(at, "")) and at not in passed:
            if record.versions[at].state != State.REJECTED:
                return at
            passed.add(at)
        return None if version == BASE else BASE

    def was_stable(self, version: str) -> bool:
        """Whether the version is stable, or ever was."""
        return version in self._record.promoted_from

    def must_begin_at_base(self) -> bool:
        """Whether stable, or a version that it began from, learned from something that was forgotten since. Blocks."""
        return self.stable() in self.learned.from_forgotten()

    def log(self, limit: int = 50) -> list[dict[str, Any]]:
        """The pointer's last moves, newest first."""
        return self.store.rows("SELECT * FROM pointer_log ORDER BY seq DESC LIMIT ?", [limit])


def _check_moved(db: Database, moved: int, expect: str) -> None:
    if moved != 1:
        stable = next(iter(db.query("SELECT stable FROM pointer")))["stable"]
        raise Conflict(f"{expect} is no longer stable ({stable} is): look at `thumbwise policies list`.")


def _set(db: Database, version: str, state: State, reason: str) -> None:
    db.execute("UPDATE policies SET state = ?, reason = ? WHERE version = ?", [state, reason, version])


def _end_canary(db: Database, state: State, reason: str, but: str = "") -> None:
    """Give the canary its last state, if there is a canary and it is not `but`."""
    where = "state = ? AND version <> ?"
    db.execute(f"UPDATE policies SET state = ?, reason = ? WHERE {where}", [state, reason, State.CANARY, but])


def _log(db: Database, action: str, old: str, new: str, reason: str, actor: str) -> None:
    """`actor` is a run's id, `operator`, `review` (of a canary), `probe` or `start` (of the engine)."""
    row = {"action": action, "old": old, "new": new, "reason": reason, "at": now_ns(), "actor": actor}
    db.table("pointer_log").insert(row)


def _version(row: dict[str, Any]) -> Version:
    return Version(
        **{key: row[key] for key in Version.__dataclass_fields__ if key not in ("state", "metrics")},
        state=State(row["state"]),
        metrics=json.loads(row["metrics"]),
    )

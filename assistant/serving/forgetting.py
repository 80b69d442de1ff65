"""Forgetting, everywhere: the database, kept snapshots, the folders of runs, and which versions learned from it.

The wish is recorded first, with the rows' tombstones, in one transaction (`thumbwise.feedback.forget`). Then the files
follow. Whatever a kill, a full disk or a running job prevents is done later: `run` tries again while the assistant
runs, and at its start.

A run whose snapshot held any of it has ended as failed, and cannot be resumed or publish: its lease is void. A job that
works on it stops at its next heartbeat; its files go when it has let go of its folder. Versions stay. They are listed,
and the next round begins at the base. Left out: backups, and what plugins keep.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import logging
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thumbwise.accounts.audit import record
from thumbwise.errors import NotFound
from thumbwise.faults import fault_point
from thumbwise.feedback import forget, redaction
from thumbwise.feedback.snapshot import remove_unfinished
from thumbwise.names import RUN_RECORD
from thumbwise.versions.states import State

if TYPE_CHECKING:
    from thumbwise.accounts.principal import Actor
    from thumbwise.accounts.users import Users
    from thumbwise.feedback.forget import Kind, Wish
    from thumbwise.feedback.store import Store
    from thumbwise.home import Home
    from thumbwise.versions.record import Versions

log = logging.getLogger(__name__)
AGAIN_SECONDS = 60.0
"""Between two attempts to finish."""
KEPT_OF_RUNS = {RUN_RECORD, "result.json", "metrics.jsonl", "health.json", "curves.png", "lineage.json", "lock"}
"""Files of a run that hold numbers and ids only. All else may hold text, or weights that learned from it."""
VOID = "feedback that it learned from was deleted by the person who gave it"


@dataclass(frozen=True)
class Forgotten:
    """What came of it. `learned` names the versions that learned from it, also through versions they began from."""

    items: int
    """Replies, comparisons and votes that were removed."""
    snapshots: int
    """Snapshots that held any of it."""
    learned: list[str]
    finished: bool
    """Whether it is gone everywhere. Otherwise a job or a long read still prevents that, and it is tried again."""

    def as_json(self) -> dict[str, Any]:
        """The same as plain JSON."""
        return asdict(self)


class Forgetting:
    """Forgets what people said. `person`, `conversation` and `vote` are for event loops, all else blocks."""

    def __init__(self, home: Home, store: Store, versions: Versions) -> None:
        self.home, self.store, self.versions = home, store, versions
        self._one = threading.Lock()
        self._scrubbed: set[int] = set()  # wishes whose bytes are no longer in the database's files

    async def person(self, user: str, actor: Actor) -> Forgotten:
        """Forget all that a user said, and names below it."""
        return await asyncio.to_thread(self.forget_person, user, actor)

    async def conversation(self, conversation_id: str, user: str) -> Forgotten:
        """Forget one chat of this user. Raises NotFound."""
        return await asyncio.to_thread(self._forget, "chat", user, conversation_id)

    async def vote(self, feedback_id: str, user: str) -> Forgotten:
        """Forget one vote of this user, and what the user said before it of the same reply. Raises NotFound."""
        return await asyncio.to_thread(self._forget, "vote", user, feedback_id)

    def forget_person(self, user: str, actor: Actor) -> Forgotten:
        """Forget all that a user said, and names below it. Blocks."""
        return self._forget("person", user, told=lambda db: record(db, actor, "feedback.forget", user))

    def forget_named(self, name: str, users: Users, actor: Actor) -> Forgotten:
        """Forget all that somebody said, by the name or id of an account, or the user of rows. Raises NotFound."""
        account = users.find(name) or users.named(name)
        user = account.id if account else name
        if account is None and not forget.known(self.store, user):
            raise NotFound(
                f"Nothing is stored that {name[:64]!r} said: give the name or the id of an account, or `local`."
            )
        return self.forget_person(user, actor)

    def _forget(self, kind: Kind, user: str, target: str = "", told: forget.Told | None = None) -> Forgotten:
        wish = forget.forget(self.store, kind, user, target, told)
        try:
            finished = self.finish()
        except Exception:  # the wish is stored: `run` goes on with it, when there is room on the disk
            log.exception("what somebody wants to be forgotten could not be removed everywhere yet")
            finished = False
        rows = self.store.rows("SELECT count(*) AS n FROM redacted WHERE forgetting = ?", [wish.id])
        return Forgotten(wish.own, rows[0]["n"], self.versions.learned.from_wish(wish.id), finished)

    def close(self) -> None:
        """Wait for the work in progress."""
        with self._one:
            pass

    # -- files ---------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Finish what is unfinished, for as long as the assistant runs."""
        while True:
            try:
                if await self.store.run(forget.unfinished, self.store):
                    await asyncio.to_thread(self.finish)
            except Exception:  # nobody awaits this task; the disk may be full
                log.exception("what people want to be forgotten could not be removed everywhere; it is tried again")
            await asyncio.sleep(AGAIN_SECONDS)

    def finish(self) -> bool:
        """Remove from all files what people want to be forgotten; returns whether nothing of it is left."""
        with self._one:
            wishes = forget.unfinished(self.store)
            free = [wish for wish in wishes if self._removed(wish)]
            ids = {wish.id for wish in wishes}
            if not ids <= self._scrubbed:  # this takes long, and a job may hold up a wish for hours
                if not forget.scrub(self.store):
                    return False
                self._scrubbed |= ids
            forget.done(self.store, free)
        return len(free) == len(wishes)

    def _removed(self, wish: Wish) -> bool:
        """Remove it from snapshots and runs; returns False while a job still works on it."""
        snapshots = self.home.snapshots
        with self.store.exporting:  # a snapshot that is being written began before the rows were tombstones
            remove_unfinished(snapshots)
            found = redaction.holding(snapshots, wish.covers)
        found |= {_snapshot_of(folder) for folder in self._runs() if _holds(folder, wish.covers)}
        forget.note_redacted(self.store, wish, found)
        for version in self.versions.runs.void(found, VOID):
            self.versions.set_state(version, State.REJECTED, VOID)
        fault_point("forget_noted")
        for snapshot_id in sorted(found):
            redaction.redact(snapshots, snapshot_id, wish.covers)
        noted = self.store.rows("SELECT snapshot_id FROM redacted WHERE forgetting = ?", [wish.id])
        ids = {row["snapshot_id"] for row in noted}
        # A job may have begun meanwhile. It has its folder's lock before it fetches a snapshot, and no longer gets one.
        free = [_cleaned(folder) for folder in self._runs() if _snapshot_of(folder) in ids]
        fault_point("forget_files")
        return all(free)

    def _runs(self) -> list[Path]:
        return sorted(path.parent for path in self.home.runs.glob(f"*/{RUN_RECORD}"))


def _snapshot_of(folder: Path) -> str:
    """The id of the snapshot that a run was given; the folder's name if its record is of another build."""
    try:
        return str(json.loads((folder / RUN_RECORD).read_text())["given"]["snapshot_id"])
    except (OSError, ValueError, KeyError, TypeError):
        return folder.name


def _holds(folder: Path, covers: Callable[[dict[str, Any]], bool]) -> bool:
    path = folder / "snapshot.jsonl"
    return path.exists() and redaction.holds(path, covers)


def _cleaned(folder: Path) -> bool:
    """Remove what may hold text from a run's folder, unless a job works in it; returns whether that is done."""
    with _locked(folder) as free:
        if free:
            for path in folder.iterdir():
                if path.name in KEPT_OF_RUNS:
                    continue
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink()
            fault_point("run_cleaned")
    return free


@contextmanager
def _locked(folder: Path) -> Iterator[bool]:
    """Hold the lock of a run's folder, which its job holds while it works; yields whether that succeeded."""
    with (folder / "lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
            return
        yield True

"""How the database is written: one process, one read-write connection, acknowledged after COMMIT.

SQLite through sqlite-utils, in WAL mode with synchronous=FULL, so that acknowledged rows survive a power failure. One
lock guards one connection. The thread that gets the lock also commits for all threads that wait for it (`share`), so a
burst of replies costs a few waits for the disk and not one for each. Long reads use read-only connections of their own
without the lock (`reading`); these neither write nor checkpoint. Left out: a second connection that writes, because
SQLite up to 3.51.2 can corrupt a WAL that several connections write or checkpoint.

An event loop never waits for any of this. It runs work in the store's own threads (`run`), or leaves work to be done
later (`later`). With THUMBWISE_DEBUG_LOCKS in the environment, the lock is refused to an event loop's thread.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import secrets
import sqlite3
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from sqlite_utils import Database, Migrations

from thumbwise import faults
from thumbwise.errors import ThumbwiseError
from thumbwise.home import fsync_folder

P = ParamSpec("P")
T = TypeVar("T")
Work = Callable[[Database], Any]
log = logging.getLogger(__name__)

THREADS = 8
"""How many threads the store has of its own. Writes that wait in them share a COMMIT. They do nothing else."""

PRAGMAS = {
    "journal_mode": "WAL",
    "synchronous": "FULL",
    "busy_timeout": 10_000,
    "foreign_keys": "ON",
    "journal_size_limit": 64 * 1024 * 1024,
    "secure_delete": "ON",  # what is deleted is overwritten: people may have their words forgotten
    "trusted_schema": "OFF",
}


def on_loop() -> bool:
    """Whether this thread runs an event loop at this moment."""
    return asyncio._get_running_loop() is not None


def refuse_on_loop() -> None:
    """Raise RuntimeError on an event loop's thread, if THUMBWISE_DEBUG_LOCKS is set."""
    if faults.debug_locks() and on_loop():
        raise RuntimeError("The event loop would wait for the database here: do this in a thread (`Writer.run`).")


class Lock:
    """A lock that a thread can take again while it holds it. An event loop's thread must not take it."""

    def __init__(self) -> None:
        self._lock = threading.RLock()

    def __enter__(self) -> None:
        refuse_on_loop()
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()


class Writer:
    """The connection and its transactions. All methods are thread-safe, and all but `run` and `later` block."""

    def __init__(self, path: Path) -> None:
        """Open (or make) the database at `path`; raises ThumbwiseError if it cannot be used, or is not a database."""
        self.path = path
        self.lock = Lock()
        self._waiting: deque[tuple[Work, Future[Any]]] = deque()
        self._left: deque[tuple[str, Work]] = deque()
        self._owed: dict[str, Work] = {}
        self.db = _opened(path)
        self._threads = ThreadPoolExecutor(THREADS, "store")

    def migrate(self, own: Migrations) -> None:
        """Bring a migration set's tables up to date; raises ThumbwiseError if a newer program has written them."""
        with self.lock:
            ours = {each.name for each in own.pending(Database(memory=True))}
            if newer := [each.name for each in own.applied(self.db) if each.name not in ours]:
                raise ThumbwiseError(
                    f"{self.path} was written by a newer Thumbwise (its `{own.name}` tables have {newer[0]}): install "
                    "that version again, or put a backup from before the upgrade in its place."
                )
            own.apply(self.db)

    def close(self) -> None:
        """Do the work that was given to `later`, and close the connection; the last COMMIT is already on disk."""
        self._threads.shutdown()
        with self.lock:
            self._settle()
            self.db.close()

    async def run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Return what `work` returns; it runs in one of the store's threads. For callers on an event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, functools.partial(work, *args, **kwargs))

    @contextmanager
    def write(self) -> Iterator[Database]:
        """One durable transaction: everything in the block is committed at its end, or nothing is.

        Owed work (see `later`) is written first. Raises ThumbwiseError (507) if the database cannot be written.
        """
        with self.lock:
            try:
                self.db.execute("BEGIN IMMEDIATE")
                try:
                    self._take_over()
                    for key, work in self._owed.items():
                        _, error = _apart(self.db, work)
                        if error is not None:  # it can never be written, and must not block other work
                            log.error("%s cannot be written: %r", key, error)
                    yield self.db
                except BaseException:
                    self.db.rollback()
                    raise
                self.db.commit()
                self._owed.clear()
            except (sqlite3.DatabaseError, OSError) as error:
                if self.db.conn.in_transaction:
                    self.db.rollback()
                if isinstance(error, sqlite3.IntegrityError):
                    raise
                why = error.strerror if isinstance(error, OSError) else error
                raise ThumbwiseError(
                    f"The database could not be written ({why}); nothing was saved. "
                    "Make room or repair the disk, then try again.",
                    status=507,
                ) from error

    def share(self, work: Callable[[Database], T]) -> T:
        """Do `work` in one transaction with the work of other waiting threads; return its result when it is durable.

        An error in `work` undoes only this work, and is raised here. If the database cannot be written, all work in
        the transaction fails, as in `write`.
        """
        mine: Future[T] = Future()
        self._waiting.append((work, mine))
        with self.lock:
            if not mine.done():  # otherwise the thread that had the lock before has done it
                self._commit([self._waiting.popleft() for _ in range(len(self._waiting))])
        return mine.result()

    def later(self, key: str, work: Work) -> None:
        """Do `work` soon, in one COMMIT with other such work; returns at once. `rows` writes it first.

        If it cannot be written now, it is owed: the next transaction that succeeds writes it first. Until it is
        written, later work for the same `key` is ignored.
        """
        self._left.append((key, work))
        with suppress(RuntimeError):  # closed: the process ends, and the next start marks the reply as failed
            self._threads.submit(self._settle)

    def _take_over(self) -> bool:
        """Make all work that was given to `later` owed work; returns whether there was any."""
        found = False
        while self._left:
            key, work = self._left.popleft()
            self._owed.setdefault(key, work)
            found = True
        return found

    def _settle(self) -> None:
        """Write the work given to `later`, unless this thread is in a transaction, which began by writing it."""
        with self.lock:
            if not self._left or self.db.conn.in_transaction or not self._take_over():
                return
            with suppress(ThumbwiseError), self.write():  # if it cannot be written, it stays owed
                pass

    def _commit(self, batch: list[tuple[Work, Future[Any]]]) -> None:
        try:
            with self.write() as db:
                outcomes = [_apart(db, work) for work, _ in batch]
        except BaseException as error:  # otherwise the other threads would wait for ever
            for _, future in batch:
                future.set_exception(error)
            return
        for (_, future), (result, raised) in zip(batch, outcomes, strict=True):
            if raised is None:
                future.set_result(result)
            else:
                future.set_exception(raised)

    @contextmanager
    def reading(self) -> Iterator[Database]:
        """A read-only connection in one read transaction: a snapshot of now, while others continue to write.

        It takes no lock, so use it for long reads such as exports and statistics. Fetch rows one by one with `query`,
        and not all at once.
        """
        refuse_on_loop()
        uri = f"{self.path.absolute().as_uri()}?mode=ro"
        connection = sqlite3.connect(uri, timeout=10, isolation_level=None, check_same_thread=False, uri=True)
        try:
            db = Database(connection)
            db.execute(f"PRAGMA trusted_schema = {PRAGMAS['trusted_schema']}")
            db.execute("BEGIN")
            db.execute(
                "SELECT 1 FROM sqlite_schema"
            ).fetchone()  # BEGIN takes no snapshot of the database; the first read does
            yield db
        finally:
            connection.close()  # which ends the transaction

    def backup(self, path: Path) -> None:
        """Copy the database as it is now to `path`, while others continue to write; durable when this returns.

        Raises ThumbwiseError if `path` exists, or cannot be written.
        """
        if path.exists():
            raise ThumbwiseError(f"{path} is there already: name another file.", status=409)
        side = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        try:
            side.touch(mode=0o600, exist_ok=False)
            with self.reading() as db, closing(sqlite3.connect(side)) as copy:
                db.conn.backup(copy)
            with side.open("rb+") as file:
                os.fsync(file.fileno())
            side.replace(path)
            fsync_folder(path.parent)
        except (sqlite3.DatabaseError, OSError) as error:
            why = error.strerror if isinstance(error, OSError) else error
            raise ThumbwiseError(f"{path} could not be written ({why}): name a file on another disk.") from error
        finally:
            side.unlink(missing_ok=True)

    def rows(self, sql: str, params: Sequence[Any] | dict[str, Any] = ()) -> list[dict[str, Any]]:
        """Run a SELECT and return its rows as dicts."""
        with self.lock:
            self._settle()
            return list(self.db.query(sql, params))


def _opened(path: Path) -> Database:
    """The connection with its PRAGMAs set; raises ThumbwiseError if the file cannot be used."""
    connection = None
    try:
        connection = sqlite3.connect(path, timeout=10, isolation_level=None, check_same_thread=False)
        path.chmod(0o600)
        db = Database(connection, strict=True)
        for name, value in PRAGMAS.items():
            db.execute(f"PRAGMA {name} = {value}")
        db.execute("BEGIN IMMEDIATE")
        db.execute("PRAGMA user_version = 0")  # this fails if the file may not be written; BEGIN does not
        db.rollback()
    except (sqlite3.DatabaseError, OSError) as error:
        if connection is not None:
            connection.close()
        raise ThumbwiseError(_unusable(path, error)) from None
    return db


def _unusable(path: Path, error: sqlite3.DatabaseError | OSError) -> str:
    if isinstance(error, OSError):
        code, why = None, error.strerror
    else:
        code, why = error.sqlite_errorcode & 0xFF, str(error)
    if code in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
        return f"{path} is not a database, or a damaged one ({why}): move it away and put your last backup there."
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return f"{path} is in use by another program ({why}): close that, then try again."
    return f"{path} cannot be opened ({why}): the user that runs Thumbwise must own it and may write it and its folder."


def _apart(db: Database, work: Work) -> tuple[Any, Exception | None]:
    """Do `work`. An error in it undoes only this work, and is returned. An error of the disk is raised."""
    try:
        with db.atomic():
            return work(db), None
    except (sqlite3.IntegrityError, sqlite3.ProgrammingError, sqlite3.DataError) as error:
        return None, error
    except (sqlite3.DatabaseError, OSError):
        raise
    except Exception as error:
        return None, error

"""How the database is written: one process, one read-write connection, acknowledged after COMMIT.

SQLite through sqlite-utils, WAL with synchronous=FULL, so that what was acknowledged survives a power cut. One lock
around one connection; whoever gets it commits for everybody who waits for it too (`share`), so that a burst of replies
costs a few waits for the disk instead of one for each. Long reads have connections of their own, off the lock
(`reading`), which are read-only: they neither write nor checkpoint. Left out: a second connection that writes, since
SQLite up to 3.51.2 can corrupt a WAL that several connections write or checkpoint.
"""

from __future__ import annotations

import sqlite3
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from sqlite_utils import Database, Migrations

from thumbwise.errors import ThumbwiseError

T = TypeVar("T")
Work = Callable[[Database], Any]

PRAGMAS = {
    "journal_mode": "WAL",
    "synchronous": "FULL",
    "busy_timeout": 10_000,
    "foreign_keys": "ON",
    "journal_size_limit": 64 * 1024 * 1024,
    "trusted_schema": "OFF",
}


class Writer:
    """The connection, and transactions over it. All methods are synchronous and thread-safe."""

    def __init__(self, path: Path) -> None:
        """Open (or make) the database at `path`; raises ThumbwiseError where it cannot be used, or is another file."""
        self.path = path
        self.lock = threading.RLock()
        self._waiting: deque[tuple[Work, Future[Any]]] = deque()
        self._owed: dict[str, Work] = {}
        self.db = _opened(path)

    def migrate(self, own: Migrations) -> None:
        """Bring a migration set's tables up to date."""
        with self.lock:
            own.apply(self.db)

    def close(self) -> None:
        """Close the connection; the last COMMIT is already on disk."""
        with self.lock:
            self.db.close()

    @contextmanager
    def write(self) -> Iterator[Database]:
        """One durable transaction: everything in the block is committed at its end, or nothing is.

        What is owed goes first. Raises ThumbwiseError (507) where the database cannot be written.
        """
        with self.lock:
            try:
                self.db.execute("BEGIN IMMEDIATE")
                try:
                    for work in self._owed.values():
                        work(self.db)
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
                    "Make room or mend the disk, then try again.",
                    status=507,
                ) from error

    def share(self, work: Callable[[Database], T]) -> T:
        """Do `work` in a transaction with what other threads wait to write; what it returned, once that is durable.

        What `work` raises undoes it alone and is raised here. A database that cannot be written fails all of them, as
        `write` says.
        """
        mine: Future[T] = Future()
        self._waiting.append((work, mine))
        with self.lock:
            if not mine.done():  # else whoever had the lock before has done it
                self._commit([self._waiting.popleft() for _ in range(len(self._waiting))])
        return mine.result()

    def owe(self, key: str, work: Work) -> None:
        """Do `work` first in the next transaction that succeeds; the last word for `key` counts."""
        with self.lock:
            self._owed[key] = work

    def _commit(self, batch: list[tuple[Work, Future[Any]]]) -> None:
        try:
            with self.write() as db:
                outcomes = [_apart(db, work) for work, _ in batch]
        except BaseException as error:  # nobody may wait forever
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
        """A read-only connection in one read transaction: everything as it is now, while others go on writing.

        It takes no lock, so what reads long belongs here: exports, statistics. Fetch rows as they are needed, by
        `query`, and not all at once.
        """
        uri = f"{self.path.absolute().as_uri()}?mode=ro"
        connection = sqlite3.connect(uri, timeout=10, isolation_level=None, check_same_thread=False, uri=True)
        try:
            db = Database(connection)
            db.execute(f"PRAGMA trusted_schema = {PRAGMAS['trusted_schema']}")
            db.execute("BEGIN")
            db.execute("SELECT 1 FROM sqlite_schema").fetchone()  # BEGIN alone does not choose the moment
            yield db
        finally:
            connection.close()  # which ends the transaction

    def rows(self, sql: str, params: Sequence[Any] | dict[str, Any] = ()) -> list[dict[str, Any]]:
        """Run a SELECT and return its rows as dicts."""
        with self.lock:
            return list(self.db.query(sql, params))


def _opened(path: Path) -> Database:
    """The connection, with its PRAGMAs; raises ThumbwiseError where the file cannot be used as it is."""
    connection = None
    try:
        connection = sqlite3.connect(path, timeout=10, isolation_level=None, check_same_thread=False)
        path.chmod(0o600)
        db = Database(connection, strict=True)
        for name, value in PRAGMAS.items():
            db.execute(f"PRAGMA {name} = {value}")
        db.execute("BEGIN IMMEDIATE")
        db.execute("PRAGMA user_version = 0")  # where it may not be written, this says so; BEGIN does not
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
    """Do `work` so that its error undoes it alone and is returned; one of the disk is everybody's and is raised."""
    try:
        with db.atomic():
            return work(db), None
    except sqlite3.IntegrityError as error:
        return None, error
    except (sqlite3.DatabaseError, OSError):
        raise
    except Exception as error:
        return None, error

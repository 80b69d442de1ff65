"""The home folder: where everything that outlives a process is kept, and the lock that guards it.

`lock` is both an advisory lock (held by the one process that may open `feedback.db`) and a note of where
that process listens, so that every other command finds it. The note is trusted only while the lock is
held: a stale file after a crash means nothing. Left out: network file systems (the lock and WAL both
need a local disk).
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import secrets
import stat
import struct
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import platformdirs

from thumbwise.errors import Conflict, ThumbwiseError
from thumbwise.system import trust

log = logging.getLogger(__name__)

# struct flock: a write lock on the whole file. Locks of the open file, and not flock, because these can be
# asked for without being taken: a command that looks for the assistant never stands in the way of its start.
_WHOLE_FILE = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)


@dataclass(frozen=True)
class Home:
    """Paths under one home folder; `Home.find()` honours THUMBWISE_HOME."""

    root: Path

    @classmethod
    def find(cls, root: str | Path | None = None) -> Home:
        """Return the home at `root`, THUMBWISE_HOME or the platform's user data folder, made if missing.

        What others could write in it is closed to them. Raises ThumbwiseError where it cannot be a home, or not ours.
        """
        home = cls.at(root)
        try:
            for folder in home.folders:
                folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            home.refuse_foreign(named(root))
            for path in home.open_to_others():
                log.warning("Others could write %s: it is closed to them now.", path)
                path.chmod(path.stat().st_mode & ~(stat.S_IWGRP | stat.S_IWOTH))
        except OSError as error:
            raise _no_home(home, error) from None
        return home

    @classmethod
    def at(cls, root: str | Path | None = None) -> Home:
        """Return that home as it is, there or not: nothing is made, changed or refused."""
        return cls(named(root).resolve())

    @property
    def folders(self) -> tuple[Path, ...]:
        """The home and the folders in it."""
        return self.root, self.models, self.policies, self.runs, self.snapshots, self.plugins, self.cache

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that a home stands and falls with; those of the database beside it too."""
        beside = (self.database.with_name(self.database.name + end) for end in ("-wal", "-shm"))
        return self.config, self.token, self.browser_secret, self.lock, self.database, *beside

    def refuse_foreign(self, name: Path) -> None:
        """Raise ThumbwiseError where something in it is another user's, or they could put another home at `name`.

        Also where nothing can be written (a read-only disk).
        """
        for path in (name, *self.folders, *self.files):
            if path.exists() or path.is_symlink():
                trust.refuse_foreign(path, within=self.root)
        there = next(folder for folder in (self.root, *self.root.parents) if folder.exists())
        if not os.access(there, os.W_OK | os.X_OK):
            raise _no_home(self, OSError(errno.EROFS, "it cannot be written", str(there)))
        for path in self.files:
            rights = os.R_OK if path == self.config else os.R_OK | os.W_OK
            if path.exists() and not os.access(path, rights):
                raise _not_ours(path, "used", OSError(errno.EACCES, "no right to"))

    def open_to_others(self) -> list[Path]:
        """Which of its folders and files others may write, whether or not they can get to them."""
        there = [path for path in (*self.folders, *self.files) if path.exists()]
        return [path for path in there if trust.writable_by_others(path.stat())]

    @property
    def config(self) -> Path:
        """The operator's settings file (TOML)."""
        return self.root / "config.toml"

    @property
    def database(self) -> Path:
        """The feedback database (SQLite, one writer)."""
        return self.root / "feedback.db"

    @property
    def lock(self) -> Path:
        """The lock file: a lock plus the running assistant's URL."""
        return self.root / "lock"

    @property
    def token(self) -> Path:
        """The training job's bearer token, mode 0600."""
        return self.root / "job.token"

    @property
    def browser_secret(self) -> Path:
        """What browsers' cookies are signed with, mode 0600."""
        return self.root / "browser.secret"

    @property
    def models(self) -> Path:
        """Prepared base models."""
        return self.root / "models"

    @property
    def policies(self) -> Path:
        """One folder a policy version, immutable once its manifest is there."""
        return self.root / "policies"

    @property
    def runs(self) -> Path:
        """One folder a training run."""
        return self.root / "runs"

    @property
    def snapshots(self) -> Path:
        """Feedback snapshots, `<sha256>.jsonl`, immutable."""
        return self.root / "snapshots"

    @property
    def plugins(self) -> Path:
        """Loose plugin files, and the list of enabled entry points."""
        return self.root / "plugins"

    @property
    def cache(self) -> Path:
        """What compilers and Gradio keep, which others must not be able to put there; it can be removed at any time."""
        return self.root / "cache"

    def job_token(self) -> str:
        """Return the job's bearer token, made (0600) at the first call."""
        return _secret(self.token)

    def cookie_secret(self) -> str:
        """Return what browsers' cookies are signed with, made (0600) at the first call."""
        return _secret(self.browser_secret)


def named(root: str | Path | None = None) -> Path:
    """The name by which the home is asked for; there may be links in it."""
    name = root or os.environ.get("THUMBWISE_HOME") or platformdirs.user_data_dir("thumbwise", False)
    return Path(name).expanduser().absolute()


def _no_home(home: Home, error: OSError) -> ThumbwiseError:
    return ThumbwiseError(
        f"{home.root} cannot be the home folder ({error.filename}: {error.strerror}): set THUMBWISE_HOME to a "
        "folder that you may write to."
    )


def _not_ours(path: Path, what: str, error: OSError) -> ThumbwiseError:
    return ThumbwiseError(f"{path} cannot be {what} ({error.strerror}): the user that runs this must own it.")


def _secret(path: Path) -> str:
    """Read a secret, or make one where there is none."""
    try:
        if kept := path.read_text().strip():
            return kept
    except FileNotFoundError:
        pass
    except OSError as error:
        raise ThumbwiseError(
            f"{path} cannot be read ({error.strerror}): the user that runs this must own it."
        ) from None
    made = secrets.token_urlsafe(32)
    write_durably(path, made.encode(), mode=0o600)
    return made


def _renew_exposed(path: Path) -> None:
    """Remove a secret that others could read or write: it is made again."""
    with suppress(FileNotFoundError):
        if path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            log.warning("Others could read or write %s: it is made again.", path)
            path.unlink()


class HomeLock:
    """The home's exclusive lock, held for as long as this object is open.

    Raises Conflict where another process holds it, naming its URL when it has told one.
    """

    def __init__(self, home: Home) -> None:
        self.home = home
        try:
            self._file = os.fdopen(os.open(home.lock, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600), "a+")
            home.lock.chmod(0o600)
        except OSError as error:
            raise _not_ours(home.lock, "written", error) from None
        try:
            fcntl.fcntl(self._file, fcntl.F_OFD_SETLK, _WHOLE_FILE)
        except OSError:
            self._file.close()
            where = running_url(home)
            raise Conflict(
                f"Another assistant already runs on {home.root}"
                + (f" at {where}" if where else "")
                + ". Stop it first, or set THUMBWISE_HOME to another folder."
            ) from None
        for secret in (home.token, home.browser_secret):
            _renew_exposed(secret)
        self.announce(None)

    def announce(self, url: str | None) -> None:
        """Write where the holder listens (None: not yet), for `running_url`."""
        self._file.seek(0)
        self._file.truncate()
        json.dump({"url": url, "pid": os.getpid()}, self._file)
        self._file.flush()

    def close(self) -> None:
        """Release the lock."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def running_url(home: Home) -> str | None:
    """Return the URL of the assistant that holds the home's lock, or None where nobody holds it.

    Raises ThumbwiseError where others could have written it: the job's token is sent there.
    """
    try:
        with home.lock.open() as file:
            status = os.fstat(file.fileno())
            if status.st_uid not in (os.getuid(), 0) or trust.writable_by_others(status):
                raise ThumbwiseError(
                    f"{home.lock} is another user's, or they can write it: `chmod go-rwx {home.root}`, stop the "
                    "assistant, remove the file and start it again."
                )
            (kind,) = struct.unpack_from("h", fcntl.fcntl(file, fcntl.F_OFD_GETLK, _WHOLE_FILE))
            if kind == fcntl.F_UNLCK:
                return None
            url = json.loads(file.read() or "{}").get("url")
    except (FileNotFoundError, json.JSONDecodeError):  # the latter: caught between truncate and write
        return None
    except OSError as error:
        raise ThumbwiseError(
            f"{home.lock} cannot be read ({error.strerror}): the user that runs this must own it."
        ) from None
    return str(url) if url else None


def fsync_folder(folder: Path) -> None:
    """Make a rename or a new file in `folder` survive a power cut."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_durably(path: Path, data: bytes, mode: int = 0o666) -> None:
    """Write `data` to `path` so that it is there whole, or not at all, after a crash; `mode` is less the umask."""
    side = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with open(side, "wb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        side.replace(path)
    finally:
        side.unlink(missing_ok=True)
    fsync_folder(path.parent)

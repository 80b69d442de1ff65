"""The home folder, which holds everything that outlives a process, and the lock that guards it.

The file `lock` is an advisory lock, held by the one process that may open `feedback.db`. It also says where that
process listens, so that every other command finds it. This note is trusted only while the lock is held: after a crash
the file means nothing. Left out: network file systems, because the lock and SQLite's WAL need a local disk.
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

# struct flock: a write lock on the whole file. An open file description lock (OFD), and not flock(), because it can be
# tested without being taken: a command that looks for the assistant never prevents its start.
_WHOLE_FILE = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)


@dataclass(frozen=True)
class Home:
    """The paths in one home folder. `Home.find()` reads THUMBWISE_HOME."""

    root: Path

    @classmethod
    def find(cls, root: str | Path | None = None) -> Home:
        """Return the home at `root`, THUMBWISE_HOME or the platform's user data folder; it is made if missing.

        The right of others to write in it is removed. Raises ThumbwiseError if it cannot be our home.
        """
        home = cls.at(root)
        try:
            for folder in home.folders:
                folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            home.refuse_foreign(named(root))
            for path in home.open_to_others():
                log.warning("Others could write to %s: this right is removed now.", path)
                path.chmod(path.stat().st_mode & ~(stat.S_IWGRP | stat.S_IWOTH))
        except OSError as error:
            raise _no_home(home, error) from None
        return home

    @classmethod
    def at(cls, root: str | Path | None = None) -> Home:
        """Return that home, whether it exists or not; nothing is made, changed or checked."""
        return cls(named(root).resolve())

    @property
    def folders(self) -> tuple[Path, ...]:
        """The home and the folders in it."""
        return self.root, self.models, self.policies, self.runs, self.snapshots, self.plugins, self.cache

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that a home cannot do without, and those that SQLite keeps beside the database."""
        beside = (self.database.with_name(self.database.name + end) for end in ("-wal", "-shm"))
        return self.config, *self.secrets, self.lock, self.database, *beside

    @property
    def secrets(self) -> tuple[Path, ...]:
        """The files that nobody else may read."""
        return self.token, self.operator, self.browser_secret

    def refuse_foreign(self, name: Path) -> None:
        """Raise ThumbwiseError if another user owns something in it, or could put another home at `name`.

        Also if nothing can be written, as on a read-only disk.
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
        """Its folders and files that others may write to, whether or not they can reach them."""
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
        """The lock file: the lock, and the running assistant's URL."""
        return self.root / "lock"

    @property
    def token(self) -> Path:
        """The training job's bearer token, mode 0600."""
        return self.root / "job.token"

    @property
    def operator(self) -> Path:
        """The command line's bearer token, mode 0600."""
        return self.root / "operator.token"

    @property
    def browser_secret(self) -> Path:
        """The secret that signs browsers' cookies, mode 0600."""
        return self.root / "browser.secret"

    @property
    def models(self) -> Path:
        """Prepared base models."""
        return self.root / "models"

    @property
    def policies(self) -> Path:
        """One folder for each policy version; it never changes once its manifest is there."""
        return self.root / "policies"

    @property
    def runs(self) -> Path:
        """One folder for each training run."""
        return self.root / "runs"

    @property
    def snapshots(self) -> Path:
        """Feedback snapshots, `<sha256>.jsonl`, immutable."""
        return self.root / "snapshots"

    @property
    def plugins(self) -> Path:
        """Plugin files, and the list of enabled entry points."""
        return self.root / "plugins"

    @property
    def cache(self) -> Path:
        """Caches of compilers and Gradio. Others must not write there. It can be removed at any time."""
        return self.root / "cache"

    def job_token(self) -> str:
        """Return the job's bearer token; the first call makes it (0600)."""
        return _secret(self.token)

    def operator_token(self) -> str:
        """Return the command line's bearer token, which opens all operations; the first call makes it (0600)."""
        return _secret(self.operator)

    def cookie_secret(self) -> str:
        """Return the secret that signs browsers' cookies; the first call makes it (0600)."""
        return _secret(self.browser_secret)


def named(root: str | Path | None = None) -> Path:
    """The path that was asked for as home; it may contain links."""
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
    """Read a secret, or make one if there is none."""
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
    """Remove a secret that others could read or write; it is made again later."""
    with suppress(FileNotFoundError):
        if path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            log.warning("Others could read or write %s: a new one is made.", path)
            path.unlink()


class HomeLock:
    """The home's exclusive lock, held as long as this object is open.

    Raises Conflict if another process holds it, with its URL if that is known.
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
        for secret in home.secrets:
            _renew_exposed(secret)
        self.announce(None)

    def announce(self, url: str | None) -> None:
        """Write where this process listens (None: not yet); `running_url` reads it."""
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
    """Return the URL of the assistant that holds the home's lock, or None if nobody holds it.

    Raises ThumbwiseError if others could have written it, because a token is sent to that URL.
    """
    try:
        with home.lock.open() as file:
            status = os.fstat(file.fileno())
            if status.st_uid not in (os.getuid(), 0) or trust.writable_by_others(status):
                raise ThumbwiseError(
                    f"{home.lock} belongs to another user, or others can write it: `chmod go-rwx {home.root}`, stop "
                    "the assistant, remove the file and start it again."
                )
            (kind,) = struct.unpack_from("h", fcntl.fcntl(file, fcntl.F_OFD_GETLK, _WHOLE_FILE))
            if kind == fcntl.F_UNLCK:
                return None
            url = json.loads(file.read() or "{}").get("url")
    except (FileNotFoundError, json.JSONDecodeError):  # the latter: read between truncate and write
        return None
    except OSError as error:
        raise ThumbwiseError(
            f"{home.lock} cannot be read ({error.strerror}): the user that runs this must own it."
        ) from None
    return str(url) if url else None


def fsync_folder(folder: Path) -> None:
    """Make a rename or a new file in `folder` survive a power failure."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_durably(path: Path, data: bytes, mode: int = 0o666) -> None:
    """Write `data` to `path` so that after a crash it is there whole or not at all; the umask applies to `mode`."""
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

"""Whether another user of this machine could change a file of ours, or put something else in its place.

Asked of the file and of all that the system passes on the way to it: every folder up to the root, and every link with
what it leads to. Whoever may write a folder may exchange what is in it, but for a folder like /tmp (sticky), where only
what belongs to others may not be touched. Root is trusted. Left out: access lists beyond the mode, which show in it as
rights of the group.
"""

from __future__ import annotations

import grp
import os
import pwd
import stat
from collections.abc import Iterator
from pathlib import Path

from thumbwise.errors import ThumbwiseError

_MOST_LINKS = 40  # as the system has it


def refuse_foreign(path: Path, within: Path | None = None) -> None:
    """Raise ThumbwiseError where another user owns `path` or could exchange it; who may write into it is not asked.

    Nor of folders `within` one that the caller looks after: only who owns them.
    """
    trusted = _trusted()
    for place in passed(path):
        status = place.lstat()
        if status.st_uid not in trusted:
            raise ThumbwiseError(
                f"{place} belongs to another user ({_name(status.st_uid)}): run this as that user, or `chown` it to "
                f"yours ({_name(os.getuid())})."
            )
        if place == path or (within is not None and place.is_relative_to(within)):
            continue
        if _open_to_others(status):
            raise ThumbwiseError(
                f"{place} can be written by others, who could put something else at {path}: `chmod go-w` it, or use "
                "another place."
            )


def passed(path: Path) -> Iterator[Path]:
    """Every folder and link on the way to `path`, from the root on, and then that itself."""
    left, links = list(reversed(path.absolute().parts)), 0
    here = Path(left.pop())
    yield here
    while left:
        part = left.pop()
        if part == "..":
            here = here.parent
            continue
        here = here / part
        yield here
        if here.is_symlink():
            if (links := links + 1) > _MOST_LINKS:
                raise ThumbwiseError(f"{path} leads in a circle of links: mend it.")
            target = here.readlink()
            left += reversed(target.parts[1:] if target.is_absolute() else target.parts)
            here = Path(target.anchor) if target.is_absolute() else here.parent


def writable_by_others(status: os.stat_result) -> bool:
    """Whether the mode of a file or folder lets the group or everybody write it."""
    return not stat.S_ISLNK(status.st_mode) and bool(status.st_mode & (stat.S_IWGRP | stat.S_IWOTH))


def _open_to_others(status: os.stat_result) -> bool:
    """The same of a folder on the way, where a group of this user alone is no other, and neither is who uses /tmp."""
    if not writable_by_others(status) or status.st_mode & stat.S_ISVTX:
        return False
    return bool(status.st_mode & stat.S_IWOTH) or not _own_group(status.st_gid)


def _own_group(gid: int) -> bool:
    """Whether a group is the one that many systems make for each user, with their name and nobody else in it."""
    try:
        group, user = grp.getgrgid(gid), pwd.getpwuid(os.getuid())
    except KeyError:
        return False
    return group.gr_name == user.pw_name and set(group.gr_mem) <= {user.pw_name}


def _trusted() -> set[int]:
    """Us, root, and in a container without the machine's root what stands for him there."""
    users = {os.getuid(), 0}
    if Path("/proc/self/uid_map").read_text().split() != ["0", "0", "4294967295"]:
        users.add(int(Path("/proc/sys/kernel/overflowuid").read_text()))
    return users


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)

"""Whether another user of this machine could change one of our files, or put something else in its place.

The file is checked, and everything on its path: each folder from the root on, and each link with its target. Who may
write to a folder may exchange what is in it. In a folder with the sticky bit, such as /tmp, they may not touch what
belongs to others. Root is trusted. Left out: access control lists, which show in the mode as rights of the group.
"""

from __future__ import annotations

import grp
import os
import pwd
import stat
from collections.abc import Iterator
from pathlib import Path

from thumbwise.errors import ThumbwiseError

_MOST_LINKS = 40  # the limit of Linux


def refuse_foreign(path: Path, within: Path | None = None) -> None:
    """Raise ThumbwiseError if another user owns `path`, or could exchange it for something else.

    Who may write to `path` itself is not checked. Of paths `within` a folder that the caller checks, only the owner is
    checked.
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
    """Every folder and link on the way to `path`, from the root on, and at last `path`."""
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
                raise ThumbwiseError(f"{path} leads in a circle of links: repair them.")
            target = here.readlink()
            left += reversed(target.parts[1:] if target.is_absolute() else target.parts)
            here = Path(target.anchor) if target.is_absolute() else here.parent


def writable_by_others(status: os.stat_result) -> bool:
    """Whether the mode of a file or folder lets the group or everybody write it."""
    return not stat.S_ISLNK(status.st_mode) and bool(status.st_mode & (stat.S_IWGRP | stat.S_IWOTH))


def _open_to_others(status: os.stat_result) -> bool:
    """Whether others may exchange what is in a folder. A sticky folder and a group of this user alone do not count."""
    if not writable_by_others(status) or status.st_mode & stat.S_ISVTX:
        return False
    return bool(status.st_mode & stat.S_IWOTH) or not _own_group(status.st_gid)


def _own_group(gid: int) -> bool:
    """Whether a group is the one that many systems make for each user: same name, no other member."""
    try:
        group, user = grp.getgrgid(gid), pwd.getpwuid(os.getuid())
    except KeyError:
        return False
    return group.gr_name == user.pw_name and set(group.gr_mem) <= {user.pw_name}


def _trusted() -> set[int]:
    """This user and root. In a user namespace without the machine's root, also the user id that stands for root."""
    users = {os.getuid(), 0}
    if Path("/proc/self/uid_map").read_text().split() != ["0", "0", "4294967295"]:
        users.add(int(Path("/proc/sys/kernel/overflowuid").read_text()))
    return users


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)

"""Owners and modes of what we put on disk: shared within one group, never readable by the world."""

import os
from pathlib import Path

FILE_MODE = 0o640


def adopt_owner(path: Path) -> None:
    """Made by root, the path belongs to whom its directory belongs to, so that the daemons can use it."""
    if os.geteuid() != 0:
        return
    parent = path.parent.stat()
    if (parent.st_uid, parent.st_gid) != (0, 0):
        os.chown(path, parent.st_uid, parent.st_gid)


def make_shared_directory(path: Path, mode: int) -> None:
    """The directory exists; a new one has exactly that mode (with setgid: its files belong to the same group)."""
    try:
        path.mkdir()
    except FileExistsError:
        return
    adopt_owner(path)
    path.chmod(mode)  # after chown, which clears setgid, and whatever the umask


def fsync_directory(path: Path) -> None:
    """The names in the directory are on disk for good."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

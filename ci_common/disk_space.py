"""How much room a file system has left: for whoever writes to one and must stop before it is full."""

import os
from dataclasses import dataclass
from pathlib import Path

_UNITS = ("KiB", "MiB", "GiB", "TiB")


@dataclass(frozen=True, slots=True)
class Space:
    """What one file system has left for a user without privileges."""

    free_bytes: int
    free_inodes: int
    inodes: int  # in all; 0 where the file system does not count them (btrfs)

    @property
    def free_inodes_percent(self) -> float:
        """Of all inodes, 100 where they are not counted."""
        return 100.0 * self.free_inodes / self.inodes if self.inodes else 100.0


def space_of(path: Path) -> Space:
    """Return what is left on the file system of a path, or of the nearest folder above it that exists yet.

    Raises OSError. It may wait for a network's file system, so never call it on an event loop's thread.
    """
    found = os.statvfs(_existing(path))
    return Space(found.f_bavail * found.f_frsize, found.f_favail, found.f_files)


def readable_bytes(count: int) -> str:
    """Return a size as people write it: `512 bytes`, `4.3 GiB`."""
    if count < 1024:
        return f"{count} bytes"
    power = min((count.bit_length() - 1) // 10, len(_UNITS))
    size = count / 1024**power
    return f"{size:.3g} {_UNITS[power - 1]}" if size < 1000 else f"{size:.0f} {_UNITS[power - 1]}"


def _existing(path: Path) -> Path:
    path = path.absolute()
    while not path.exists() and path != path.parent:
        path = path.parent
    return path

"""Opening what is in a directory and nothing that a link there names; reading and writing all that was asked for."""

import errno
import os
from pathlib import Path
from typing import Final

_A_LINK: Final = (errno.ELOOP, errno.ENOTDIR)


def open_in_place(path: Path, flags: int, mode: int = 0o600) -> int:
    """Return the file's descriptor; raises OSError where it, or its directory, is a link.

    The directory may be another user's than this process's, who could put a link there at any moment: so both are
    opened, and nothing is looked at first.
    """
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        return os.open(path.name, flags | os.O_NOFOLLOW, mode, dir_fd=directory)
    finally:
        os.close(directory)


def is_of_a_link(error: OSError) -> bool:
    """Tell whether something could not be opened because a link, or no directory, is in its place."""
    return error.errno in _A_LINK


def read_fully(descriptor: int, offset: int, length: int) -> bytes:
    """Return so many bytes from there: fewer only at the end of the file."""
    parts: list[bytes] = []
    while length > 0 and (part := os.pread(descriptor, length, offset)):
        parts.append(part)
        offset, length = offset + len(part), length - len(part)
    return b"".join(parts)


def write_fully(descriptor: int, data: bytes) -> None:
    """All of it is written, where the descriptor stands."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]

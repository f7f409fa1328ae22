"""Opening files of a directory and nothing that a link there names; reading and writing all that was asked for."""

import errno
import os
import stat
from pathlib import Path
from typing import Final

# A link, no directory, and what the kernel itself says of sockets and of pipes that nobody reads.
_NO_FILE: Final = (errno.ELOOP, errno.ENOTDIR, errno.ENXIO)


def open_in_place(path: Path, flags: int, mode: int = 0o600) -> int:
    """Return the file's descriptor; raises OSError where it is no regular file, or it or its directory a link.

    The directory may be another user's than this process's, who could put a link there at any moment: so both are
    opened, and nothing is looked at first. Nobody is waited for, as the other end of a pipe would be.
    """
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        descriptor = os.open(path.name, flags | os.O_NOFOLLOW | os.O_NONBLOCK, mode, dir_fd=directory)
    finally:
        os.close(directory)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.ENXIO, "Not a regular file", str(path))
    return descriptor


def is_of_no_file(error: OSError) -> bool:
    """Tell whether something could not be opened because a link, a pipe, or no directory, is in its place."""
    return error.errno in _NO_FILE


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

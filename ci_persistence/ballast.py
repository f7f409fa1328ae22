"""Room that is kept for a database whose disk fills up: a file that is there only to be given back.

On a full disk SQLite cannot even delete, because that too is written to the write-ahead log first. With the
ballast's room the jobs that run are still recorded as they end.
"""

import errno
import os
from pathlib import Path
from typing import Final

from ci_persistence.ownership import adopt_owner

# What a write-ahead log grows to before SQLite writes it back and begins it again: 1000 pages of 4 KiB.
BALLAST_BYTES: Final = 4 * 1024**2


class Ballast:
    """The file beside one database."""

    def __init__(self, database: Path) -> None:
        self._path = database.with_name(database.name + ".ballast")

    def take_on(self) -> None:
        """The file takes its room, or there is none of it; raises OSError for other troubles than a full disk."""
        try:
            descriptor = os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o660)
        except FileExistsError:
            return
        try:
            os.posix_fallocate(descriptor, 0, BALLAST_BYTES)
            adopt_owner(self._path)
        except OSError as error:
            self.throw_off()
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
        finally:
            os.close(descriptor)

    def throw_off(self) -> bool:
        """The room is free; returns whether there was a file."""
        try:
            self._path.unlink()
        except FileNotFoundError:
            return False
        return True

"""Whose fault it is that an upload is not in the store: never its owner's, as long as nothing has pruned it.

A shared directory that is not mounted on this machine looks like a store that lost everything.
"""

import errno
from collections.abc import Generator
from contextlib import contextmanager

from ci_common.errors import InvalidArchive

NOT_THERE = "it is not in the store; a machine may not see the directory that holds it"


@contextmanager
def missing_as_unreadable() -> Generator[None]:
    """An upload that is gone comes out as FileNotFoundError, as that of a disk that cannot be read.

    For a job that has not ended: only the uploads of ended ones are pruned.
    """
    try:
        yield
    except InvalidArchive as error:
        if error.extra.get("rule") != "gone":
            raise
        raise FileNotFoundError(errno.ENOENT, NOT_THERE) from error

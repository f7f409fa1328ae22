"""Whose fault it is that an upload is not in the store: never its owner's, as long as nothing has pruned it.

A shared directory that is not mounted on this machine looks like a store that lost everything: its jobs wait. Where
others are and one is not, no waiting brings it back.
"""

import errno
from collections.abc import Generator
from contextlib import contextmanager
from typing import Final

from ci_common.errors import InvalidArchive

NOT_THERE: Final = "it is not in the store; a machine may not see the directory that holds it"
LOST: Final = "it is gone from the store, where others still are, so the job has to be submitted again"


class UploadLost(FileNotFoundError):
    """It alone is not there: somebody deleted it."""


def is_lost_for_good(error: Exception, attempt: int) -> bool:
    """Tell whether the job is to be given up: it was asked for twice, so perhaps at two machines, some time apart."""
    return isinstance(error, UploadLost) and attempt > 1


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
        if error.extra.get("others"):
            raise UploadLost(errno.ENOENT, LOST) from error
        raise FileNotFoundError(errno.ENOENT, NOT_THERE) from error

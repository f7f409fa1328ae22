"""Named places between two durable effects where a test may make a process die as `kill -9` would.

`CI_CRASH_AT=name` (or `name:3` for the third time it is reached) in the environment arms one; otherwise a
crash point does nothing. The list is closed, so that a test can walk all of them.
"""

import itertools
import os
from collections import defaultdict
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import Final, Literal, get_args

CrashPoint = Literal[
    # the controller, in the order in which one job passes them
    "after_take_over",
    "after_claim",
    "before_create",
    "after_create",
    "after_start",
    "after_waiting",
    "after_taken",
    "after_mark_started",
    "after_rename",
    "during_feed",
    "after_prepared",
    "after_commit",
    "after_feed",
    "after_mark_begun",
    "during_pump",
    "after_record_stop",
    "after_stop_signal",
    "after_exit",
    "after_seal",
    "after_finish",
    "before_remove",
    "after_remove",
    # the controller or ci-admin, between marks, files and rows
    "after_prune_marked",
    "after_prune_files",
    "after_packs_removed",
    # the controller, between the compressed form of a log and the end of the plain one
    "after_log_compressed",
    # the controller or ci-admin, at each statement of a migration and behind its commit
    "during_migration",
    "after_migration",
    # ci-admin, while it fills a backup or puts one back
    "after_backup_filled",
    "after_restore_files",
    "after_restore_set_aside",
    # the server
    "during_upload",
    "after_pack_saved",
    "after_pack_added",
    "after_archive_saved",
    "after_job_created",
    # ci-admin; the first also the server, which audits cancels
    "during_audited_write",
    "after_user_created",
    "after_key_created",
]
CRASH_POINTS: Final[tuple[CrashPoint, ...]] = get_args(CrashPoint)

_counts: defaultdict[str, Iterator[int]] = defaultdict(lambda: itertools.count(1))


def _die_if_armed(name: CrashPoint) -> None:
    """The process goes on, unless this point is armed: then it is gone at once, as if killed (137)."""
    armed = os.environ.get("CI_CRASH_AT")
    if armed is None:
        return
    wanted, _, nth = armed.partition(":")
    if wanted == name and next(_counts[name]) == int(nth or 1):
        os._exit(137)


_reached: Callable[[CrashPoint], None] = _die_if_armed


def crash_point(name: CrashPoint) -> None:
    """The process goes on, unless a test wants it to die here."""
    _reached(name)


@contextmanager
def told_of_crash_points(reached: Callable[[CrashPoint], None]) -> Generator[None]:
    """In this context `reached` is called at every crash point, in whatever thread: what it raises is the death."""
    global _reached
    before, _reached = _reached, reached
    try:
        yield
    finally:
        _reached = before

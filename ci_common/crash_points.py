"""Named places between two durable effects where a test may make a process die as `kill -9` would.

`CI_CRASH_AT=name` (or `name:3` for the third time it is reached) in the environment arms one; otherwise a
crash point does nothing. The list is closed, so that a test can walk all of them.
"""

import itertools
import os
from collections import defaultdict
from collections.abc import Iterator
from typing import Final, Literal, get_args

CrashPoint = Literal[
    # the controller, in the order in which one job passes them
    "after_claim",
    "after_create",
    "after_start",
    "after_mark_started",
    "during_feed",
    "after_feed",
    "after_mark_begun",
    "during_pump",
    "after_record_stop",
    "after_stop_signal",
    "after_exit",
    "after_seal",
    "after_finish",
    "after_remove",
    # the server
    "after_archive_saved",
    "after_job_created",
]
CRASH_POINTS: Final[tuple[CrashPoint, ...]] = get_args(CrashPoint)

_counts: defaultdict[str, Iterator[int]] = defaultdict(lambda: itertools.count(1))


def crash_point(name: CrashPoint) -> None:
    """The process goes on, unless this point is armed: then it is gone at once, as if killed (137)."""
    armed = os.environ.get("CI_CRASH_AT")
    if armed is None:
        return
    wanted, _, nth = armed.partition(":")
    if wanted == name and next(_counts[name]) == int(nth or 1):
        os._exit(137)

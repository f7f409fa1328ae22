"""The fast refusal of a second controller: a lock on a file. The truth is the epoch in the database.

Whoever gets the lock takes over by epoch. Whoever finds it held asks the database how the holder is: with a
fresh heartbeat it is refused; a holder that has been silent for long (stopped, hung) is taken over.
"""

import asyncio
import fcntl
import os
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import structlog

from ci_common.clock import Clock
from ci_common.errors import ControllerRunning
from ci_common.models import ControllerState

log = structlog.get_logger(__name__)

_SECOND_LOOK: Final = 2.0  # a holder that has only just started needs a moment to its first heartbeat


@contextmanager
def lock_file(path: Path) -> Generator[bool]:
    """While the context is open the lock is ours (True), or it is somebody else's (False).

    The file is never removed: a lock on a removed file is no lock.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o660)
    try:
        yield _try_lock(descriptor)
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


async def refuse_if_alive(
    controller_state: Callable[[], Awaitable[ControllerState | None]],
    clock: Clock,
    *,
    second_look: float = _SECOND_LOOK,
) -> None:
    """The holder of the lock has been silent for too long, so that it may be taken over; raises ControllerRunning."""
    for wait in (0.0, second_look):
        await asyncio.sleep(wait)
        state = await controller_state()
        if state is None:
            raise ControllerRunning("Another controller is starting on this database; exactly one may run.")
        now = clock.now()
        silent = (now - state.heartbeat_at).total_seconds()
        if state.is_alive(now):
            detail = f"last heard of {max(silent, 0):.0f} s ago"
            raise ControllerRunning(
                f"Another controller ({state.holder}, {detail}) serves this database; exactly one may run."
            )
    log.warning("taking over from a silent controller", holder=state.holder, silent_seconds=round(silent))

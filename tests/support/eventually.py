"""Waiting by asking: for state that only another process can show."""

import time
from collections.abc import Callable
from typing import Final, TypeVar

T = TypeVar("T")

_FIRST_PAUSE: Final = 0.005  # seconds; a check may cost a process, and this machine has few cores
_LONGEST_PAUSE: Final = 0.1


def eventually(check: Callable[[], T | None], *, seconds: float = 60.0, what: str = "the condition") -> T:
    """Return the first true-ish value of `check`; raises AssertionError after `seconds`."""
    deadline, pause = time.monotonic() + seconds, _FIRST_PAUSE
    while True:
        value = check()
        if value:
            return value
        if time.monotonic() >= deadline:
            raise AssertionError(f"{what} did not come about within {seconds:g} s")
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE)

"""Waiting by asking: for state that only another process can show."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def eventually(check: Callable[[], T | None], *, seconds: float = 30.0, what: str = "the condition") -> T:
    """Return the first true-ish value of `check`; raises AssertionError after `seconds`."""
    deadline = time.monotonic() + seconds
    while True:
        value = check()
        if value:
            return value
        if time.monotonic() >= deadline:
            raise AssertionError(f"{what} did not come about within {seconds:g} s")
        time.sleep(0.02)

"""Time as something one can inject: wall clock for people, monotonic clock for durations."""

import time
from datetime import UTC, datetime
from typing import Protocol


def utcnow() -> datetime:
    """Return the current time with the UTC zone attached."""
    return datetime.now(UTC)


class Clock(Protocol):
    """A source of time; tests pass one they can set."""

    def now(self) -> datetime:
        """Return the wall-clock time in UTC."""
        ...

    def monotonic(self) -> float:
        """Return seconds that never go back; only differences mean anything."""
        ...


class SystemClock:
    """The machine's own clocks."""

    def now(self) -> datetime:
        return utcnow()

    def monotonic(self) -> float:
        return time.monotonic()

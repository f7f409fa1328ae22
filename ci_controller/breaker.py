"""Whether the engine makes containers at all: after trouble with it, jobs are tried one at a time.

An engine that does not even list its containers is not seen here: then there is no plan at all.
"""

from dataclasses import dataclass
from typing import Final

from ci_common.clock import Clock

_FIRST_DELAY: Final = 0.25
_LONGEST_DELAY: Final = 30.0
# Longer than a job backs off and a call to the engine may take: while jobs wait, the next trial comes before.
_FORGET_AFTER: Final = 180.0


@dataclass(frozen=True, slots=True)
class Trouble:
    """Why the engine made no container when it was last asked to, and whether it is time to ask it again."""

    detail: str
    may_try: bool = False


class Breaker:
    """Remembers that the engine made no container, until it makes one or nobody has asked for long."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._detail: str | None = None
        self._delay = 0.0
        self._retry_at = 0.0

    def failed(self, detail: str) -> None:
        """The engine is in trouble; every failed trial doubles the time to the next."""
        now = self._clock.monotonic()
        if self.trouble is None:
            self._delay = _FIRST_DELAY
        elif now >= self._retry_at:  # else one of several that were begun together: they are one trial
            self._delay = min(self._delay * 2, _LONGEST_DELAY)
        self._detail, self._retry_at = detail, now + self._delay

    def reset(self) -> None:
        """Nothing is known against the engine."""
        self._detail = None

    @property
    def trouble(self) -> Trouble | None:
        """What is wrong with the engine as far as we know, None when nothing is."""
        now = self._clock.monotonic()
        if self._detail is None or now >= self._retry_at + _FORGET_AFTER:
            return None
        return Trouble(self._detail, may_try=now >= self._retry_at)

    @property
    def next_retry(self) -> float | None:
        """Seconds until the engine may be tried again, None when nothing waits for that."""
        left = self._retry_at - self._clock.monotonic()
        return left if self._detail is not None and left > 0 else None

"""How long things have lasted by the monotonic clock: a wall clock that is set changes no deadline of this process."""

from collections.abc import Collection, Generator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Final

from ci_common.clock import Clock
from ci_controller.operations import AttemptKey

_ZERO: Final = timedelta(0)


class Stopwatches:
    """One per running attempt. A successor starts where the attempt's row, in wall time, says that it is."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._started: dict[AttemptKey, float] = {}
        self._stopped_at: dict[AttemptKey, float] = {}  # of those that do not run at the moment

    def start(self, key: AttemptKey, lasted: timedelta = _ZERO) -> None:
        """The attempt has run for that long; one that is measured already goes on as it was."""
        self._started.setdefault(key, self._clock.monotonic() - max(lasted, _ZERO).total_seconds())

    def keep_to(self, keys: Collection[AttemptKey]) -> None:
        """Nothing is measured for other attempts."""
        self._started = {key: started for key, started in self._started.items() if key in keys}

    @contextmanager
    def stopped(self, key: AttemptKey) -> Generator[None]:
        """The time that passes meanwhile does not count."""
        self._stopped_at[key] = self._clock.monotonic()
        try:
            yield
        finally:
            pause = self._clock.monotonic() - self._stopped_at.pop(key)
            if key in self._started:
                self._started[key] += pause

    def readings(self) -> Mapping[AttemptKey, timedelta]:
        """Return how long each attempt has run."""
        now = self._clock.monotonic()
        return {
            key: timedelta(seconds=self._stopped_at.get(key, now) - started)
            for key, started in self._started.items()
        }


class JumpMeter:
    """How far the wall clock went ahead of the monotonic one since this was made: a jump, or the host slept."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._wall, self._monotonic = clock.now(), clock.monotonic()

    def ahead(self) -> timedelta:
        """Return that time, zero when the wall clock was set back."""
        expected = self._wall + timedelta(seconds=self._clock.monotonic() - self._monotonic)
        return max(self._clock.now() - expected, _ZERO)

"""What this process knows of open attempts beyond their rows. None of it has to survive: a successor does without."""

from collections.abc import Collection, Mapping
from datetime import timedelta

from ci_common.clock import Clock
from ci_common.models import Attempt
from ci_controller.observed_state import SentSignal
from ci_controller.operations import AttemptKey, key_of
from ci_controller.stopwatch import Stopwatches


class Notes:
    """Kept of an attempt for as long as it is open.

    They go by the rows, not when an operation says that it ended the attempt: a signal may be noted just after that,
    and where the reply to the last write was lost nobody says so.
    """

    def __init__(self, clock: Clock) -> None:
        self.stopwatches = Stopwatches(clock)
        self._clock = clock
        self._signals: dict[AttemptKey, tuple[str, float]] = {}  # the last one sent, and its monotonic time
        self._unwritable: dict[AttemptKey, float] = {}  # since when the disk has not taken the whole log
        self._isolated: set[str] = set()  # containers; a successor does it again, which changes nothing

    def keep_to(self, attempts: Collection[Attempt]) -> None:
        """There is nothing but what is about these, which are all that are open."""
        keys = {key_of(attempt) for attempt in attempts}
        self.stopwatches.keep_to(keys)
        self._signals = {key: sent for key, sent in self._signals.items() if key in keys}
        self._unwritable = {key: since for key, since in self._unwritable.items() if key in keys}
        self._isolated &= {attempt.container_id for attempt in attempts}

    def signalled(self, attempt: Attempt, signal: str) -> None:
        """That signal was sent to the attempt's container just now."""
        self._signals[key_of(attempt)] = (signal, self._clock.monotonic())

    def signals(self) -> Mapping[AttemptKey, SentSignal]:
        """Return the last signal of each attempt, its time by the wall clock of now."""
        now, monotonic = self._clock.now(), self._clock.monotonic()
        return {
            key: SentSignal(name, now - timedelta(seconds=monotonic - at))
            for key, (name, at) in self._signals.items()
        }

    def unwritable_for(self, attempt: Attempt) -> timedelta:
        """Return since how long the attempt's log cannot be written: zero when first asked."""
        now = self._clock.monotonic()
        return timedelta(seconds=now - self._unwritable.setdefault(key_of(attempt), now))

    def isolated(self, container_id: str) -> None:
        """The container has no network any more."""
        self._isolated.add(container_id)

    def not_isolated(self, containers: frozenset[str]) -> frozenset[str]:
        """Return those of the containers that have their network, as far as this process knows."""
        return containers - self._isolated

"""Whether the leader is gone, as one that waits sees it: pure, by what changes while its own monotonic clock goes on.

No clock of another host is asked: a heartbeat is a value that is another one than before, or is not.
"""

from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final

from ci_common.models import CONTROLLER_GONE_AFTER, ControllerState

LOOK_EVERY: Final = 1.0  # seconds, where nothing was heard of sooner
_CUT_FOR: Final = 1.0  # a leader that lives has its session back within less
_MISSED: Final = 5.0  # seconds without a look, and what was seen before them proves nothing


@dataclass(frozen=True, slots=True)
class _Seen:
    """A heartbeat, when it was first seen, and whether it came after another one; and since when its session has been
    missed."""

    beat: tuple[int, datetime] | None  # None: there was none yet
    since: float
    cut_since: float | None
    was_heard: bool


class Vigil:
    """Remembers what was seen of the leader."""

    def __init__(self) -> None:
        self._seen: _Seen | None = None
        self._looked_at = 0.0

    def forget(self) -> None:
        """Nothing that was seen counts: where the database was away, no leader could be heard of either."""
        self._seen = None

    def asked(self, now: float) -> None:
        """What was seen counts on, although nobody looked while the database was asked and did not answer for long."""
        self._looked_at = now

    @property
    def has_heard(self) -> bool:
        """Tell whether the last heartbeat came while we looked: a row alone may be a dead leader's."""
        return self._seen is not None and self._seen.was_heard

    def is_silent(self, now: float) -> bool:
        """Tell whether the row has been the same for so long that nobody who is to write it can be waited for."""
        return self._seen is not None and now - self._seen.since >= CONTROLLER_GONE_AFTER.total_seconds()

    def is_over(
        self, state: ControllerState | None, *, has_session: bool, now: float, may_return: bool = False
    ) -> str | None:
        """Return why the leader of that state counts as gone; None: it may live, go on waiting.

        One that may return is given until its silence says that it does not: it may only be started again.
        """
        seen = self._noted(state, has_session or may_return, now)
        if state is None:
            return "there was none"
        if state.is_released and not may_return:
            return "it was stopped"
        if seen.cut_since is not None and now - seen.cut_since >= _CUT_FOR:
            return "it has died, or has lost the database"
        return f"it is silent for {now - seen.since:.0f} s" if self.is_silent(now) else None

    def _noted(self, state: ControllerState | None, has_session: bool, now: float) -> _Seen:
        before = self._seen if now - self._looked_at < _MISSED else None
        self._looked_at = now
        beat = (state.epoch, state.heartbeat_at) if state else None
        if before is None or before.beat != beat:
            before = _Seen(beat, now, None, was_heard=before is not None)
        cut_since = None if has_session else before.cut_since if before.cut_since is not None else now
        self._seen = replace(before, cut_since=cut_since)
        return self._seen

"""Whether we may still act for our jobs: a lease on our own monotonic clock, renewed by the heartbeat.

The fence of each write is what protects the database; the engine cannot check a fence, so before calls to it
that matter we ask this lease. A process that was stopped for a minute finds it expired.
"""

from typing import Final

from ci_common.clock import Clock

_PARTS: Final = (
    5  # of a lease: after each comes a heartbeat, and without the last one we stop trusting ourselves
)


class Superseded(Exception):
    """Somebody else may be acting in our place: leave everything as it is."""


class Lease:
    """Trust in ourselves, for a while after each successful heartbeat."""

    def __init__(self, clock: Clock, seconds: float) -> None:
        self.seconds = seconds  # after which others count us as gone
        self._clock = clock
        self._trusted_until = clock.monotonic()

    @property
    def heartbeat_interval(self) -> float:
        """Seconds between two heartbeats."""
        return self.seconds / _PARTS

    def renewed(self, asked_at: float) -> None:
        """We may act until a while after `asked_at`: when the heartbeat was asked for, not when it came back."""
        self._trusted_until = asked_at + self.seconds * (_PARTS - 1) / _PARTS

    def require(self) -> None:
        """We may act now; raises Superseded."""
        if self._clock.monotonic() >= self._trusted_until:
            raise Superseded("the lease has expired")

"""Whether we may still act as the controller: a lease on our own monotonic clock, renewed by the heartbeat.

The fence of each write is what protects the database; the engine cannot check a fence, so before calls to it
that matter we ask this lease. A process that was stopped for a minute finds it expired.
"""

from typing import Final

from ci_common.clock import Clock
from ci_common.models import CONTROLLER_GONE_AFTER

_MARGIN: Final = 3.0  # we stop trusting ourselves that much earlier
HEARTBEAT_INTERVAL: Final = 3.0


class Superseded(Exception):
    """Somebody else may be acting in our place: leave everything as it is."""


class Lease:
    """Trust in ourselves, for a while after each successful heartbeat."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._trusted_until = clock.monotonic()

    def renewed(self, asked_at: float) -> None:
        """We may act until a while after `asked_at`: when the heartbeat was asked for, not when it came back."""
        self._trusted_until = asked_at + CONTROLLER_GONE_AFTER.total_seconds() - _MARGIN

    def require(self) -> None:
        """We may act now; raises Superseded."""
        if self._clock.monotonic() >= self._trusted_until:
            raise Superseded("the lease has expired")

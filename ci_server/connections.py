"""How many connections one process holds, in all and per client address, and how long each may dawdle.

Pure bookkeeping: the sockets are `ci_server.http_protocol`'s.
"""

from collections import Counter
from dataclasses import dataclass

from ci_server.rate_limits import caller_of
from ci_server.settings import ServerSettings, trusted_proxies

STATE_KEY = "connection_limits"  # under which the app hands these limits to the protocol


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds a connection may take."""

    head: float  # from the connection, or from the first byte of a later request, to the end of its head
    send: float  # in which a reader must take something while something waits for it

    @classmethod
    def of(cls, settings: ServerSettings) -> "Timeouts":
        return cls(settings.header_timeout, settings.stream_send_timeout)


class ConnectionLimits:
    """Counts the open connections of one process."""

    def __init__(self, settings: ServerSettings) -> None:
        self.timeouts = Timeouts.of(settings)
        self._most = settings.max_connections
        self._most_per_address = settings.max_connections_per_address
        self._uncounted = trusted_proxies(settings)
        self._total = 0
        self._by_address: Counter[str] = Counter()

    def admit(self, address: str) -> bool:
        """Tell whether one more connection from there may stay; if so it is counted until `release`.

        Of IPv6 a whole /64 is one address: its owner has as many as it likes. A trusted proxy speaks for many
        people, and a Unix socket has no address: only the total holds for them.
        """
        caller = self._counted_as(address)
        if self._total >= self._most or (caller and self._by_address[caller] >= self._most_per_address):
            return False
        self._total += 1
        if caller:
            self._by_address[caller] += 1
        return True

    def release(self, address: str) -> None:
        """A connection that was admitted is over."""
        self._total -= 1
        if caller := self._counted_as(address):
            self._by_address[caller] -= 1
            if not self._by_address[caller]:
                del self._by_address[caller]

    def _counted_as(self, address: str) -> str | None:
        """Return the caller whose connections are counted, None for whom only the total holds."""
        return caller_of(address) if address and address not in self._uncounted else None

"""How often one may ask: per key, per address, and how many wrong keys an address may try. Knows no HTTP.

Counted in this process alone: with several replicas the limits are as many times as high. Exact enough to keep
one caller from starving the others; what must hold across replicas is counted in the database (the queue's limits).
"""

import ipaddress
import math
from collections import OrderedDict, deque

from limits import RateLimitItem, RateLimitItemPerMinute
from limits.storage.base import MovingWindowSupport, Storage
from limits.strategies import MovingWindowRateLimiter

from ci_common.api_keys import hash_api_key
from ci_common.clock import Clock
from ci_common.errors import RateLimited
from ci_server.settings import ServerSettings

_MOST_CALLERS = 10_000  # whose requests are remembered; beyond, who has asked longest ago is forgotten
_MOST_GOOD_KEYS = 10_000
_IPV6_NETWORK = 64  # bits: what one customer has at least, so its addresses are one caller


class RateLimits:
    """Judges requests; raises RateLimited, with the seconds to wait, for those that come too fast."""

    def __init__(self, settings: ServerSettings, clock: Clock) -> None:
        self._clock = clock
        self._windows = BoundedWindows(clock)
        self._limiter = MovingWindowRateLimiter(self._windows)
        self._good_keys: OrderedDict[str, None] = OrderedDict()
        self._of_key = _per_minute(settings.max_requests_per_key, "key")
        self._of_agent = _per_minute(settings.max_requests_per_agent, "agent")
        self._of_agent_logs = _per_minute(settings.max_requests_per_agent, "agent-logs")
        self._of_submissions = _per_minute(settings.max_submissions_per_key, "submissions")
        self._of_address = _per_minute(settings.max_requests_per_address, "address")
        self._of_failures = _per_minute(settings.max_failed_keys_per_address, "failures")

    def request_from(self, address: str) -> None:
        """A request from there is counted, whoever makes it."""
        if address:  # none behind a Unix socket: everybody would be one caller
            self._count(self._of_address, caller_of(address), "This address sends")

    def request_by(self, key_id: str) -> None:
        """A request of that key is counted."""
        self._count(self._of_key, key_id, "This API key makes")

    def report_by(self, key_id: str) -> None:
        """A request of that agent's key about what it runs is counted."""
        self._count(self._of_agent, key_id, "This agent makes")

    def piece_by(self, key_id: str) -> None:
        """A piece of log or events of that agent's key is counted apart from its reports: a noisy job holds up none."""
        self._count(self._of_agent_logs, key_id, "This agent sends pieces of logs:")

    def submission_by(self, key_id: str, jobs: int = 1) -> None:
        """So many submissions of that key are counted, all of them or none."""
        self._count(self._of_submissions, key_id, "This API key makes submissions:", jobs)

    def guess_from(self, address: str, token: str) -> None:
        """The key may be looked up: it was good a while ago, or few wrong ones came from that address.

        So who guesses is stopped before the database is asked, and whoever shares their address (a NAT) goes on
        with the keys that this process has seen to be good. A good key that is new to it waits a minute at most.
        """
        item = self._of_failures
        caller = caller_of(address)
        if item and hash_api_key(token) not in self._good_keys and not self._limiter.test(item, caller):
            raise self._refusal(item, caller, "From this address came too many wrong API keys:")

    def key_was(self, address: str, token: str, *, good: bool) -> None:
        """What became of a look-up is remembered: a wrong key counts against its address."""
        digest = hash_api_key(token)
        self._good_keys.pop(digest, None)
        if good:
            self._good_keys[digest] = None
            if len(self._good_keys) > _MOST_GOOD_KEYS:
                self._good_keys.popitem(last=False)
        elif self._of_failures:
            self._limiter.hit(self._of_failures, caller_of(address))

    def _count(self, item: RateLimitItem | None, caller: str, who: str, times: int = 1) -> None:
        if item and times and not self._limiter.hit(item, caller, cost=times):
            raise self._refusal(item, caller, who)

    def _refusal(self, item: RateLimitItem, caller: str, who: str) -> RateLimited:
        free_at = self._limiter.get_window_stats(item, caller).reset_time
        seconds = max(1, math.ceil(free_at - self._clock.monotonic()))
        message = f"{who} more than {item.amount} per minute are too many; go on in {seconds} s."
        return RateLimited(message, retry_after=seconds, limit=item.amount)


def caller_of(address: str) -> str:
    """Return what an address is counted as: itself, of IPv6 its network."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv4Address):
        return address
    if parsed.ipv4_mapped:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.ip_network((parsed, _IPV6_NETWORK), strict=False))


class BoundedWindows(Storage, MovingWindowSupport):
    """The memory of moving windows, bounded in callers, on the monotonic clock, without threads.

    Why not the library's own: at nearly every request it walks all callers in another thread, and keeps any number.
    """

    STORAGE_SCHEME = None  # not to be found by a URL

    def __init__(self, clock: Clock, most: int = _MOST_CALLERS) -> None:
        super().__init__()
        self._clock = clock
        self._most = most
        self._times: OrderedDict[str, deque[float]] = OrderedDict()  # who asked last stands last

    def __len__(self) -> int:
        """Return how many callers are remembered."""
        return len(self._times)

    @property
    def base_exceptions(self) -> tuple[type[Exception], ...]:
        return ()

    def acquire_entry(self, key: str, limit: int, expiry: int, amount: int = 1) -> bool:
        times = self._within(key, expiry)
        if len(times) + amount > limit:
            return False
        times.extend([self._clock.monotonic()] * amount)
        self._times[key] = times
        self._times.move_to_end(key)
        self._forget(expiry)
        return True

    def get_moving_window(self, key: str, limit: int, expiry: int) -> tuple[float, int]:  # noqa: ARG002
        times = self._within(key, expiry)
        return (times[0] if times else self._clock.monotonic()), len(times)

    def clear(self, key: str) -> None:
        self._times.pop(key, None)

    def reset(self) -> int | None:
        forgotten = len(self._times)
        self._times.clear()
        return forgotten

    def check(self) -> bool:
        return True

    def _within(self, key: str, expiry: int) -> deque[float]:
        times = self._times.get(key, deque())
        oldest = self._clock.monotonic() - expiry
        while times and times[0] <= oldest:
            times.popleft()
        return times

    def _forget(self, expiry: int) -> None:
        """Whose last request is over a window old is forgotten, and who asked longest ago when there are too many."""
        oldest = self._clock.monotonic() - expiry
        while self._times:
            times = next(iter(self._times.values()))
            if len(self._times) <= self._most and times and times[-1] > oldest:
                return
            self._times.popitem(last=False)

    # Counters, which moving windows do not use.

    def incr(self, key: str, expiry: int, amount: int = 1) -> int:
        raise NotImplementedError

    def get(self, key: str) -> int:
        raise NotImplementedError

    def get_expiry(self, key: str) -> float:
        raise NotImplementedError


def _per_minute(amount: int, namespace: str) -> RateLimitItem | None:
    return RateLimitItemPerMinute(amount, namespace=namespace) if amount else None

"""From an API key to the person behind it. Knows no HTTP: the routes' side of it is `ci_server.dependencies`."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta

import structlog

from ci_common.api_keys import hash_api_key, is_same_hash, is_well_formed, key_prefix
from ci_common.clock import Clock
from ci_common.errors import CIError, Forbidden, Unauthorized
from ci_common.models import APIKey, Scope, User
from ci_common.repository import JobRepository
from ci_server.recent_times import RecentTimes
from ci_server.shared_calls import SharedCalls

_TOUCH_EVERY = timedelta(seconds=60)
_LOOKS_COUNT = (
    3600.0  # seconds for which a look at a key is remembered: longer than anybody waits between two pings
)
_NO_PREFIX = "-"  # looked up for what cannot be a key: as much work as for one that is unknown
_NO_HASH = "0" * 64  # compared with when there is no such key, so that a miss takes as long as a hit

_log = structlog.stdlib.get_logger("ci_server.auth")


@dataclass(frozen=True, slots=True)
class Caller:
    """Who makes a request, and by which key."""

    user: User
    key: APIKey

    def require(self, scope: Scope) -> None:
        """The key may be used for this; raises Forbidden otherwise."""
        if scope not in self.key.scopes:
            raise Forbidden(f"This API key lacks the scope {scope.value!r}; create one that has it.")


class Authenticator:
    """Judges keys against the database at every request: a revoked key is refused by the next one."""

    def __init__(self, repository: JobRepository, clock: Clock) -> None:
        self._repository = repository
        self._clock = clock
        self.usage = KeyUsage(repository, clock)
        self._rechecks = SharedCalls(self._recheck)
        self._good_at = RecentTimes(_LOOKS_COUNT)  # ids of keys with streams, monotonic

    async def authenticate(self, token: str | None) -> Caller:
        """Return who the key belongs to; raises the same Unauthorized, after the same work, whatever is wrong."""
        given = token or ""
        prefix = key_prefix(given) if is_well_formed(given) else _NO_PREFIX
        caller = await self._find(prefix, hash_api_key(given))
        self.usage.note(caller.key)
        return caller

    async def recheck(self, caller: Caller) -> None:
        """The key is still good; raises Unauthorized when it was revoked, expired or its user deactivated."""
        await self._find(caller.key.prefix, caller.key.key_hash)

    def guard(self, caller: Caller, every: float) -> Callable[[], Awaitable[None]]:
        """Return a check that is free to call often: one key is looked at once in `every` seconds, however many ask."""
        key = caller.key
        good_at = self._clock.monotonic()

        async def check() -> None:
            nonlocal good_at
            good_at = max(good_at, self._good_at.of(key.id))
            if self._clock.monotonic() - good_at >= every:
                await self._rechecks.answer((key.prefix, key.key_hash))

        return check

    async def _recheck(self, key: tuple[str, str]) -> None:
        began = self._clock.monotonic()
        caller = await self._find(*key)
        self._good_at.note(caller.key.id, began)

    async def _find(self, prefix: str, key_hash: str) -> Caller:
        found = await self._repository.find_api_key(prefix)
        same = is_same_hash(key_hash, found[0].key_hash if found else _NO_HASH)
        if found is None or not same:
            raise _unauthorized()
        key, user = found
        if not key.is_usable(self._clock.now()) or not user.is_active:
            raise _unauthorized()
        return Caller(user, key)


class KeyUsage:
    """Writes when a key was last used: at most once a minute each, and never while a request waits for it."""

    def __init__(self, repository: JobRepository, clock: Clock) -> None:
        self._repository = repository
        self._clock = clock
        self._written = RecentTimes(_TOUCH_EVERY.total_seconds())  # ids of keys in use, monotonic
        self._tasks: set[asyncio.Task[None]] = set()

    def note(self, key: APIKey) -> None:
        """The use of the key is on its way to the database, unless it was written less than a minute ago."""
        now, monotonic = self._clock.now(), self._clock.monotonic()
        # The row tells what other replicas wrote; our own memory stops retries of a write that fails.
        if key.last_used_at is not None and now - key.last_used_at < _TOUCH_EVERY:
            return
        if monotonic - self._written.of(key.id) < _TOUCH_EVERY.total_seconds():
            return
        self._written.note(key.id, monotonic)
        task = asyncio.create_task(self._write(key.id))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def settle(self) -> None:
        """Nothing is on its way any more."""
        await asyncio.gather(*self._tasks)

    async def _write(self, key_id: str) -> None:
        try:
            await self._repository.touch_api_key(key_id, self._clock.now())
        except CIError as error:
            _log.warning("key_use_not_recorded", key_id=key_id, code=error.code, detail=error.detail)


def _unauthorized() -> Unauthorized:
    return Unauthorized(
        "This needs a valid API key in the header 'Authorization: Bearer ci_…'; "
        "an operator makes one with 'ci-admin key create'."
    )

"""Whether this replica can do its work, and if not, why: what /ready answers."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from typing import Any

import structlog

from ci_common.clock import Clock
from ci_common.disk_space import Space, space_of
from ci_common.errors import CIError
from ci_common.models import ControllerState
from ci_common.repository import JobRepository
from ci_common.stores import ArchiveStore
from ci_server.disk import MIN_FREE_INODES_PERCENT
from ci_server.settings import MIB, ServerSettings
from ci_server.waiting import controller_trouble

_DATABASE_SECONDS = 2.0
_STORAGE_SECONDS = 10.0  # for which a look at the bucket is believed
_UNKNOWN = "unknown without the database"

_log = structlog.stdlib.get_logger("ci_server.readiness")


class Health(StrEnum):
    """How well a thing works; the worst of all is the answer."""

    OK = "ok"
    DEGRADED = "degraded"  # answers, but some of what was asked of it will wait
    FAILING = "failing"


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found."""

    health: Health
    message: str | None = None
    details: tuple[tuple[str, Any], ...] = ()

    def document(self) -> dict[str, Any]:
        return {"status": self.health.value, "message": self.message, **dict(self.details)}


class StorageLook:
    """Whether uploads can be kept and read where they are kept elsewhere, looked at now and then.

    Anybody may ask /ready, as often as they like: the bucket is not asked as often.
    """

    def __init__(self, archives: ArchiveStore, settings: ServerSettings, clock: Clock) -> None:
        self._archives = archives
        self._is_elsewhere = settings.bucket_url is not None
        self._clock = clock
        self._looking = asyncio.Lock()
        self._found: tuple[float, Finding] | None = None

    async def finding(self) -> Finding:
        """Return what was found, at most some seconds ago."""
        if not self._is_elsewhere:
            return Finding(Health.OK)
        async with self._looking:
            if self._found is None or self._clock.monotonic() - self._found[0] > _STORAGE_SECONDS:
                found = await _guarded(self._look)
                # Who reads logs and waits for verdicts is still served.
                health = Health.OK if found.health is Health.OK else Health.DEGRADED
                self._found = self._clock.monotonic(), replace(found, health=health)
            return self._found[1]

    async def _look(self) -> Finding:
        await asyncio.to_thread(self._archives.check)
        return Finding(Health.OK)


async def check_readiness(
    repository: JobRepository, storage: StorageLook, settings: ServerSettings, clock: Clock
) -> dict[str, Finding]:
    """Return what each check found; none of them raises or takes longer than a few seconds."""
    database = await _check_database(repository)
    if database.health is Health.FAILING:
        controller = engine = queue = Finding(Health.FAILING, _UNKNOWN)
    else:
        controller, engine = await _check_controller(repository, clock)
        queue = await _check_queue(repository)
    return {
        "database": database,
        "controller": controller,
        "engine": engine,
        "queue": queue,
        "storage": await storage.finding(),
        "disk": await _check_disk(settings),
    }


def overall(findings: dict[str, Finding]) -> Health:
    """Return the worst health of all."""
    order = list(Health)
    return max((finding.health for finding in findings.values()), key=order.index)


def readiness_document(findings: dict[str, Finding], version: str) -> dict[str, Any]:
    """Return the findings as /ready shows them."""
    return {
        "status": overall(findings).value,
        "version": version,
        "reasons": [f"{name}: {finding.message}" for name, finding in findings.items() if finding.message],
        "checks": {name: finding.document() for name, finding in findings.items()},
    }


async def _check_database(repository: JobRepository) -> Finding:
    async def check() -> Finding:
        await repository.check()
        return Finding(Health.OK)

    return await _guarded(check)


async def _check_controller(repository: JobRepository, clock: Clock) -> tuple[Finding, Finding]:
    """Return how the controller is and, as it sees it, the engine: this process never asks the engine itself."""
    found, waiting = None, 0

    async def look() -> Finding:
        nonlocal found, waiting
        found = await repository.controller_state()
        waiting = await repository.count_standing_by()
        return Finding(Health.OK)

    asked = await _guarded(look)
    if asked.health is not Health.OK:
        return asked, Finding(Health.FAILING, _UNKNOWN)
    now = clock.now()
    return _judge_controller(found, waiting, now), _judge_engine(found, now)


async def _check_queue(repository: JobRepository) -> Finding:
    async def look() -> Finding:
        pause = await repository.queue_pause()
        return Finding(Health.DEGRADED, str(pause)) if pause else Finding(Health.OK)

    return await _guarded(look)


def _judge_controller(state: ControllerState | None, waiting: int, now: datetime) -> Finding:
    trouble = controller_trouble(state, now)
    if state and state.is_alive(now) and _is_of_engine(state.note):
        trouble = None  # the controller does what it can
    age = round((now - state.heartbeat_at).total_seconds(), 1) if state else None
    details = (
        ("heartbeat_age_seconds", age),
        ("note", state.note if state else None),
        ("holder", state.holder if state else None),
        ("waiting", waiting),  # controllers that will take over
    )
    return Finding(Health.DEGRADED if trouble else Health.OK, trouble, details)


def _judge_engine(state: ControllerState | None, now: datetime) -> Finding:
    if state is None or not state.is_alive(now):
        return Finding(Health.DEGRADED, "unknown: only a running controller can tell")
    if _is_of_engine(state.note):
        return Finding(Health.DEGRADED, state.note)
    return Finding(Health.OK)


def _is_of_engine(note: str | None) -> bool:
    return note is not None and "docker engine" in note.lower()


async def _guarded(check: Callable[[], Awaitable[Finding]]) -> Finding:
    try:
        async with asyncio.timeout(_DATABASE_SECONDS):
            return await check()
    except CIError as error:
        _log.warning("not_ready", code=error.code, detail=error.detail)
        return Finding(Health.FAILING, error.public_detail, (("code", error.code),))
    except TimeoutError:
        return Finding(Health.FAILING, f"no answer within {_DATABASE_SECONDS:g} s")


async def _check_disk(settings: ServerSettings) -> Finding:
    """Of the file systems of data and database: the same limits for both, and of each what is short."""
    spaces: dict[str, Space] = {}
    for name, path in (("data", settings.data_path), ("database", settings.db_path.parent)):
        try:
            spaces[name] = await asyncio.to_thread(space_of, path)
        except OSError as error:
            return Finding(Health.FAILING, f"the {name} directory cannot be examined: {error.strerror}")
    return judge_disk(spaces, settings.min_free_bytes)


def judge_disk(spaces: Mapping[str, Space], min_free_bytes: int) -> Finding:
    """Return whether each of those file systems has enough bytes and inodes left; the details are of the fullest."""
    details = (
        ("free_bytes", min(space.free_bytes for space in spaces.values())),
        ("free_inodes_percent", round(min(space.free_inodes_percent for space in spaces.values()), 1)),
    )
    short = [said for name, space in spaces.items() for said in _what_is_short(name, space, min_free_bytes)]
    return Finding(Health.DEGRADED, "; ".join(short), details) if short else Finding(Health.OK, None, details)


def _what_is_short(name: str, space: Space, min_free_bytes: int) -> Iterator[str]:
    if space.free_bytes < min_free_bytes:
        wanted = min_free_bytes // MIB
        yield f"{space.free_bytes // MIB} MiB free on the {name} disk, less than {wanted} MiB"
    if space.free_inodes_percent < MIN_FREE_INODES_PERCENT:
        yield (
            f"{space.free_inodes} inodes free on the {name} disk, less than {MIN_FREE_INODES_PERCENT:g} %: "
            "it has too many files"
        )

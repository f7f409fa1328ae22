"""Whether this replica can do its work, and if not, why: what /ready answers."""

import asyncio
import shutil
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import structlog

from ci_common.clock import Clock
from ci_common.errors import CIError
from ci_common.repository import JobRepository
from ci_server.settings import MIB, ServerSettings
from ci_server.waiting import controller_trouble

_DATABASE_SECONDS = 2.0

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


async def check_readiness(
    repository: JobRepository, settings: ServerSettings, clock: Clock
) -> dict[str, Finding]:
    """Return what each check found; none of them raises or takes longer than a few seconds."""
    database = await _check_database(repository)
    if database.health is Health.FAILING:
        controller = Finding(Health.FAILING, "unknown without the database")
    else:
        controller = await _guarded(lambda: _check_controller(repository, clock))
    return {"database": database, "controller": controller, "disk": _check_disk(settings)}


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


async def _check_controller(repository: JobRepository, clock: Clock) -> Finding:
    state, now = await repository.controller_state(), clock.now()
    trouble = controller_trouble(state, now)
    age = round((now - state.heartbeat_at).total_seconds(), 1) if state else None
    details = (("heartbeat_age_seconds", age), ("note", state.note if state else None))
    return Finding(Health.DEGRADED if trouble else Health.OK, trouble, details)


async def _guarded(check: Callable[[], Awaitable[Finding]]) -> Finding:
    try:
        async with asyncio.timeout(_DATABASE_SECONDS):
            return await check()
    except CIError as error:
        _log.warning("not_ready", code=error.code, detail=error.detail)
        return Finding(Health.FAILING, error.public_detail, (("code", error.code),))
    except TimeoutError:
        return Finding(Health.FAILING, f"no answer within {_DATABASE_SECONDS:g} s")


def _check_disk(settings: ServerSettings) -> Finding:
    try:
        free = shutil.disk_usage(_existing(settings.data_path)).free
    except OSError as error:
        return Finding(Health.FAILING, f"the data directory cannot be examined: {error.strerror}")
    details = (("free_bytes", free),)
    if free < settings.min_free_bytes:
        wanted = settings.min_free_bytes // MIB
        message = f"{free // MIB} MiB free on the data disk, less than {wanted} MiB"
        return Finding(Health.DEGRADED, message, details)
    return Finding(Health.OK, None, details)


def _existing(path: Path) -> Path:
    """Return the path, or the nearest folder above it that exists: the first upload makes the rest."""
    path = path.absolute()
    while not path.exists() and path != path.parent:
        path = path.parent
    return path

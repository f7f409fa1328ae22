"""`ci-admin doctor`: every check of this machine, one line each with the way out."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import click

from ci_admin import render
from ci_admin.local_checks import (
    check_controller,
    check_database,
    check_disk,
    check_permissions,
    check_sqlite,
    check_storage,
)
from ci_admin.session import settings_in_force
from ci_common.clock import utcnow
from ci_common.terminal import one_line
from ci_controller.container_manager import ContainerManager
from ci_controller.doctor import Check, run_checks, run_probes
from ci_controller.settings import ControllerSettings
from ci_persistence.factory import open_repository

_FAILED = 69
_WIDTH = len("warning")  # of a status; one that is rare is longer


def examine(db_path: Path | None, *, as_json: bool, probe: bool = False) -> int:
    """Every finding is on stdout, or, with `probe`, how each attempt to leave a job went; returns 0 or 69."""
    settings = settings_in_force(ControllerSettings, db_path)
    checks = asyncio.run(_asked_of_the_engine(settings, run_probes) if probe else _all_checks(settings))
    click.echo(render.as_json(as_document(checks)) if as_json else as_text(checks))
    return exit_code(checks)


def exit_code(checks: Sequence[Check]) -> int:
    """Return what the command ends with: warnings are no failures."""
    return _FAILED if any(check.status == "failed" for check in checks) else 0


def as_document(checks: Sequence[Check]) -> dict[str, object]:
    """Return the JSON form."""
    return {"ok": exit_code(checks) == 0, "checks": [asdict(check) for check in checks]}


def as_text(checks: Sequence[Check]) -> str:
    """Return one line per check and, where it is not well, one more with what to do."""
    width = max(len(check.name) for check in checks)
    first = max(_WIDTH, *(len(check.status) for check in checks))
    lines: list[str] = []
    for check in checks:
        lines.append(f"{check.status:<{first}}  {check.name:<{width}}  {one_line(check.detail)}")
        if check.fix and check.status != "ok":
            lines.append(f"{'':<{first}}  {'':<{width}}  → {one_line(check.fix)}")
    return "\n".join(lines)


async def _all_checks(settings: ControllerSettings) -> list[Check]:
    return [
        *await _asked_of_the_engine(settings, run_checks),
        *([] if settings.server_url else [check_sqlite()]),
        check_disk(settings),
        check_storage(settings),
        check_permissions(settings),
        *await _database_checks(settings),
    ]


async def _asked_of_the_engine(
    settings: ControllerSettings, ask: Callable[[ContainerManager, str], Awaitable[list[Check]]]
) -> list[Check]:
    """Return what `ask` finds, in containers that are made as this installation makes those of jobs."""
    manager = ContainerManager(
        settings.container_prefix,
        network=replace(settings.network_options, resolv_conf=None),  # looking makes no file among the data
        job_runtime=settings.job_runtime,
    )
    try:
        return await ask(manager, settings.runner_image)
    finally:
        await manager.close()


async def _database_checks(settings: ControllerSettings) -> list[Check]:
    repository = open_repository(settings)
    try:
        database = await check_database(repository, settings)
        return [database, await check_controller(repository, utcnow())]
    finally:
        await repository.close()

"""`ci-admin doctor`: every check of this machine, one line each with the way out."""

import asyncio
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import click

from ci_admin import render
from ci_admin.local_checks import (
    check_controller,
    check_database,
    check_disk,
    check_permissions,
    check_sqlite,
)
from ci_admin.location import database_in_force
from ci_common.clock import utcnow
from ci_common.settings import read_settings
from ci_controller.container_manager import ContainerManager
from ci_controller.doctor import Check, run_checks
from ci_controller.settings import ControllerSettings
from ci_persistence.factory import open_repository

_FAILED = 69


def examine(db_path: Path | None, *, as_json: bool) -> int:
    """Every finding is on stdout; returns 0 if nothing failed, else 69."""
    checks = asyncio.run(_all_checks(read_settings(ControllerSettings, db_path=database_in_force(db_path))))
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
    lines: list[str] = []
    for check in checks:
        lines.append(f"{check.status:<7}  {check.name:<{width}}  {check.detail}")
        if check.fix and check.status != "ok":
            lines.append(f"{'':<7}  {'':<{width}}  → {check.fix}")
    return "\n".join(lines)


async def _all_checks(settings: ControllerSettings) -> list[Check]:
    return [
        *await _engine_checks(settings),
        check_sqlite(),
        check_disk(settings),
        check_permissions(settings),
        *await _database_checks(settings),
    ]


async def _engine_checks(settings: ControllerSettings) -> list[Check]:
    manager = ContainerManager(settings.container_prefix)
    try:
        return await run_checks(manager, settings.runner_image)
    finally:
        await manager.close()


async def _database_checks(settings: ControllerSettings) -> list[Check]:
    repository = open_repository(settings)
    try:
        database = await check_database(repository, settings.db_path)
        return [database, await check_controller(repository, utcnow())]
    finally:
        await repository.close()

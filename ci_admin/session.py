"""What every command shares: its `--db-path` and `--json`, a repository for as long as it runs, its answer."""

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click

from ci_admin import render
from ci_admin.location import database_in_force, personal_database
from ci_admin.operator_name import operator
from ci_common.clock import utcnow
from ci_common.errors import CIError, NotFound
from ci_common.models import AuditAction, AuditEvent
from ci_common.repository import JobRepository
from ci_common.terminal import one_line

if TYPE_CHECKING:
    from ci_common.settings import StorageSettings

Result = TypeVar("Result")
Model = TypeVar("Model", bound="StorageSettings")
Command = TypeVar("Command", bound=Callable[..., object])


def database_option(by_default: str) -> Callable[[Command], Command]:
    """Return `--db-path`, whose help says what it is by default."""
    return click.option(
        "--db-path",
        envvar="CI_DB_PATH",
        show_envvar=True,
        type=click.Path(path_type=Path, dir_okay=False),
        help=f"SQLite database; by default {by_default}.",
    )


db_path_option = database_option("ci_jobs.db in this folder, else that of `ci-admin up`")
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON with stable keys.")


def with_database(command: Command) -> Command:
    """The command takes `db_path` and `as_json`."""
    return db_path_option(json_option(command))


def in_repository(db_path: Path | None, action: Callable[[JobRepository], Awaitable[Result]]) -> Result:
    """Return what the action returns; the schema is there and current meanwhile, every connection closed after."""
    return asyncio.run(_in_repository(_found_or_announced(db_path), action))


def settings_in_force(model: type[Model], db_path: Path | None) -> Model:
    """Return the settings with the database that was named: as `--db-path`, in the environment, or by where we are.

    Raises InvalidRequest, also where two were named.
    """
    from ci_common.settings import read_settings

    if db_path is None and os.environ.get("CI_DATABASE_URL"):
        return read_settings(model)
    return read_settings(model, db_path=database_in_force(db_path))


def record_act(db_path: Path | None, action: AuditAction, subject: str, **details: str | int) -> None:
    """What was done to the database stands in its audit trail, or stderr says why not: the act itself stands.

    Nothing is migrated for it, since a backup may be the step before an upgrade.
    """
    event = AuditEvent(utcnow(), operator(), action, subject, details)
    try:
        asyncio.run(_record(db_path, event))
    except CIError as error:
        click.echo(f"ci-admin: not in the audit trail: {one_line(error.detail)}", err=True)


def answer(fields: object, text: str, *, as_json: bool) -> None:
    """The answer is on stdout in the form that was asked for."""
    click.echo(render.as_json(fields) if as_json else text)


def _found_or_announced(db_path: Path | None) -> "StorageSettings":
    from ci_common.settings import StorageSettings

    settings = settings_in_force(StorageSettings, db_path)
    path = settings.db_path
    if not path.absolute().parent.is_dir():
        raise NotFound(f"There is no folder {path.absolute().parent} for the database.")
    if db_path is None and path == personal_database():
        click.echo(f"(database of `ci-admin up`: {path})", err=True)
    return settings


async def _record(db_path: Path | None, event: AuditEvent) -> None:
    from ci_common.settings import StorageSettings
    from ci_persistence.factory import open_repository

    repository = open_repository(settings_in_force(StorageSettings, db_path))
    try:
        await repository.record_audit(event)
    finally:
        await repository.close()


async def _in_repository(
    settings: "StorageSettings", action: Callable[[JobRepository], Awaitable[Result]]
) -> Result:
    # Here, not above: `--help` need not wait for the libraries of settings and database.
    from ci_persistence.factory import open_repository

    repository = open_repository(settings)
    try:
        await repository.initialize()
        return await action(repository)
    finally:
        await repository.close()

"""`ci-admin migrate`: an installation leaves its file for a database server."""

import os
from pathlib import Path

import click

from ci_admin.location import database_in_force
from ci_admin.operator_name import operator
from ci_admin.session import answer, json_option
from ci_common.clock import utcnow
from ci_common.errors import ControllerRunning, InvalidRequest, NotFound

_FILE = "sqlite:///"


@click.command(short_help="Move an installation from its file to PostgreSQL.")
@click.option(
    "--from",
    "source",
    metavar="URL",
    help="sqlite:///relative.db or sqlite:////absolute.db; by default the file in force.",
)
@click.option(
    "--to",
    "target",
    metavar="URL",
    required=True,
    help="postgresql://user@host/database, which exists and is empty.",
)
@json_option
def migrate(source: str | None, target: str, as_json: bool) -> None:
    """Move an installation from its SQLite file to PostgreSQL. Controller and servers must be stopped.

    All rows go in one transaction, or none does. The file stays as it is, with its queue paused; archives and logs
    stay where they are. Leave a password to PGPASSFILE: others on this machine can read a command's arguments.
    """
    from ci_common.settings import StorageSettings, read_settings
    from ci_controller.singleton import lock_file
    from ci_persistence.factory import NO_DRIVER

    try:
        from ci_persistence.moving import move
    except ModuleNotFoundError as error:
        raise InvalidRequest(NO_DRIVER) from error

    old = read_settings(StorageSettings, database_url=None, db_path=_file(source))
    if not old.db_path.is_file():
        raise NotFound(f"There is no database {old.db_path} to move.")
    if target.startswith(_FILE):
        raise InvalidRequest("--to names a server, postgresql://…; a file is copied by `ci-admin backup`.")
    new = read_settings(StorageSettings, database_url=target, db_path=None, data_dir=old.data_path.absolute())
    with lock_file(old.lock_path) as is_free:
        if not is_free:
            raise ControllerRunning(
                "A controller serves this database; stop it, and the servers, before a move."
            )
        moved = move(old, new, utcnow(), operator())
    fields = {
        "from": str(old.db_path),
        "to": new.database_name,
        "data_dir": str(new.data_path),
        "rows": moved.rows,
    }
    text = (
        f"✓ {old.db_path} is in {new.database_name} now: {moved.rows['users']} users, {moved.rows['jobs']} jobs\n"
        f"Start controller and servers with that URL as CI_DATABASE_URL, and with CI_DATA_DIR={new.data_path}\n"
        f"The file stays, with its queue paused; remove it when you no longer want to go back."
    )
    answer(fields, text, as_json=as_json)


def _file(source: str | None) -> Path:
    if source is None:
        named = os.environ.get("CI_DB_PATH")
        return database_in_force(Path(named) if named else None)
    if not source.startswith(_FILE):
        raise InvalidRequest("--from names a file: sqlite:///relative.db or sqlite:////absolute.db.")
    return Path(source.removeprefix(_FILE))

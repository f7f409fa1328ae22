"""`ci-admin backup` and `ci-admin restore`: an installation into a directory, and back."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ci_admin.session import answer, record_act, settings_in_force, with_database
from ci_common.errors import ControllerRunning, InvalidRequest, NotFound
from ci_common.models import AuditAction

if TYPE_CHECKING:
    from ci_common.settings import StorageSettings
    from ci_persistence.restore import Restored

_SHOWN = 20  # ids on the terminal; `--json` has all


@click.command(short_help="Back up a running installation into a directory.")
@click.argument("directory", type=click.Path(path_type=Path))
@click.option(
    "--with-logs", is_flag=True, help="Also copy the logs; otherwise they are left to your own copies."
)
@with_database
def backup(directory: Path, with_logs: bool, db_path: Path | None, as_json: bool) -> None:
    """Back up a running installation into DIRECTORY, which is made: nobody has to stop, nobody waits.

    In it are a consistent snapshot of the database and the uploads of unfinished jobs. It appears under its
    name only when it is complete. A plain copy of the database file is no backup.
    """
    from ci_persistence.backup import back_up

    settings = _of_a_file(db_path)
    if not directory.absolute().parent.is_dir():
        raise NotFound(f"There is no folder {directory.absolute().parent} for the backup.")
    manifest = back_up(settings, directory, with_logs=with_logs)
    record_act(db_path, AuditAction.BACKUP, str(directory.absolute()), jobs=manifest.jobs)
    text = (
        f"✓ Backup of {settings.db_path} in {directory}\n"
        f"Jobs:     {manifest.jobs}, {manifest.unfinished_jobs} of them unfinished\n"
        f"Archives: {len(manifest.archives)}\n"
        f"Logs:     {f'of {len(manifest.logs)} jobs' if with_logs else 'not copied (--with-logs)'}"
    )
    answer({"directory": str(directory), **asdict(manifest)}, text, as_json=as_json)


@click.command(short_help="Put a backup back.")
@click.argument("directory", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--force", is_flag=True, help="Set a database that is there aside and restore in its place.")
@with_database
def restore(directory: Path, force: bool, db_path: Path | None, as_json: bool) -> None:
    """Put a backup back, and say which jobs and verdicts came after it. Controller and servers must be stopped.

    Nothing is deleted: what was there gets another name. Start the controller then: it adopts the containers
    of jobs that the backup knows and removes the others after a minute.
    """
    from ci_controller.singleton import lock_file
    from ci_persistence.restore import restore as put_back

    settings = _of_a_file(db_path)
    if not settings.db_path.absolute().parent.is_dir():
        raise NotFound(f"There is no folder {settings.db_path.absolute().parent} for the database.")
    with lock_file(settings.lock_path) as is_free:
        if not is_free:
            raise ControllerRunning("A controller serves this database; stop it before a restore.")
        done = put_back(settings, directory, force=force)
        record_act(db_path, AuditAction.RESTORE, str(directory.absolute()), jobs=done.manifest.jobs)
    answer(asdict(done), "\n".join(_said(done, settings.db_path)), as_json=as_json)


def _of_a_file(db_path: Path | None) -> "StorageSettings":
    from ci_common.settings import StorageSettings

    settings = settings_in_force(StorageSettings, db_path)
    if settings.server_url is not None:
        raise InvalidRequest(
            "That is for databases that are a file. Of PostgreSQL make backups with its own tools, such as pg_dump, "
            "and after it copy CI_DATA_DIR."
        )
    return settings


def _said(done: "Restored", path: Path) -> list[str]:
    manifest = done.manifest
    lines = [f"✓ {path} is as it was at {manifest.created_at}: {manifest.jobs} jobs"]
    if manifest.unfinished_jobs:
        lines.append(f"{manifest.unfinished_jobs} were unfinished then; they run, some of them again.")
    if done.unknown_jobs:
        lines.append(f"{len(done.unknown_jobs)} jobs came after the backup; they are unknown (404) now:")
        lines += _some(done.unknown_jobs)
    if done.lost_verdicts:
        lines.append(f"{len(done.lost_verdicts)} verdicts came after the backup and are not in it:")
        lines += _some(done.lost_verdicts)
    if done.set_aside:
        lines.append("Set aside, not deleted:")
        lines += [f"  {one}" for one in done.set_aside]
    return [*lines, "Start ci-controller and the servers now."]


def _some(what: tuple[str, ...]) -> list[str]:
    more = [f"  … {len(what) - _SHOWN} more: --json lists all"] if len(what) > _SHOWN else []
    return [*(f"  {one}" for one in what[:_SHOWN]), *more]

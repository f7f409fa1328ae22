"""Putting a backup back: whole or not at all, nothing of what was there is deleted, and what is lost is named.

What the engine still runs is the controller's to reconcile: it adopts what the restored database knows, and
removes the rest after a grace.
"""

import errno
import fcntl
import json
import os
import re
import shutil
import sqlite3
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ci_common.crash_points import crash_point
from ci_common.errors import AlreadyExists, BackupInvalid, DatabaseBusy, SchemaTooNew
from ci_common.settings import StorageSettings
from ci_persistence import archive_store, blob_store, log_store, put_away
from ci_persistence.backup import (
    ARCHIVES,
    BLOBS,
    DATABASE,
    FORMAT,
    LOGS,
    MANIFEST,
    UNFINISHED,
    Manifest,
    check_database,
    fsync,
    reading,
    sha256,
)
from ci_persistence.migrations import current_version, migrate
from ci_persistence.ownership import FILE_MODE, adopt_owner, fsync_directory, make_shared_directory
from ci_persistence.sqlite_errors import translated

_NAME = re.compile(
    r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}(\.zip|\.manifest|\.pack)?"
)  # of a job, of an archive: nothing that leads elsewhere
_OF_AN_ATTEMPT = re.compile(rf"[0-9]+\.(log|log\{put_away.COMPRESSED}|events)")
_WAL_INDEX_LOCK = 128  # the byte of the -shm file on which every connection holds a shared lock


@dataclass(frozen=True, slots=True)
class Restored:
    """What came of a restore, and what the restored database does not know."""

    manifest: Manifest
    unknown_jobs: tuple[str, ...]  # by the database that was replaced and by the logs that lie there
    lost_verdicts: tuple[str, ...]  # of these and of jobs that run again: what had ended since the backup
    set_aside: tuple[str, ...]  # files that were moved out of the way, none of them deleted


def read_manifest(backup: Path) -> Manifest:
    """Return the manifest of a backup that is whole and of a schema we know; raises BackupInvalid, SchemaTooNew."""
    manifest = _parse(backup / MANIFEST)
    if manifest.schema > current_version():
        raise SchemaTooNew(
            f"The backup {backup} has schema {manifest.schema}, this program knows {current_version()}: "
            "restore it with the newer release."
        )
    database = backup / DATABASE
    if not database.is_file() or sha256(database) != manifest.database_sha256:
        raise BackupInvalid(f"{database} is not the file that the backup's manifest names.")
    for name in (*manifest.archives, *manifest.logs, *manifest.packs):
        if not _NAME.fullmatch(name):
            raise BackupInvalid(f"The manifest of {backup} names what no backup of ours holds: {name!r}.")
    if link := next((path for path in sorted(backup.rglob("*")) if path.is_symlink()), None):
        raise BackupInvalid(f"{link} is a symbolic link: no backup of ours holds one.")
    absent = [ref for ref in manifest.archives if not (backup / ARCHIVES / ref).is_file()]
    absent += [name for name in manifest.packs if not (backup / BLOBS / name).is_file()]
    if absent:
        raise BackupInvalid(f"The backup {backup} lacks {len(absent)} archives, for example {absent[0]}.")
    check_database(database)
    return manifest


def _parse(path: Path) -> Manifest:
    try:
        raw: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if raw["format"] != FORMAT:
            raise BackupInvalid(f"{path} is of format {raw['format']}; this program knows {FORMAT}.")
        raw |= {name: tuple(raw[name]) for name in ("archives", "logs", "packs") if name in raw}
        return Manifest(**raw)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BackupInvalid(f"{path.parent} is not a backup: {error}.") from error


def restore(settings: StorageSettings, backup: Path, *, force: bool = False) -> Restored:
    """The installation has the backup's database and archives; what was there before is set aside, not deleted.

    The caller sees to it that no controller runs. Raises BackupInvalid, SchemaTooNew, AlreadyExists (there is a
    database, and no force), DatabaseBusy (a process has it open).
    """
    manifest = read_manifest(backup)
    path = settings.db_path
    if path.exists() and not force:
        raise AlreadyExists(f"There is a database {path}; --force sets it aside and restores in its place.")
    with nobody_inside(path):
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S%f")
        incoming = path.with_name(path.name + ".restoring")  # one that was cut off is written again
        _bring(backup / DATABASE, incoming)
        _restore_files(backup, manifest, settings.data_path)
        crash_point("after_restore_files")
        replaced = _set_aside(path, stamp)
        crash_point("after_restore_set_aside")
        incoming.rename(path)
        fsync_directory(path.absolute().parent)
    with translated(path):
        migrate(path)
    stale = _set_stale_logs_aside(path, settings.data_path / LOGS, stamp)
    unknown, lost = _compare(path, replaced[0] if replaced else None, settings.data_path / LOGS)
    return Restored(manifest, unknown, lost, tuple(str(one) for one in (*replaced, *stale)))


def _bring(source: Path, target: Path) -> None:
    """The copy is on disk for good, ours and our group's."""
    shutil.copyfile(source, target)
    adopt_owner(target)
    target.chmod(0o660)
    fsync(target)


def _restore_files(backup: Path, manifest: Manifest, data: Path) -> None:
    """What the backup has of archives, contents and logs is there; what lies there under these names is the same."""
    make_shared_directory(data, archive_store.DIRECTORY_MODE)
    make_shared_directory(data / ARCHIVES, archive_store.DIRECTORY_MODE)
    for ref in manifest.archives:
        _bring_if_absent(backup / ARCHIVES / ref, data / ARCHIVES / ref)
    make_shared_directory(data / BLOBS, blob_store.DIRECTORY_MODE)
    for name in manifest.packs:
        _bring_if_absent(backup / BLOBS / name, data / BLOBS / name)
    if manifest.logs:
        make_shared_directory(data / LOGS, log_store.DIRECTORY_MODE)
    for job in manifest.logs:
        make_shared_directory(data / LOGS / job, log_store.DIRECTORY_MODE)
        for file in sorted((backup / LOGS / job).iterdir()):
            # A log that lies there in either form has at least what the backup has of it.
            if not any((data / LOGS / job / name).exists() for name in put_away.names_of(file.name)):
                _bring_if_absent(file, data / LOGS / job / file.name)


def _bring_if_absent(source: Path, target: Path) -> None:
    if not target.exists():
        incoming = target.with_name(target.name + ".part")
        shutil.copyfile(source, incoming)
        adopt_owner(incoming)
        incoming.chmod(FILE_MODE)
        fsync(incoming)
        incoming.rename(target)


def _set_aside(path: Path, stamp: str) -> list[Path]:
    """The database and what belongs to it have other names.

    The database first: cut off after that there is none, and whoever looks says so; the log of an absent one is
    set aside by the next restore.
    """
    moved: list[Path] = []
    for suffix in ("", "-wal", "-shm"):
        source = path.with_name(path.name + suffix)
        if source.exists():
            moved.append(source.rename(path.with_name(f"{path.name}.replaced-{stamp}{suffix}")))
    return moved


@contextmanager
def nobody_inside(path: Path) -> Generator[None]:
    """No process has the database open, and none can open it meanwhile; raises DatabaseBusy.

    A server that kept the replaced file open would go on acknowledging jobs into it.
    """
    index = path.with_name(path.name + "-shm")
    try:
        descriptor = os.open(index, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        yield  # nobody is in WAL mode on it
        return
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, _WAL_INDEX_LOCK)
        yield
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EAGAIN):
            raise
        raise DatabaseBusy(
            f"A process has {path} open: stop controller, servers and ci-admin commands first."
        ) from error
    finally:
        os.close(descriptor)


def _set_stale_logs_aside(path: Path, logs: Path, stamp: str) -> list[Path]:
    """No attempt to come finds a log under its number: those of attempts made since the backup have other names."""
    with reading(path) as db:
        jobs = list(db.execute(f"SELECT id, attempt FROM jobs WHERE {UNFINISHED}"))  # noqa: S608
    return [
        file.rename(file.with_name(f"{file.name}.replaced-{stamp}"))
        for job, attempt in jobs
        for file in _logs_of(logs / str(job))
        if int(file.name.partition(".")[0]) > int(attempt)
    ]


def _logs_of(directory: Path) -> Iterator[Path]:
    if directory.is_dir():
        yield from (file for file in sorted(directory.iterdir()) if _OF_AN_ATTEMPT.fullmatch(file.name))


def _compare(path: Path, replaced: Path | None, logs: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the jobs that the restored database does not know, and the verdicts that it does not have."""
    known = _verdicts(path)
    before = _verdicts(replaced) if replaced else {}
    stored = {entry.name for entry in logs.iterdir() if entry.is_dir()} if logs.is_dir() else set[str]()
    unknown = (before.keys() | stored) - known.keys()
    lost = [f"{job}: {said}" for job, said in sorted(before.items()) if said and not known.get(job)]
    return tuple(sorted(unknown)), tuple(lost)


def _verdicts(path: Path) -> dict[str, str | None]:
    """Return what each job ended with (None: it has not ended); nothing, where the file cannot be read."""
    query = (
        "SELECT id, CASE WHEN end_time IS NOT NULL THEN status || coalesce(', ' || reason, '') END FROM jobs"
    )
    try:
        with reading(path) as db:
            return {str(job): said for job, said in db.execute(query)}
    except sqlite3.Error:
        return {}

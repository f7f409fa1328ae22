"""Backups of a running installation. A backup is a directory, whole or absent:

    manifest.json   what it is: format, schema, time, SHA-256 of the database, what is in it
    ci_jobs.db      one consistent snapshot (`VACUUM INTO`), checked by SQLite after it was written
    archives/       the uploads that the snapshot's unfinished jobs need
    blobs/          the contents that those of them need which came as trees
    logs/           the logs that the snapshot names, if they were asked for

Never a plain copy of the database file: what was committed lately stands in the write-ahead log beside it.
"""

import hashlib
import json
import os
import shutil
import sqlite3
import uuid
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from ci_common.crash_points import crash_point
from ci_common.errors import AlreadyExists, BackupInvalid
from ci_common.settings import StorageSettings
from ci_persistence.ownership import fsync_directory
from ci_persistence.rows import to_text
from ci_persistence.sqlite_connection import connect
from ci_persistence.sqlite_errors import schema_missing, translated

FORMAT = 1
MANIFEST, DATABASE, ARCHIVES, BLOBS, LOGS = "manifest.json", "ci_jobs.db", "archives", "blobs", "logs"
_SNAPSHOTS = 5  # each of them consistent; another one only if a prune took something right then
UNFINISHED = "end_time IS NULL"


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a backup says of itself."""

    format: int
    schema: int
    created_at: str
    instance_id: str
    database_bytes: int
    database_sha256: str
    jobs: int
    unfinished_jobs: int
    archives: tuple[str, ...]
    logs: tuple[str, ...]  # ids of the jobs whose logs are in it; the others stay where they are
    packs: tuple[str, ...] = ()  # backups of earlier releases have none


def back_up(settings: StorageSettings, target: Path, *, with_logs: bool = False) -> Manifest:
    """The directory holds a backup of the installation as it was at one moment while this ran; returns its manifest.

    Nobody is held up by it. Every job that was acknowledged before it began is in it. It appears under its name
    only when it is complete and on disk. Raises AlreadyExists, SchemaMissing, DatabaseCorrupt, DatabaseBusy, OSError.
    """
    if target.exists():
        raise AlreadyExists(f"There is something at {target} already; name a new directory.")
    unfinished = target.with_name(f"{target.name}.{uuid.uuid4().hex[:8]}.unfinished")
    unfinished.mkdir(mode=0o700)
    try:
        manifest = _fill(settings, unfinished, with_logs=with_logs)
        crash_point("after_backup_filled")
        _publish(unfinished, target)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    return manifest


def _fill(settings: StorageSettings, directory: Path, *, with_logs: bool) -> Manifest:
    database, archives, blobs = directory / DATABASE, directory / ARCHIVES, directory / BLOBS
    archives.mkdir()
    blobs.mkdir()
    for _ in range(_SNAPSHOTS):
        database.unlink(missing_ok=True)
        _snapshot(settings.db_path, database)
        whole = _copy_archives(settings.data_path / ARCHIVES, database, archives)
        if _copy_packs(settings.data_path / BLOBS, database, blobs) and whole:
            break
    logs = _copy_logs(settings.data_path / LOGS, database, directory / LOGS) if with_logs else ()
    manifest = _describe(database, _names_in(archives), logs, _names_in(blobs))
    text = json.dumps(asdict(manifest), indent=2) + "\n"
    (directory / MANIFEST).write_text(text, encoding="utf-8")
    return manifest


def _snapshot(source: Path, copy: Path) -> None:
    with translated(source):
        if not source.exists():
            raise schema_missing(source)
        db = connect(source)
        try:
            # Reads everything in one transaction, so it is consistent and trips over a damaged page.
            db.execute("VACUUM INTO ?", (str(copy),))
        finally:
            db.close()
    copy.chmod(0o600)
    check_database(copy)


def check_database(path: Path) -> None:
    """The file passes every check of SQLite's and names only rows that exist; raises BackupInvalid."""
    try:
        with reading(path) as db:
            found = [str(row[0]) for row in db.execute("PRAGMA integrity_check(5)")]
            dangling = db.execute("PRAGMA foreign_key_check").fetchone()
    except sqlite3.Error as error:
        raise BackupInvalid(f"{path} is not a sound database: {error}.") from error
    if found != ["ok"] or dangling is not None:
        raise BackupInvalid(f"{path} is not a sound database: {'; '.join(found)}.")


def _copy_archives(store: Path, database: Path, target: Path) -> bool:
    """Every upload that an unfinished job of the snapshot needs is in the backup; False: one went meanwhile."""
    with reading(database) as db:
        query = f"SELECT DISTINCT archive_ref FROM jobs WHERE {UNFINISHED}"  # noqa: S608
        refs = [str(row[0]) for row in db.execute(query)]
    return {_copy_if_there(store / ref, target / ref) for ref in refs} <= {
        True
    }  # tried for each, not up to the first


def _copy_packs(store: Path, database: Path, target: Path) -> bool:
    """The same of the contents that such jobs need."""
    with reading(database) as db:
        if db.execute("SELECT 1 FROM sqlite_master WHERE name = 'job_packs'").fetchone() is None:
            return True  # of a release that knew no such thing
        query = (
            "SELECT DISTINCT packs.name FROM packs JOIN job_packs ON job_packs.pack_id = packs.id "  # noqa: S608
            f"JOIN jobs ON jobs.id = job_packs.job_id WHERE {UNFINISHED}"
        )
        names = [str(row[0]) for row in db.execute(query)]
    return {_copy_if_there(store / name, target / name) for name in names} <= {True}


def _names_in(directory: Path) -> tuple[str, ...]:
    return tuple(sorted(path.name for path in directory.iterdir()))


def _copy_logs(store: Path, database: Path, target: Path) -> tuple[str, ...]:
    """The logs of the snapshot's jobs are in the backup as far as they go; returns those jobs."""
    target.mkdir()
    with reading(database) as db:
        jobs = [str(row[0]) for row in db.execute("SELECT id FROM jobs WHERE attempt > 0 ORDER BY id")]
    return tuple(job for job in jobs if _copy_log(store / job, target / job))


def _copy_log(source: Path, target: Path) -> bool:
    """One job's log is in the backup; False: there is none, or it is pruned. Raises what else kept it out."""
    if source.is_symlink():
        return False
    unfinished = shutil.ignore_patterns("*.part", "*.new")
    for _ in range(_SNAPSHOTS):
        copy = _CopyingFiles()
        try:
            # What a link names is not ours to copy.
            shutil.copytree(source, target, symlinks=True, ignore=unfinished, copy_function=copy)
        except FileNotFoundError:  # never begun, or pruned
            shutil.rmtree(target, ignore_errors=True)
        except shutil.Error as error:  # pruned, or put away meanwhile: under another name
            shutil.rmtree(target, ignore_errors=True)
            copy.excuse(error, source)
        else:
            return True
    return False


class _CopyingFiles:
    """Copies as `shutil.copy2` and remembers what failed, of which `shutil.Error` has only the text."""

    def __init__(self) -> None:
        self._failures = list[OSError]()

    def __call__(self, source: str, target: str) -> str:
        try:
            return shutil.copy2(source, target)
        except OSError as error:
            self._failures.append(error)
            raise

    def excuse(self, error: shutil.Error, source: Path) -> None:
        """All of the error is that something was gone; else raises it, or what it came of."""
        for failure in self._failures:
            if not isinstance(failure, FileNotFoundError):
                raise failure from error
        if (
            len(error.args[0]) > len(self._failures) and source.exists()
        ):  # of the directory itself, or of a link
            raise error


def _copy_if_there(source: Path, target: Path) -> bool:
    try:
        shutil.copyfile(source, target)  # never changed once it has its name
    except FileNotFoundError:
        return target.exists()
    return True


def _describe(
    database: Path, archives: tuple[str, ...], logs: tuple[str, ...], packs: tuple[str, ...]
) -> Manifest:
    with reading(database) as db:
        (schema,) = db.execute("SELECT max(version) FROM schema_version").fetchone()
        (instance_id,) = db.execute("SELECT instance_id FROM installation").fetchone()
        (jobs,) = db.execute("SELECT count(*) FROM jobs").fetchone()
        (unfinished,) = db.execute(f"SELECT count(*) FROM jobs WHERE {UNFINISHED}").fetchone()  # noqa: S608
    return Manifest(
        FORMAT,
        schema,
        to_text(datetime.now(UTC)),
        instance_id,
        database.stat().st_size,
        sha256(database),
        jobs,
        unfinished,
        archives,
        logs,
        packs,
    )


def _publish(unfinished: Path, target: Path) -> None:
    for path in sorted(unfinished.rglob("*")):
        fsync(path)
    fsync_directory(unfinished)
    unfinished.rename(target)
    fsync_directory(target.absolute().parent)


@contextmanager
def reading(path: Path) -> Generator[sqlite3.Connection]:
    """In this context the database can be read, whatever its schema."""
    db = sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", uri=True, isolation_level=None)
    try:
        db.execute("PRAGMA query_only = ON")
        yield db
    finally:
        db.close()


def sha256(path: Path) -> str:
    """Return the hash of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fsync(path: Path) -> None:
    """The file or directory is on disk for good."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

"""What composition roots of the other packages import: settings in, the repository and the stores out."""

import contextlib
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ci_common.errors import InvalidRequest
from ci_common.presence import Presence
from ci_common.repository import JobRepository
from ci_common.settings import StorageSettings
from ci_common.stores import ArchiveStore, ChangeHub, LogStore
from ci_persistence.archive_rules import ArchiveLimits
from ci_persistence.archive_store import FileArchiveStore
from ci_persistence.change_hub import InotifyChangeHub
from ci_persistence.log_store import FileLogStore
from ci_persistence.shelf import FolderShelf, ObjectShelf, Shelve
from ci_persistence.sqlite_repository import SQLiteJobRepository

NO_DRIVER = "That database is PostgreSQL: install its driver, pip install 'ci-system[postgres]'."
NO_S3 = "CI_STORAGE_URL is of S3: install what speaks to it, pip install 'ci-system[s3]'."


@dataclass(frozen=True)
class Stores:
    """The bytes of one installation, and the hub that says when they change (not started yet)."""

    logs: LogStore
    archives: ArchiveStore
    hub: ChangeHub


def open_repository(settings: StorageSettings) -> JobRepository:
    """Return the repository of that installation; nothing is opened before it is used.

    Raises InvalidRequest where it is to be in PostgreSQL and the driver is not installed.
    """
    if settings.server_url is not None:
        return _on_a_server(settings.server_url)
    return SQLiteJobRepository(settings.db_path)


def _on_a_server(url: str) -> JobRepository:
    # Here, not above: an installation on one file need not have the driver.
    try:
        from ci_persistence.postgres_repository import PostgresJobRepository
    except ModuleNotFoundError as error:
        raise InvalidRequest(NO_DRIVER) from error
    return PostgresJobRepository(url)


def open_presence(settings: StorageSettings) -> Presence | None:
    """Return how this controller is seen among others; None: of a file there is only one."""
    if settings.server_url is None:
        return None
    from ci_persistence.postgres_presence import PostgresPresence

    return PostgresPresence(settings.server_url)


def _hub(settings: StorageSettings, logs: Path) -> ChangeHub:
    if settings.server_url is None:
        return InotifyChangeHub(settings.db_path, logs)
    from ci_persistence.postgres_change_hub import PostgresChangeHub

    return PostgresChangeHub(settings.server_url, settings.db_path, logs)


def _shelve(settings: StorageSettings) -> Shelve:
    """Return how uploads are kept; raises InvalidRequest where the library for that is not installed."""
    if settings.bucket_url is None:
        return FolderShelf
    # Here, not above: an installation in a directory need not have the library.
    try:
        from ci_persistence.s3_objects import S3Objects
    except ModuleNotFoundError as error:
        raise InvalidRequest(NO_S3) from error
    return partial(ObjectShelf, S3Objects(settings.bucket_url), settings.storage_copies)


def open_stores(settings: StorageSettings) -> Stores:
    """Return the stores; the directories of uploads exist, unless this process cannot make them now.

    Raises InvalidRequest where they are to be in a bucket and its library is not installed.
    """
    data, logs = settings.data_path, settings.data_path / "logs"
    limits = ArchiveLimits(
        settings.archive_max_entries, settings.archive_max_ratio, settings.archive_max_bytes
    )
    archives = FileArchiveStore(data / "archives", limits, _shelve(settings))
    # A reader needs no more than what is there; a server may be started before the folder of its database.
    with contextlib.suppress(PermissionError, FileNotFoundError):
        archives.prepare()
        archives.blobs.prepare()
    return Stores(
        logs=FileLogStore(logs),
        archives=archives,
        hub=_hub(settings, logs),
    )

"""What composition roots of the other packages import: settings in, the repository and the stores out."""

import contextlib
from dataclasses import dataclass

from ci_common.repository import JobRepository
from ci_common.settings import StorageSettings
from ci_common.stores import ArchiveStore, ChangeHub, LogStore
from ci_persistence.archive_rules import ArchiveLimits
from ci_persistence.archive_store import FileArchiveStore
from ci_persistence.change_hub import InotifyChangeHub
from ci_persistence.log_store import FileLogStore
from ci_persistence.sqlite_repository import SQLiteJobRepository


@dataclass(frozen=True)
class Stores:
    """The bytes of one installation, and the hub that says when they change (not started yet)."""

    logs: LogStore
    archives: ArchiveStore
    hub: ChangeHub


def open_repository(settings: StorageSettings) -> JobRepository:
    """Return the repository of that installation; nothing is opened before it is used."""
    return SQLiteJobRepository(settings.db_path)


def open_stores(settings: StorageSettings) -> Stores:
    """Return the stores; the directories of uploads exist, unless this process cannot make them now."""
    data, logs = settings.data_path, settings.data_path / "logs"
    limits = ArchiveLimits(
        settings.archive_max_entries, settings.archive_max_ratio, settings.archive_max_bytes
    )
    archives = FileArchiveStore(data / "archives", limits)
    # A reader needs no more than what is there; a server may be started before the folder of its database.
    with contextlib.suppress(PermissionError, FileNotFoundError):
        archives.prepare()
        archives.blobs.prepare()
    return Stores(
        logs=FileLogStore(logs),
        archives=archives,
        hub=InotifyChangeHub(settings.db_path, logs),
    )

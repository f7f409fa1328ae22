"""Checks of `ci-admin doctor` that need no engine: SQLite, disk, permissions, database, controller. Read only."""

import os
import shutil
import sqlite3
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from ci_common.errors import CIError, SchemaMissing
from ci_common.models import ControllerState
from ci_common.repository import JobRepository
from ci_common.settings import StorageSettings
from ci_controller.doctor import Check
from ci_persistence.factory import open_stores
from ci_persistence.sqlite_connection import HAS_WAL_RESET_BUG, can_shrink

_GIB = 1024**3
_LITTLE_SPACE = 2 * _GIB
_NO_SPACE = _GIB // 4
_FOR_OTHERS = 0o007


def check_sqlite(version: str = sqlite3.sqlite_version, *, has_bug: bool = HAS_WAL_RESET_BUG) -> Check:
    """Tell whether this Python's SQLite is sound."""
    if not has_bug:
        return Check("sqlite", "ok", f"SQLite {version}")
    detail = (
        f"SQLite {version} can damage a database when two processes checkpoint its write-ahead log at the wrong "
        "moment (fixed in 3.51.3). We avoid it: only the controller checkpoints."
    )
    fix = "Open the database with no other program that writes, or use a Python with SQLite 3.51.3 or newer."
    return Check("sqlite", "warning", detail, fix)


def check_disk(settings: StorageSettings) -> Check:
    """Tell whether there is room for archives, contents of files and logs."""
    place = _nearest_existing(settings.data_path)
    free = shutil.disk_usage(place).free
    detail = f"{free / _GIB:.1f} GiB free for {settings.data_path}"
    if free >= _LITTLE_SPACE:
        return Check("disk", "ok", detail)
    fix = "Free some space, or move the data with CI_DATA_DIR."
    return Check("disk", "failed" if free < _NO_SPACE else "warning", detail, fix)


def check_storage(settings: StorageSettings) -> Check:
    """Tell whether the bucket answers and lets us in, where uploads are kept in one."""
    if settings.bucket_url is None:
        return Check("storage", "ok", f"uploads are kept in {settings.data_path}")
    try:
        open_stores(settings).archives.check()
    except CIError as error:
        fix = "See CI_STORAGE_URL in docs/operations.md; until it can be used, nothing is submitted and no job starts."
        return Check("storage", "failed", error.detail, fix)
    return Check("storage", "ok", f"{settings.bucket_url} answers and lets us in")


def check_permissions(settings: StorageSettings) -> Check:
    """Tell whether this user can work on the files, and whether only those who should can read them."""
    closed = [str(path) for path in _existing_paths(settings) if not os.access(path, os.R_OK | os.W_OK)]
    if closed:
        fix = "Run this as the user of the daemons, or give their group access: chgrp -R, chmod -R g+rwX."
        return Check("permissions", "failed", f"You cannot read and write {', '.join(closed)}.", fix)
    opened = [str(path) for path in _own_paths(settings) if path.stat().st_mode & _FOR_OTHERS]
    if opened:
        fix = f"chmod -R o-rwx {' '.join(opened)}"
        return Check(
            "permissions", "warning", f"Everybody on this machine can open {', '.join(opened)}.", fix
        )
    return Check("permissions", "ok", "database and data directory can be written, and by nobody else")


async def check_database(repository: JobRepository, settings: StorageSettings) -> Check:
    """Tell whether the database is there, can be read and is of this release.

    Every start of a daemon looks the whole file through; this waits for nobody who writes.
    """
    how = "The first `ci-controller`, `ci-admin up` or `ci-admin user create` makes it."
    path, name = None if settings.server_url else settings.db_path, settings.database_name
    if path and not os.access(path, os.F_OK):
        return Check("database", "warning", f"There is no database {name} yet.", how)
    try:
        await repository.check()
    except SchemaMissing as error:
        return Check(
            "database", "warning", error.detail, "`ci-controller` brings it up to date when it starts."
        )
    except CIError as error:
        return Check("database", "failed", error.detail, "See the part on recovery in docs/operations.md.")
    if path and not can_shrink(path):
        detail = f"{name} cannot give room back to the disk after pruning: an older release made it."
        fix = "`ci-admin prune --vacuum` rewrites it once; writers wait meanwhile."
        return Check("database", "warning", detail, fix)
    return Check("database", "ok", f"{name} can be read and has the schema of this release")


async def check_controller(repository: JobRepository, now: datetime) -> Check:
    """Tell whether a controller serves the database."""
    try:
        state = await repository.controller_state()
        waiting = await repository.count_standing_by()
    except CIError:
        return Check(
            "controller", "warning", "Unknown without a database that works.", "See `database` above."
        )
    return judge_controller(state, now, waiting)


def judge_controller(state: ControllerState | None, now: datetime, waiting: int = 0) -> Check:
    """Return what a heartbeat means, where so many controllers wait to take over."""
    fix = "Start `ci-controller`, or both with `ci-admin up`; until then jobs wait in the queue."
    if state is None:
        return Check("controller", "warning", "No controller has run on this database yet.", fix)
    age = now - state.heartbeat_at
    if not state.is_alive(now):
        since = f"{state.heartbeat_at:%Y-%m-%d %H:%M:%S} UTC"
        return Check("controller", "warning", f"No controller is running (last seen {since}).", fix)
    if state.note:
        return Check("controller", "warning", f"The controller says: {state.note}", "See the other checks.")
    seconds = max(0.0, age.total_seconds())
    others = f"; {waiting} more wait{'' if waiting > 1 else 's'}" if waiting else ""
    return Check(
        "controller", "ok", f"{state.holder} was alive {seconds:.0f} s ago (epoch {state.epoch}){others}"
    )


def _existing_paths(settings: StorageSettings) -> Iterator[Path]:
    yield _nearest_existing(settings.db_path.absolute().parent)
    yield from _own_paths(settings)


def _own_paths(settings: StorageSettings) -> Iterator[Path]:
    for path in (settings.db_path, settings.data_path):
        if path.exists():
            yield path


def _nearest_existing(path: Path) -> Path:
    path = path.absolute()
    return path if path.exists() else _nearest_existing(path.parent)

"""Numbered SQL files and the table that remembers which were applied. The only code that creates a database."""

import contextlib
import os
import re
import sqlite3
import time
from collections.abc import Iterator
from functools import cache
from importlib import resources
from pathlib import Path

from ci_common.clock import utcnow
from ci_common.crash_points import crash_point
from ci_common.errors import DatabaseBusy, SchemaTooNew, Unavailable
from ci_common.job_terms import new_id
from ci_persistence.ownership import adopt_owner
from ci_persistence.rows import to_text
from ci_persistence.sqlite_connection import (
    BUSY_TIMEOUT_MS,
    INCREMENTAL,
    connect,
    gives_back,
    is_busy,
    write_transaction,
)
from ci_persistence.sqlite_errors import corrupt, database_error, schema_missing, translated

REWRITE_UP_TO = 64 * 1024 * 1024  # bytes of an older database that are rewritten unasked: a second or so
_FILE_NAME = re.compile(r"(\d{4})_\w+\.sql")
_VERSION_TABLE = (
    "CREATE TABLE IF NOT EXISTS schema_version (version INTEGER PRIMARY KEY, applied_at TEXT NOT NULL) STRICT"
)


@cache
def available_migrations(database: str = "sqlite") -> dict[int, str]:
    """Return the text of every migration of this release for that kind of database under its number."""
    folder = resources.files("ci_persistence") / "schema" / database
    found = {
        int(match[1]): entry.read_text(encoding="utf-8")
        for entry in folder.iterdir()
        if (match := _FILE_NAME.fullmatch(entry.name))
    }
    assert sorted(found) == list(range(1, len(found) + 1)), (
        f"migrations are not numbered 1…n: {sorted(found)}"
    )
    return dict(sorted(found.items()))


def current_version() -> int:
    """Return the schema version that this release reads and writes."""
    return max(available_migrations())


def migrate(path: Path) -> None:
    """The file exists, passed SQLite's check and has the current schema; safe when several processes do it at once.

    Raises SchemaTooNew, DatabaseCorrupt and what `translated` makes of the driver's errors.
    """
    with translated(path):
        _create_file(path)
        db = connect(path)
        try:
            _quick_check(db, path)
            _let_it_shrink(db)
            _switch_to_wal(db, path)
            write_transaction(db, lambda db: _apply_missing(db, path))
            crash_point("after_migration")
            _rewrite_if_small(db, path)
        finally:
            db.close()


def require_current_schema(db: sqlite3.Connection, path: Path) -> None:
    """The database has the schema of this release; raises SchemaMissing or SchemaTooNew otherwise."""
    found = _version(db)
    if found > current_version():
        raise _too_new(path, found)
    if found < current_version():
        raise schema_missing(path)


def _create_file(path: Path) -> None:
    # Exclusively: opening and closing a file that SQLite has open in this process would drop its locks.
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o660)
    except FileExistsError:
        return
    except OSError as error:
        raise Unavailable(f"The database {path} cannot be created: {error.strerror}.") from error
    try:
        os.fchmod(descriptor, 0o660)  # whatever the umask: server and controller share it through their group
        adopt_owner(path)
    finally:
        os.close(descriptor)


def _quick_check(db: sqlite3.Connection, path: Path) -> None:
    findings = [str(row[0]) for row in db.execute("PRAGMA quick_check(5)")]
    if findings != ["ok"]:
        raise corrupt(path, "; ".join(findings))


def _let_it_shrink(db: sqlite3.Connection) -> None:
    """A database that is about to be made will be able to give pages back; asks nothing of one that exists."""
    if db.execute("PRAGMA page_count").fetchone()[0] == 0:
        db.execute(f"PRAGMA auto_vacuum = {INCREMENTAL}")  # holds only where it comes before the first page


def _rewrite_if_small(db: sqlite3.Connection, path: Path) -> None:
    """A small database of an older release can shrink from now on; a large one needs an operator's decision."""
    if gives_back(db) or path.stat().st_size > REWRITE_UP_TO:
        return
    with contextlib.suppress(sqlite3.OperationalError):  # somebody writes, or the disk is full: another time
        _rewrite(db)


def rewrite_database(path: Path) -> None:
    """The file has no free pages and can shrink from now on; meanwhile writers wait and it takes twice its space."""
    with translated(path):
        db = connect(path)
        try:
            _rewrite(db)
        finally:
            db.close()


def _rewrite(db: sqlite3.Connection) -> None:
    db.execute(f"PRAGMA auto_vacuum = {INCREMENTAL}")
    db.execute("VACUUM")


def _switch_to_wal(db: sqlite3.Connection, path: Path) -> None:
    """The file is in WAL mode; SQLite refuses the switch at once, without waiting, while another one is there."""
    deadline = time.monotonic() + BUSY_TIMEOUT_MS / 1000
    while True:
        try:
            if db.execute("PRAGMA journal_mode = WAL").fetchone()[0] == "wal":
                return
        except sqlite3.OperationalError as error:
            if not is_busy(error):
                raise
        if time.monotonic() > deadline:
            raise DatabaseBusy(f"The database {path} cannot be switched to WAL mode.", retry_after=5)
        time.sleep(0.01)


def _apply_missing(db: sqlite3.Connection, path: Path) -> None:
    found = _version(db)
    if found > current_version():
        raise _too_new(path, found)
    db.execute(_VERSION_TABLE)
    for number, text in available_migrations().items():
        if number > found:
            for statement in _statements(text):
                db.execute(statement)
                crash_point("during_migration")
            db.execute("INSERT INTO schema_version VALUES (?, ?)", (number, to_text(utcnow())))
    db.execute("INSERT OR IGNORE INTO installation VALUES (1, ?)", (new_id(),))


def _statements(text: str) -> Iterator[str]:
    # `executescript` would commit first, and a migration is one transaction.
    pending = ""
    for line in text.splitlines(keepends=True):
        pending += line
        if sqlite3.complete_statement(pending):
            yield pending
            pending = ""
    assert not pending.strip(), f"unfinished statement: {pending}"


def _version(db: sqlite3.Connection) -> int:
    table = db.execute(
        "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'schema_version'"
    ).fetchone()
    if table is None:
        return 0
    return int(db.execute("SELECT coalesce(max(version), 0) FROM schema_version").fetchone()[0])


def _too_new(path: Path, found: int) -> SchemaTooNew:
    what = f"has schema {found}, this program knows {current_version()}: install the newer release."
    return database_error(SchemaTooNew, path, what)

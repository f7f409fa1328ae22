"""The one place where SQLite's errors become ours. Nothing here knows a query."""

import sqlite3
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from ci_common.errors import (
    CIError,
    Conflict,
    DatabaseBusy,
    DatabaseCorrupt,
    SchemaMissing,
    StorageFull,
    Unavailable,
)

HOW_TO_MAKE_SCHEMA = "start ci-controller (or run `ci-admin user create`) on this database first"
_Error = TypeVar("_Error", bound=CIError)
_RETRY_AFTER = 1  # seconds; locks are held for milliseconds


@contextmanager
def translated(path: Path) -> Generator[None]:
    """Every sqlite3 error raised inside comes out as a CIError that says what to do."""
    try:
        yield
    except sqlite3.Error as error:
        raise translate(error, path) from error
    except UnicodeDecodeError as error:  # what SQLite complains of quotes a schema that is no text any more
        raise corrupt(path, "its schema is not readable") from error


def translate(error: sqlite3.Error, path: Path) -> CIError:
    """Return our word for an error of the driver."""
    name = getattr(error, "sqlite_errorname", "") or ""
    if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
        return database_error(DatabaseBusy, path, "is locked by another process.", retry_after=_RETRY_AFTER)
    if name.startswith("SQLITE_FULL"):
        return database_error(StorageFull, path, "has no space left on its disk; make room there.")
    if name.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")):
        return corrupt(path, str(error))
    if name == "SQLITE_ERROR" and str(error).startswith("no such table"):
        return schema_missing(path)
    if name.startswith("SQLITE_CANTOPEN") and not path.exists():
        return schema_missing(path)
    if isinstance(error, sqlite3.IntegrityError):
        return Conflict(f"The database refuses it: {error}.")
    return database_error(Unavailable, path, f"cannot be used: {error} ({name or type(error).__name__}).")


def database_error(kind: type[_Error], path: Path, what: str, *, retry_after: int | None = None) -> _Error:
    """Return an error that names the file to operators, and to callers of the API only says whose it is."""
    return kind(
        f"The database {path} {what}",
        public_detail=f"The server's database {what}",
        retry_after=retry_after,
    )


def schema_missing(path: Path) -> SchemaMissing:
    """Return the error for a database that is absent, empty or older than this release."""
    what = f"has no schema of this release: {HOW_TO_MAKE_SCHEMA}."
    return database_error(SchemaMissing, path, what, retry_after=2)


def corrupt(path: Path, finding: str) -> DatabaseCorrupt:
    """Return the error for a file that fails SQLite's own checks."""
    what = (
        f"is damaged ({finding}): stop every process that uses it, keep a copy of it "
        f"with its -wal and -shm files, and restore the latest backup with `ci-admin restore`."
    )
    return database_error(DatabaseCorrupt, path, what)

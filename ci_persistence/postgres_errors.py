"""The one place where psycopg's errors become ours. Nothing here knows a query."""

from collections.abc import Generator
from contextlib import contextmanager
from typing import TypeVar

import psycopg
from psycopg import errors

from ci_common.errors import (
    CIError,
    Conflict,
    DatabaseBusy,
    DatabaseCorrupt,
    InvalidRequest,
    OutcomeUnknown,
    SchemaMissing,
    StorageFull,
    Unavailable,
)
from ci_common.settings import shown_url
from ci_persistence.sqlite_errors import HOW_TO_MAKE_SCHEMA

_Error = TypeVar("_Error", bound=CIError)
_RETRY_AFTER = 2  # seconds; a restart of the database takes about as long

_BUSY = (
    errors.LockNotAvailable,
    errors.QueryCanceled,
    errors.TooManyConnections,
    errors.SerializationFailure,
    errors.DeadlockDetected,
    errors.IdleInTransactionSessionTimeout,
)
_FULL = (errors.DiskFull, errors.OutOfMemory)
_CORRUPT = (errors.DataCorrupted, errors.IndexCorrupted)
_NO_SCHEMA = (errors.UndefinedTable, errors.UndefinedColumn, errors.UndefinedObject)


class CommitUnanswered(Exception):
    """The connection was lost between our COMMIT and its answer."""


def is_lost(error: psycopg.Error) -> bool:
    """Tell whether the error is that there is no connection, or that the server is ending it."""
    state = error.sqlstate
    return state is None or state[:2] == "08" or state[:3] == "57P"


@contextmanager
def translated(url: str) -> Generator[None]:
    """Every error of the driver raised inside comes out as a CIError that says what to do."""
    try:
        yield
    except (psycopg.Error, CommitUnanswered, UnicodeEncodeError) as error:
        raise translate(error, url) from error


def translate(error: Exception, url: str) -> CIError:
    """Return our word for an error of the driver."""
    match error:
        case CommitUnanswered():
            what = "was lost while it committed: whether the last change was made can only be looked up."
            return database_error(OutcomeUnknown, url, what, retry_after=_RETRY_AFTER)
        case psycopg.OperationalError() if isinstance(error, _BUSY):
            return database_error(DatabaseBusy, url, "is busy.", f"({_said(error)})", retry_after=1)
        case psycopg.OperationalError() if isinstance(error, _FULL):
            return database_error(StorageFull, url, "has no room left; make some there.", f"({_said(error)})")
        case psycopg.InternalError() if isinstance(error, _CORRUPT):
            what = "is damaged: stop every process that uses it and restore it from a backup."
            return database_error(DatabaseCorrupt, url, what, f"({_said(error)})")
        case psycopg.ProgrammingError() if isinstance(error, _NO_SCHEMA):
            return schema_missing(url)
        case psycopg.IntegrityError():
            return Conflict(f"The database refuses it: {_said(error)}.")
        case (
            psycopg.DataError() | UnicodeEncodeError()
        ):  # a character that text cannot hold, a number too large
            return InvalidRequest(f"The database cannot store that: {_said(error)}.")
        case _:
            what = "cannot be used now."
            return database_error(Unavailable, url, what, f"({_said(error)})", retry_after=_RETRY_AFTER)


def database_error(
    kind: type[_Error], url: str, what: str, cause: str = "", *, retry_after: int | None = None
) -> _Error:
    """Return an error that names database and cause to operators, and to callers of the API only says whose it is."""
    return kind(
        " ".join(part for part in ("The database", shown_url(url), what, cause) if part),
        public_detail=f"The server's database {what}",
        retry_after=retry_after,
    )


def schema_missing(url: str) -> SchemaMissing:
    """Return the error for a database that has no schema, or one that is older than this release."""
    what = f"has no schema of this release: {HOW_TO_MAKE_SCHEMA}."
    return database_error(SchemaMissing, url, what, retry_after=2)


def _said(error: Exception) -> str:
    """Return the first line of what the driver says, which has neither passwords nor values."""
    diagnosis = error.diag.message_primary if isinstance(error, psycopg.Error) else None
    return diagnosis or next(iter(str(error).splitlines()), type(error).__name__)

"""Numbered SQL files and the table that remembers which were applied: the part of `migrations` for PostgreSQL."""

from typing import Final

from ci_common.clock import utcnow
from ci_common.crash_points import crash_point
from ci_common.errors import SchemaTooNew
from ci_common.job_terms import new_id
from ci_persistence.migrations import available_migrations
from ci_persistence.postgres_connection import Connection, connect, write_transaction
from ci_persistence.postgres_errors import database_error, schema_missing, translated
from ci_persistence.rows import to_text

_FOLDER: Final = "postgresql"
_ALONE: Final = (
    7_274_001  # the key of the lock under which one process migrates; any number, the same for all
)
_VERSION_TABLE: Final = (
    "CREATE TABLE IF NOT EXISTS schema_version (version integer PRIMARY KEY, applied_at text NOT NULL)"
)


def current_version() -> int:
    """Return the schema version that this release reads and writes."""
    return max(available_migrations(_FOLDER))


def migrate(url: str) -> None:
    """The database, which exists, has the current schema; safe when several processes do it at once.

    Raises SchemaTooNew and what `translated` makes of the driver's errors.
    """
    with translated(url):
        db = connect(url)
        try:
            write_transaction(db, lambda db: _apply_missing(db, url))
            crash_point("after_migration")
        finally:
            db.close()


def require_current_schema(db: Connection, url: str) -> None:
    """The database has the schema of this release; raises SchemaMissing or SchemaTooNew otherwise."""
    found = _version(db)
    if found > current_version():
        raise _too_new(url, found)
    if found < current_version():
        raise schema_missing(url)


def _apply_missing(db: Connection, url: str) -> None:
    db.execute("SELECT pg_advisory_xact_lock(?)", (_ALONE,))
    found = _version(db)
    if found > current_version():
        raise _too_new(url, found)
    db.execute(_VERSION_TABLE)
    for number, text in available_migrations(_FOLDER).items():
        if number > found:
            db.execute(text.encode())
            crash_point("during_migration")
            db.execute("INSERT INTO schema_version VALUES (?, ?)", (number, to_text(utcnow())))
    db.execute("INSERT INTO installation VALUES (1, ?) ON CONFLICT DO NOTHING", (new_id(),))


def _version(db: Connection) -> int:
    if db.execute("SELECT to_regclass('schema_version')").fetchone()[0] is None:
        return 0
    return int(db.execute("SELECT coalesce(max(version), 0) FROM schema_version").fetchone()[0])


def _too_new(url: str, found: int) -> SchemaTooNew:
    what = f"has schema {found}, this program knows {current_version()}: install the newer release."
    return database_error(SchemaTooNew, url, what)

"""Short looks into a SQLite file on the event loop itself, where a way through a thread costs ten times what is read.

Only for what finds a few rows by their keys: the cached pages answer in microseconds, and in this journal mode no
writer is waited for. Whatever else comes up is left to a connection that has a thread.
"""

import contextlib
import sqlite3
from pathlib import Path
from typing import TypeVar

from ci_common.errors import CIError
from ci_persistence.migrations import require_current_schema
from ci_persistence.sqlite_connection import Work, connect, read_transaction

T = TypeVar("T")


class Unseen(Exception):
    """It could not be read at once."""


class Glances:
    """A connection that never writes and never waits, of the thread that uses it; opened when needed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._db: sqlite3.Connection | None = None
        self._opened = 0  # times

    def read(self, work: Work[T]) -> T:
        """Return what the work read from one snapshot; raises Unseen."""
        try:
            return read_transaction(self._db or self._open(), work)
        except sqlite3.Error as error:
            # A connection that could not even roll back would see an old snapshot from now on.
            with contextlib.suppress(sqlite3.Error):
                self.close()
            raise Unseen from error

    def version(self) -> tuple[int, int]:
        """Return what is another pair as soon as anybody committed, this process included; raises Unseen."""
        try:
            # Its number counts for one connection, and that one never writes.
            number = int((self._db or self._open()).execute("PRAGMA data_version").fetchone()[0])
        except sqlite3.Error as error:
            raise Unseen from error
        return self._opened, number

    def close(self) -> None:
        """The connection is gone; it comes back with the next use."""
        db, self._db = self._db, None
        if db is not None:
            db.close()

    def _open(self) -> sqlite3.Connection:
        db = connect(self._path, busy_timeout_ms=0)
        try:
            db.execute("PRAGMA query_only = ON")
            require_current_schema(db, self._path)
        except (sqlite3.Error, CIError) as error:
            db.close()
            raise Unseen from error
        except BaseException:
            db.close()
            raise
        self._db = db
        self._opened += 1
        return db

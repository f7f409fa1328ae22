"""Tells whether anybody committed to a SQLite file since it was last asked, without reading any of it."""

import sqlite3
from pathlib import Path

from ci_persistence.sqlite_connection import connect


class CommitWatch:
    """A connection that never writes, so that every commit of this and any other process is one of another's."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._db: sqlite3.Connection | None = None
        self._seen: int | None = None

    def changed(self) -> bool:
        """Return True when there was a commit (or the file appeared) since the last call; microseconds."""
        try:
            if self._db is None:
                self._db = connect(self._path, busy_timeout_ms=0)  # asked on the event loop: never wait
            found = int(self._db.execute("PRAGMA data_version").fetchone()[0])
        except sqlite3.Error:
            return False  # absent, locked or damaged: whoever is woken by its time-out will find out
        changed = found != self._seen
        self._seen = found
        return changed

    def forget(self) -> None:
        """The file was replaced by another one, or nobody asks any more: the connection is closed."""
        if self._db is not None:
            self._db.close()
        self._db = self._seen = None

# ruff: noqa: ARG002  (every queue is asked in the same way)
"""What the databases can do at best: a table, one UPDATE that claims, one that finishes, each with its commit.

Several workers are several threads with a connection each. It knows of no users, attempts, events or fences.
"""

import random
import sqlite3
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

import psycopg

from bench.queues.worker import ThreadedQueue, main_of_threads

_TABLE: Final = "CREATE TABLE queue (id integer PRIMARY KEY, status integer NOT NULL, data text NOT NULL)"
_INDEX: Final = "CREATE INDEX queue_waiting ON queue (id) WHERE status = 0"
_CLAIM: Final = (
    "UPDATE queue SET status = 1 WHERE id IN (SELECT id FROM queue WHERE status = 0 ORDER BY id LIMIT {} {}) "
    "RETURNING id, data"
)
_SKIP: Final = "FOR UPDATE SKIP LOCKED"


class SQLiteFloor:
    """The standard library's driver, with the durability of ours, and as fair when the file is busy."""

    def __init__(self, path: str) -> None:
        self._db = sqlite3.connect(path, isolation_level=None, timeout=0, check_same_thread=False)
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = FULL")

    def fill(self, jobs: int, users: int) -> None:
        self._db.execute("BEGIN IMMEDIATE")
        self._db.execute(_TABLE)
        self._db.execute(_INDEX)
        self._db.executemany("INSERT INTO queue VALUES (?, 0, 'job')", [(number,) for number in range(jobs)])
        self._db.execute("COMMIT")

    def claim(self, batch: int) -> Sequence[Any]:
        claim = _CLAIM.format(batch, "")
        return self._alone(lambda: self._db.execute(claim).fetchall())

    def finish(self, claimed: Sequence[Any]) -> None:
        ids = [row[0] for row in claimed]
        finish = f"UPDATE queue SET status = 2 WHERE id IN ({', '.join('?' * len(ids))})"
        self._alone(lambda: self._db.execute(finish, ids).fetchall())

    def close(self) -> None:
        self._db.close()

    def _alone(self, work: Callable[[], Sequence[Any]]) -> Sequence[Any]:
        while True:
            try:
                self._db.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError:
                time.sleep(random.uniform(0.0002, 0.004))
                continue
            found = work()
            self._db.execute("COMMIT")
            return found


class PostgresFloor:
    """psycopg, each statement its own transaction."""

    def __init__(self, url: str) -> None:
        self._db = psycopg.connect(url, autocommit=True)

    def fill(self, jobs: int, users: int) -> None:
        self._db.execute(_TABLE.encode())
        self._db.execute(_INDEX.encode())
        self._db.execute(b"INSERT INTO queue SELECT generate_series(1, %s), 0, 'job'", (jobs,))
        self._db.execute(b"ANALYZE queue")

    def claim(self, batch: int) -> Sequence[Any]:
        return self._db.execute(_CLAIM.format(batch, _SKIP).encode()).fetchall()

    def finish(self, claimed: Sequence[Any]) -> None:
        self._db.execute(b"UPDATE queue SET status = 2 WHERE id = ANY(%s)", ([row[0] for row in claimed],))

    def close(self) -> None:
        self._db.close()


def _make(place: str) -> Callable[[], ThreadedQueue]:
    if place.startswith("postgresql:"):
        return lambda: PostgresFloor(place)
    return lambda: SQLiteFloor(place)


if __name__ == "__main__":
    main_of_threads(_make)

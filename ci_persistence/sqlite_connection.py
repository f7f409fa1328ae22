"""How one connection to a SQLite file is opened and set up, and how one transaction runs on it."""

import random
import sqlite3
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")
Work = Callable[[sqlite3.Connection], T]

BUSY_TIMEOUT_MS = 10_000
INCREMENTAL = 2  # what `PRAGMA auto_vacuum` says of a file that can give pages back bit by bit

# Before 3.51.3 a checkpoint that runs while another connection commits the transaction that resets the
# write-ahead log can corrupt the file (https://www.sqlite.org/wal.html#walresetbug). So on such builds no
# connection checkpoints by itself; only `maintain()` does, in a mode that holds the write lock meanwhile.
HAS_WAL_RESET_BUG = sqlite3.sqlite_version_info < (3, 51, 3)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one piece of work: what it returned, or what it raised."""

    result: Any = None
    error: Exception | None = None


def connect(path: Path, busy_timeout_ms: int = BUSY_TIMEOUT_MS) -> sqlite3.Connection:
    """Return a connection to a file that exists (only the migrator makes one), set up by our rules."""
    uri = f"{path.absolute().as_uri()}?mode=rw"
    # Autocommit mode: otherwise the driver opens transactions of its own.
    db = sqlite3.connect(uri, uri=True, isolation_level=None, timeout=busy_timeout_ms / 1000)
    try:
        db.row_factory = sqlite3.Row
        db.execute("PRAGMA foreign_keys = ON")
        db.execute("PRAGMA synchronous = FULL")  # an acknowledged job survives power loss
        if HAS_WAL_RESET_BUG:
            db.execute("PRAGMA wal_autocheckpoint = 0")
    except BaseException:
        db.close()
        raise
    return db


def gives_back(db: sqlite3.Connection) -> bool:
    """Tell whether the file can give free pages back to the disk bit by bit."""
    return int(db.execute("PRAGMA auto_vacuum").fetchone()[0]) == INCREMENTAL


def can_shrink(path: Path) -> bool:
    """Tell the same of a database that nobody has opened yet."""
    db = connect(path)
    try:
        return gives_back(db)
    finally:
        db.close()


def read_transaction(db: sqlite3.Connection, work: Work[T]) -> T:
    """Return what the work read from one snapshot."""
    db.execute("BEGIN")
    return _to_the_end(db, work)


def write_transaction(db: sqlite3.Connection, work: Work[T]) -> T:
    """The work is committed and its result returned, or it raised and nothing of it remains."""
    _begin_immediate(db)
    return _to_the_end(db, work)


def each_apart(db: sqlite3.Connection, works: Sequence[Work[Any]], seconds: float) -> list[Outcome]:
    """Return what became of the first of them, as many as began within that time.

    Nothing remains of one that raised, in a transaction that goes on with the others. Raises what ended the
    transaction itself, such as a full disk: then nothing remains of any.
    """
    outcomes: list[Outcome] = []
    deadline = time.monotonic() + seconds
    for work in works:
        outcomes.append(_apart(db, work))
        if time.monotonic() > deadline:
            break
    return outcomes


def _apart(db: sqlite3.Connection, work: Work[Any]) -> Outcome:
    db.execute("SAVEPOINT one")
    try:
        result = work(db)
    except Exception as error:
        if not db.in_transaction:
            raise
        db.execute("ROLLBACK TO one")
        db.execute("RELEASE one")
        return Outcome(error=error)
    db.execute("RELEASE one")
    return Outcome(result)


def _begin_immediate(db: sqlite3.Connection) -> None:
    # IMMEDIATE: a transaction that reads first and writes later fails at once where another one has written.
    # SQLite's own busy handler sleeps up to 0.1 s between two tries, so a busy neighbour starves us for
    # seconds; short random pauses are fair.
    db.execute("PRAGMA busy_timeout = 0")
    deadline = time.monotonic() + BUSY_TIMEOUT_MS / 1000
    try:
        while True:
            try:
                db.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError as error:
                if not is_busy(error) or time.monotonic() > deadline:
                    raise
                time.sleep(random.uniform(0.0002, 0.004))  # noqa: S311  (not a secret)
            else:
                return
    finally:
        db.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")


def is_busy(error: sqlite3.OperationalError) -> bool:
    """Tell whether somebody else's lock was in the way; the low byte is the code, the rest says which lock."""
    return error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY


def _to_the_end(db: sqlite3.Connection, work: Work[T]) -> T:
    try:
        result = work(db)
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:  # on some errors, such as a full disk, SQLite has rolled back by itself
            db.execute("ROLLBACK")
        raise
    return result

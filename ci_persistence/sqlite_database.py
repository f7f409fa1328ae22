"""One SQLite file for one process: a writer and a reader connection, whole transactions, safe cancellation.

The only importer of aiosqlite. What a query means is said elsewhere.
"""

import asyncio
import sqlite3
from pathlib import Path
from typing import TypeVar

import aiosqlite

from ci_persistence.migrations import require_current_schema
from ci_persistence.settled import settled
from ci_persistence.sqlite_connection import (
    BUSY_TIMEOUT_MS,
    Work,
    connect,
    gives_back,
    read_transaction,
    write_transaction,
)
from ci_persistence.sqlite_errors import translated

T = TypeVar("T")

_CHECKPOINT_PATIENCE_MS = 500  # a truncating checkpoint blocks writers while it waits for readers
_TRUNCATE_ABOVE = 4 * 1024 * 1024  # bytes of write-ahead log
_SPARE_PAGES = 256  # free pages that stay for the next jobs: 1 MiB
_SLICE_PAGES = 512  # that one transaction gives back: 2 MiB, some milliseconds during which others wait
_VACUUM_SLICES = 64


class SQLiteDatabase:
    """Runs work on the file, each piece as one transaction; connections open on first use."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._writer = _Slot(path, query_only=False)
        self._reader = _Slot(path, query_only=True)

    async def write(self, work: Work[T]) -> T:
        """The work is committed, or (it raised) nothing of it is; cancelled before its turn, it never ran."""
        return await self._writer.run(lambda db: write_transaction(db, work))

    async def read(self, work: Work[T]) -> T:
        """Return what the work read from one consistent snapshot."""
        return await self._reader.run(lambda db: read_transaction(db, work))

    async def version(self) -> tuple[int, int]:
        """Return what is another pair as soon as anybody committed, this process included; microseconds."""
        # Its number counts for one connection, and that one never writes.
        number = await self._reader.run(_data_version)
        return self._reader.opened, number

    async def maintain(self) -> None:
        """Free pages went back to the disk, and the write-ahead log is small again, unless a reader or writer
        was in the way this time."""
        shrunk = False
        for _ in range(_VACUUM_SLICES):
            if not await self.write(_vacuum_slice):
                break
            shrunk = True
        wal = self.path.with_name(self.path.name + "-wal")
        if shrunk or (wal.exists() and wal.stat().st_size > _TRUNCATE_ABOVE):
            await self._writer.run(_truncate_wal)

    async def close(self) -> None:
        """Both connections and their threads (which would keep the process alive) are gone."""
        await self._reader.close()
        await self._writer.close()


class _Connection(aiosqlite.Connection):
    """A connection whose thread runs whole functions: no turn of the event loop inside a transaction."""

    async def run(self, work: Work[T]) -> T:
        # aiosqlite has no public way to run a function of ours on its thread; the version is pinned.
        return await self._execute(lambda: work(self._conn))  # pyright: ignore[reportUnknownMemberType]

    async def ended(self) -> None:
        """The thread is over; needed only where opening failed, since aiosqlite does not wait for it then."""
        await asyncio.to_thread(self._thread.join)


class _Slot:
    """The place of one connection: opened when needed, used by one coroutine at a time."""

    def __init__(self, path: Path, *, query_only: bool) -> None:
        self._path = path
        self._query_only = query_only
        self._lock = asyncio.Lock()
        self._connection: _Connection | None = None
        self.opened = 0  # times

    async def run(self, work: Work[T]) -> T:
        async with self._lock:
            with translated(self._path):
                return await settled(self._run(work))

    async def close(self) -> None:
        async with self._lock:
            await settled(self._close())

    async def _run(self, work: Work[T]) -> T:
        if self._connection is None:
            self._connection = await self._open()
        return await self._connection.run(work)

    async def _open(self) -> _Connection:
        connection = _Connection(lambda: connect(self._path), iter_chunk_size=64)
        try:
            await connection
        except BaseException:
            await connection.ended()
            raise
        try:
            await connection.run(self._prepare)
        except BaseException:
            await connection.close()
            raise
        self.opened += 1
        return connection

    def _prepare(self, db: sqlite3.Connection) -> None:
        require_current_schema(db, self._path)
        if self._query_only:
            db.execute("PRAGMA query_only = ON")

    async def _close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()


def _data_version(db: sqlite3.Connection) -> int:
    return int(db.execute("PRAGMA data_version").fetchone()[0])


def _vacuum_slice(db: sqlite3.Connection) -> bool:
    """Some free pages are given back to the disk; False: there were too few to care, or the file cannot do it."""
    spare = int(db.execute("PRAGMA freelist_count").fetchone()[0]) - _SPARE_PAGES
    if spare <= 0 or not gives_back(db):
        return False
    for _ in range(min(spare, _SLICE_PAGES)):
        db.execute("PRAGMA incremental_vacuum(1)")  # of more pages the driver would take the first step only
    return True


def _truncate_wal(db: sqlite3.Connection) -> None:
    # TRUNCATE, never PASSIVE: it takes the write lock first, so no commit can reset the log under it.
    db.execute(f"PRAGMA busy_timeout = {_CHECKPOINT_PATIENCE_MS}")
    try:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    finally:
        db.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")

"""One SQLite file for one process: connections to write, read and glance at it; whole transactions, safe cancellation.

The only importer of aiosqlite. What a query means is said elsewhere.
"""

import asyncio
import contextlib
import sqlite3
from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import aiosqlite

from ci_persistence.migrations import require_current_schema
from ci_persistence.settled import answered, settled
from ci_persistence.sqlite_connection import (
    BUSY_TIMEOUT_MS,
    Outcome,
    Work,
    connect,
    each_apart,
    gives_back,
    read_transaction,
    write_transaction,
)
from ci_persistence.sqlite_errors import translated
from ci_persistence.sqlite_glance import Glances, Unseen

T = TypeVar("T")
Transaction = Callable[[sqlite3.Connection, Work[Any]], Any]

_TOGETHER = 64  # pieces of work in one transaction at most
_SHARED_SECONDS = 0.005  # after which a shared one begins nothing more: the first of it waits for the last
_CHECKPOINT_PATIENCE_MS = 500  # a truncating checkpoint blocks writers while it waits for readers
_TRUNCATE_ABOVE = 4 * 1024 * 1024  # bytes of write-ahead log
_SPARE_PAGES = 256  # free pages that stay for the next jobs: 1 MiB
_SLICE_PAGES = 512  # that one transaction gives back: 2 MiB, some milliseconds during which others wait
_VACUUM_SLICES = 64


class SQLiteDatabase:
    """Runs work on the file, each piece as one transaction; connections open on first use."""

    def __init__(self, path: Path, shared_seconds: float = _SHARED_SECONDS) -> None:
        self.path = path
        self._writer = _Slot(path, write_transaction, shared_seconds=shared_seconds)
        self._reader = _Slot(path, read_transaction, query_only=True)  # a reader has no sync to share
        self._glances = Glances(path)

    async def write(self, work: Work[T]) -> T:
        """The work is committed, or (it raised) nothing of it is; cancelled before its turn, it never ran.

        What waits for the writer at the same time is committed together: one sync of the disk for all of it.
        """
        return await self._writer.run(work)

    async def read(self, work: Work[T]) -> T:
        """Return what the work read from one consistent snapshot."""
        return await self._reader.run(work)

    async def glance(self, work: Work[T]) -> T:
        """Return the same, of work that finds a few rows by their keys: at once, where that is possible."""
        try:
            return self._glances.read(work)
        except Unseen:
            return await self.read(work)

    async def version(self) -> Hashable:
        """Return what is another value as soon as anybody committed, this process included; microseconds."""
        try:
            return self._glances.version()
        except Unseen:  # then nothing is known to be the same
            await self.read(_nothing)
            return object()

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
            await self._writer.run_alone(_truncate_wal)

    async def close(self) -> None:
        """All connections and their threads (which would keep the process alive) are gone."""
        async with contextlib.AsyncExitStack() as stack:  # each, whatever becomes of the others
            stack.callback(self._glances.close)
            stack.push_async_callback(self._writer.close)
            stack.push_async_callback(self._reader.close)


class _Connection(aiosqlite.Connection):
    """A connection whose thread runs whole functions: no turn of the event loop inside a transaction."""

    async def run(self, work: Work[T]) -> T:
        # aiosqlite has no public way to run a function of ours on its thread; the version is pinned.
        return await self._execute(lambda: work(self._conn))  # pyright: ignore[reportUnknownMemberType]

    async def ended(self) -> None:
        """The thread is over; needed only where opening failed, since aiosqlite does not wait for it then."""
        await asyncio.to_thread(self._thread.join)


@dataclass(eq=False, slots=True)
class _Waiting:
    """Work that waits for its turn, and where it is told what became of it."""

    work: Work[Any]
    alone: bool  # it is no part of a transaction
    outcome: asyncio.Future[Any]


class _Slot:
    """The place of one connection, opened when needed; so much of what waits for it may share a transaction."""

    def __init__(
        self, path: Path, transaction: Transaction, *, shared_seconds: float = 0, query_only: bool = False
    ) -> None:
        self._path = path
        self._transaction = transaction
        self._shared_seconds = shared_seconds
        self._query_only = query_only
        self._waiting: deque[_Waiting] = deque()
        self._serving: asyncio.Task[None] | None = None
        self._connection: _Connection | None = None

    async def run(self, work: Work[T]) -> T:
        """Return what the work returned, in a transaction of its own or with others."""
        return await self._outcome(work, alone=False)

    async def run_alone(self, work: Work[T]) -> T:
        """Return what the work returned, outside of transactions."""
        return await self._outcome(work, alone=True)

    async def close(self) -> None:
        """The connection is closed, after what was begun."""
        while self._serving is not None and not self._serving.done():
            await asyncio.wait([self._serving])
        await settled(self._close())

    async def _outcome(self, work: Work[T], *, alone: bool) -> T:
        mine = _Waiting(work, alone, asyncio.get_running_loop().create_future())
        self._waiting.append(mine)
        if self._serving is None or self._serving.done():
            self._serving = asyncio.create_task(self._serve())
            self._serving.add_done_callback(self._served)
        with translated(self._path):
            result: T = await answered(mine.outcome, lambda: self._withdrawn(mine))
        return result

    def _withdrawn(self, mine: _Waiting) -> bool:
        waits = mine in self._waiting
        if waits:
            self._waiting.remove(mine)
        return waits

    async def _serve(self) -> None:
        while self._waiting:
            await self._run_together(self._next())

    def _served(self, serving: asyncio.Task[None]) -> None:
        while serving.cancelled() and self._waiting:  # the loop ends
            self._waiting.popleft().outcome.cancel()

    def _next(self) -> list[_Waiting]:
        """Return what may run together of what has waited longest."""
        taken = [self._waiting.popleft()]
        room = _TOGETHER - 1 if self._shared_seconds and not taken[0].alone else 0
        while room and self._waiting and not self._waiting[0].alone:
            taken.append(self._waiting.popleft())
            room -= 1
        return taken

    async def _run_together(self, taken: list[_Waiting]) -> None:
        try:
            outcomes = await self._run([one.work for one in taken], alone=taken[0].alone)
        except Exception as error:  # noqa: BLE001 - told to whom it befell; the others have their own turn
            outcomes = [Outcome(error=error)]
        except asyncio.CancelledError:
            for one in taken:
                one.outcome.cancel()
            raise
        self._waiting.extendleft(reversed(taken[len(outcomes) :]))  # it was not their turn yet
        for one, outcome in zip(taken, outcomes, strict=False):
            _tell(one, outcome)

    async def _run(self, works: list[Work[Any]], *, alone: bool) -> list[Outcome]:
        """Return what became of the first of them, at least of one."""
        if self._connection is None:
            self._connection = await self._open()
        connection = self._connection
        if alone:
            return [Outcome(await connection.run(works[0]))]
        if len(works) > 1:
            # What the disk has no room for, say, undoes all of a transaction: each has its own then.
            with contextlib.suppress(sqlite3.Error):
                return await connection.run(
                    lambda db: self._transaction(db, lambda db: self._shared(db, works))
                )
        return [Outcome(await connection.run(lambda db: self._transaction(db, works[0])))]

    def _shared(self, db: sqlite3.Connection, works: list[Work[Any]]) -> list[Outcome]:
        return each_apart(db, works, self._shared_seconds)

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
        return connection

    def _prepare(self, db: sqlite3.Connection) -> None:
        require_current_schema(db, self._path)
        if self._query_only:
            db.execute("PRAGMA query_only = ON")

    async def _close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()


def _tell(one: _Waiting, outcome: Outcome) -> None:
    if outcome.error is None:
        one.outcome.set_result(outcome.result)
    else:
        one.outcome.set_exception(outcome.error)


def _nothing(_db: sqlite3.Connection) -> None:
    """Nothing is read; but what keeps the database from being read is said by its error."""


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

"""One PostgreSQL database for one process: a few connections, whole transactions, safe cancellation, second tries.

What a query means is said elsewhere. Reads see one snapshot. Writes lock what they look at (`dialect.LOCKED`) and
are begun again, as often as time allows, where that is certain to do nothing twice.
"""

import asyncio
import random
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from typing import Final, TypeVar

import psycopg
from psycopg import errors

from ci_persistence.postgres_connection import (
    Connection,
    connect,
    read_transaction,
    roll_back,
    write_transaction,
)
from ci_persistence.postgres_errors import is_lost, translated
from ci_persistence.postgres_migrations import require_current_schema
from ci_persistence.settled import settled
from ci_persistence.sql_connection import Work

T = TypeVar("T")
_Transaction = Callable[[Connection, Callable[[Connection], T]], T]

CONNECTIONS: Final = 8
_PATIENCE: Final = 5.0  # seconds in which a database that went away may come back, unnoticed by whoever asks
# Somebody else did it first: who looks again finds what was done. Often enough for all connections of some replicas.
_RACES: Final = (errors.UniqueViolation, errors.ForeignKeyViolation)
_MOST_RACES: Final = 5
_COLLISIONS: Final = (errors.SerializationFailure, errors.DeadlockDetected)
_TABLES: Final = "SELECT tablename FROM pg_tables WHERE schemaname = current_schema() ORDER BY tablename"


class PostgresDatabase:
    """Runs work on the database, each piece as one transaction; connections open when they are needed."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._free = asyncio.Semaphore(CONNECTIONS)
        self._closing = asyncio.Lock()
        self._idle: list[Connection] = []  # the one used last at the end
        self._threads: ThreadPoolExecutor | None = None

    async def write(self, work: Work[T]) -> T:
        """The work is committed, or (it raised) nothing of it is; cancelled before its turn, it never ran.

        Raises OutcomeUnknown where the connection was lost so that neither can be said.
        """
        return await self._run(lambda: self._persist(write_transaction, work))

    async def read(self, work: Work[T]) -> T:
        """Return what the work read from one consistent snapshot."""
        return await self._run(lambda: self._persist(read_transaction, work))

    async def glance(self, work: Work[T]) -> T:
        """Return the same: there is no shorter way to a server."""
        return await self.read(work)

    async def check(self) -> None:
        """The database answers and has the schema of this release."""
        await self._run(
            lambda: self._persist(read_transaction, lambda db: require_current_schema(db, self._url))
        )

    async def maintain(self) -> None:
        """Nothing: the server's autovacuum sees to what SQLite needs a controller for."""

    async def version(self) -> tuple[str, str]:
        """Return what is another pair as soon as anybody committed, this process included."""
        return await self._run(lambda: self._persist(read_transaction, _version))

    async def rewrite(self) -> None:
        """Every table takes no more room than what is in it; who uses one waits meanwhile."""
        await self._run(lambda: self._persist(_outside_of_transactions, _rewrite))

    async def close(self) -> None:
        """All connections and threads are gone."""
        async with self._closing, AsyncExitStack() as stack:
            for _ in range(CONNECTIONS):  # after whatever was begun
                await stack.enter_async_context(self._free)
            await settled(asyncio.to_thread(self._close))

    async def _run(self, call: Callable[[], T]) -> T:
        async with self._free:
            with translated(self._url):
                return await settled(self._in_thread(call))

    async def _in_thread(self, call: Callable[[], T]) -> T:
        if self._threads is None:
            self._threads = ThreadPoolExecutor(CONNECTIONS, "postgres")
        return await asyncio.get_running_loop().run_in_executor(self._threads, call)

    # -- in one of the threads ---------------------------------------------------------------------------------

    def _close(self) -> None:
        while self._idle:
            self._idle.pop().close()
        threads, self._threads = self._threads, None
        if threads is not None:
            threads.shutdown()

    def _persist(self, transaction: _Transaction[T], work: Callable[[Connection], T]) -> T:
        """Return what the transaction returns, tried again while that can help and is safe."""
        deadline, races = time.monotonic() + _PATIENCE, 0
        while True:
            try:
                return self._once(transaction, work)
            except (psycopg.OperationalError, errors.ReadOnlySqlTransaction, *_RACES) as error:
                races += isinstance(error, _RACES)
                if races > _MOST_RACES or not _can_help(error) or time.monotonic() > deadline:
                    raise
            time.sleep(random.uniform(0.001, 0.02))  # noqa: S311  (not a secret)

    def _once(self, transaction: _Transaction[T], work: Callable[[Connection], T]) -> T:
        db = self._taken()
        try:
            return transaction(db, work)
        except errors.ReadOnlySqlTransaction:
            db.close()  # it was the primary, or the next one will be found
            raise
        finally:
            self._give_back(db)

    def _taken(self) -> Connection:
        try:
            return self._idle.pop()
        except IndexError:
            return self._opened()

    def _opened(self) -> Connection:
        db = connect(self._url)
        try:
            require_current_schema(db, self._url)
        except BaseException:
            db.close()
            raise
        return db

    def _give_back(self, db: Connection) -> None:
        if db.closed:
            for other in list(self._idle):  # what ended this one has probably ended them, too
                self._idle.remove(other)
                other.close()
        else:
            self._idle.append(db)


def _can_help(error: psycopg.Error) -> bool:
    """Tell whether the same transaction, of which nothing was committed, may well succeed when it is tried again."""
    return isinstance(error, (*_RACES, *_COLLISIONS, errors.ReadOnlySqlTransaction)) or is_lost(error)


def _version(db: Connection) -> tuple[str, str]:
    # Two snapshots that are written alike see the same transactions; a server that was started again may, after a
    # failover, count those that were lost anew.
    query = "SELECT pg_current_snapshot()::text, pg_postmaster_start_time()::text"
    snapshot, start = db.execute(query.encode()).fetchone()
    return snapshot, start


def _outside_of_transactions(db: Connection, work: Callable[[Connection], T]) -> T:
    try:
        return work(db)
    finally:
        roll_back(db)


def _rewrite(db: Connection) -> None:
    for row in db.execute(_TABLES).fetchall():
        db.execute(f'VACUUM (FULL) "{row["tablename"]}"')

"""One connection and many who want it: what waits at the same time shares a transaction, and stays apart in it."""

import asyncio
import sqlite3
import threading
import time
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest

from ci_common.errors import CIError
from ci_persistence.sqlite_connection import Work, connect
from ci_persistence.sqlite_database import SQLiteDatabase
from tests.support.database import new_database


@pytest.fixture
def path(tmp_path: Path) -> Path:
    found = new_database(tmp_path)
    db = connect(found)
    db.execute("CREATE TABLE notes (text TEXT PRIMARY KEY) STRICT")
    db.close()
    return found


@pytest.fixture
async def database(path: Path) -> AsyncGenerator[SQLiteDatabase]:
    opened = SQLiteDatabase(path)
    yield opened
    await opened.close()


class Gate:
    """Work that holds the connection until it is let go; whatever comes meanwhile waits together."""

    def __init__(self) -> None:
        self.entered = asyncio.Event()
        self._open = threading.Event()
        self._loop = asyncio.get_running_loop()

    def hold(self, _db: sqlite3.Connection) -> None:
        self._loop.call_soon_threadsafe(self.entered.set)
        assert self._open.wait(20)

    def open(self) -> None:
        self._open.set()


def noting(text: str, seen: list[list[str]] | None = None, path: Path | None = None) -> Work[str]:
    """Return work that adds a note and, if asked, tells what others see of them meanwhile."""

    def work(db: sqlite3.Connection) -> str:
        db.execute("INSERT INTO notes VALUES (?)", (text,))
        if seen is not None and path is not None:
            seen.append(notes(path))
        return text

    return work


def failing(error: Exception, *, ends_transaction: bool = False) -> Work[None]:
    """Return work that adds a note and raises; SQLite itself ends a transaction when, say, the disk is full."""

    def work(db: sqlite3.Connection) -> None:
        db.execute("INSERT INTO notes VALUES ('never')")
        if ends_transaction:
            db.execute("ROLLBACK")
        raise error

    return work


def notes(path: Path) -> list[str]:
    db = connect(path)
    try:
        return [row["text"] for row in db.execute("SELECT text FROM notes ORDER BY text")]
    finally:
        db.close()


async def behind(database: SQLiteDatabase, *works: Work[Any]) -> list[Any]:
    """Return what became of these, which came while the connection was busy."""
    gate = Gate()
    holding = asyncio.create_task(database.write(gate.hold))
    await gate.entered.wait()
    tasks = [asyncio.create_task(database.write(work)) for work in works]
    await asyncio.sleep(0)
    gate.open()
    await holding
    return await asyncio.gather(*tasks, return_exceptions=True)


async def test_what_waits_together_is_committed_together(path: Path) -> None:
    database = SQLiteDatabase(path, shared_seconds=60.0)
    seen: list[list[str]] = []
    works = [noting(text, seen, path) for text in "abcde"]
    assert await behind(database, *works) == list("abcde")
    assert seen == [[]] * 5, "nobody sees any of it before all of it is there"
    assert notes(path) == list("abcde")
    await database.close()


async def test_of_what_raises_nothing_remains_and_the_others_stand(
    database: SQLiteDatabase, path: Path
) -> None:
    wrong = ValueError("wrong")
    found = await behind(database, noting("a"), failing(wrong), noting("a"), noting("b"))
    assert found[0] == "a"
    assert found[1] is wrong
    assert isinstance(found[2], CIError), "it was there already"
    assert found[3] == "b"
    assert notes(path) == ["a", "b"]


async def test_what_ends_a_shared_transaction_hits_nobody_else(database: SQLiteDatabase, path: Path) -> None:
    full = sqlite3.OperationalError("database or disk is full")
    found = await behind(database, noting("a"), failing(full, ends_transaction=True), noting("b"))
    assert (found[0], found[2]) == ("a", "b")
    assert isinstance(found[1], CIError)
    assert notes(path) == ["a", "b"]


async def test_a_shared_transaction_takes_no_more_once_it_has_taken_long(
    database: SQLiteDatabase, path: Path
) -> None:
    seen: list[list[str]] = []

    def slow(db: sqlite3.Connection) -> str:
        deadline = time.monotonic() + 0.02
        while time.monotonic() < deadline:
            db.execute("SELECT 1")
        return noting("slow")(db)

    works = [noting("a"), slow, noting("b", seen, path)]
    assert await behind(database, *works) == ["a", "slow", "b"]
    assert seen == [["a", "slow"]], "what came before is committed already"


async def test_who_leaves_before_the_turn_came_leaves_nothing(database: SQLiteDatabase, path: Path) -> None:
    gate = Gate()
    holding = asyncio.create_task(database.write(gate.hold))
    await gate.entered.wait()
    staying, leaving = (asyncio.create_task(database.write(noting(text))) for text in "ab")
    await asyncio.sleep(0)
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    gate.open()
    await holding
    assert await staying == "a"
    assert notes(path) == ["a"]


async def test_who_leaves_during_the_work_waits_for_its_end(database: SQLiteDatabase) -> None:
    gate = Gate()
    holding = asyncio.create_task(database.write(gate.hold))
    await gate.entered.wait()
    holding.cancel()
    await asyncio.sleep(0)
    assert not holding.done()
    gate.open()
    with pytest.raises(asyncio.CancelledError):
        await holding


async def test_readers_that_wait_together_are_answered_each(database: SQLiteDatabase) -> None:
    await database.write(noting("a"))

    def count(db: sqlite3.Connection) -> int:
        return int(db.execute("SELECT count(*) FROM notes").fetchone()[0])

    def wrong(db: sqlite3.Connection) -> None:
        db.execute("SELECT nothing FROM notes")

    found = await asyncio.gather(
        *(database.read(work) for work in (count, wrong, count)), return_exceptions=True
    )
    assert (found[0], found[2]) == (1, 1)
    assert isinstance(found[1], CIError)


def test_a_loop_that_ends_leaves_nobody_waiting(path: Path) -> None:
    async def work() -> None:
        database, gate = SQLiteDatabase(path), Gate()
        tasks = [asyncio.create_task(database.write(work)) for work in (gate.hold, noting("a"))]
        await gate.entered.wait()
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()
        gate.open()
        await asyncio.wait(tasks, timeout=10)
        assert all(task.done() for task in tasks)
        await database.close()

    asyncio.run(work())


def test_a_database_can_be_closed_while_the_loop_ends(path: Path) -> None:
    """What had just been asked for never began, and is waited for by nobody."""

    async def work(database: SQLiteDatabase) -> None:
        asking = asyncio.create_task(database.write(noting("a")))
        await asyncio.sleep(0)  # it has asked
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        async with asyncio.timeout(5):
            await database.close()

    asyncio.run(work(SQLiteDatabase(path)))
    assert notes(path) == []


def threads(_db: sqlite3.Connection) -> threading.Thread:
    return threading.current_thread()


async def test_a_glance_sees_what_was_committed_without_a_thread(
    database: SQLiteDatabase, path: Path
) -> None:
    def seen(db: sqlite3.Connection) -> list[str]:
        return [row["text"] for row in db.execute("SELECT text FROM notes")]

    for text in "ab":
        await database.write(noting(text))
    assert await database.glance(seen) == notes(path) == ["a", "b"]
    assert await database.glance(threads) is threading.current_thread()
    assert await database.read(threads) is not threading.current_thread()


async def test_a_glance_that_somebody_is_in_the_way_of_waits_in_a_thread(
    database: SQLiteDatabase, path: Path
) -> None:
    other = connect(path)
    other.execute("PRAGMA locking_mode = EXCLUSIVE")
    other.execute("INSERT INTO notes VALUES ('alone')")
    glancing = asyncio.create_task(database.glance(threads))
    await asyncio.sleep(0)
    assert not glancing.done()
    other.close()
    assert await glancing is not threading.current_thread()
    assert await database.glance(threads) is threading.current_thread(), "nobody is in the way any more"


async def test_a_glance_that_raises_leaves_the_next_one_its_connection(database: SQLiteDatabase) -> None:
    wrong = ValueError("wrong")
    with pytest.raises(ValueError, match="wrong"):
        await database.glance(failing_look(wrong))
    assert await database.glance(threads) is threading.current_thread()


def failing_look(error: Exception) -> Work[None]:
    def work(db: sqlite3.Connection) -> None:
        db.execute("SELECT * FROM notes")
        raise error

    return work


async def test_a_glance_cannot_write(database: SQLiteDatabase, path: Path) -> None:
    with pytest.raises(CIError):
        await database.glance(noting("never"))
    assert notes(path) == []


async def test_the_version_changes_with_every_commit_and_only_then(
    database: SQLiteDatabase, path: Path
) -> None:
    first = await database.version()
    await database.read(threads)
    assert await database.version() == first
    await database.write(noting("ours"))
    second = await database.version()
    assert second != first
    other = connect(path)
    other.execute("INSERT INTO notes VALUES ('theirs')")
    other.close()
    assert await database.version() not in {first, second}


async def test_a_glance_that_could_not_end_shows_nothing_old_afterwards(database: SQLiteDatabase) -> None:
    loops = threading.current_thread()

    def never_ends(db: sqlite3.Connection) -> None:
        if threading.current_thread() is loops:
            db.set_authorizer(without_rollback)
        db.execute("SELECT * FROM notes").fetchall()
        raise ValueError

    with pytest.raises(ValueError, match=r"^$"):
        await database.glance(never_ends)
    before = await database.version()
    await database.write(noting("a"))
    assert await database.version() != before
    assert await database.glance(threads) is loops


def without_rollback(action: int, what: str | None, *_: str | None) -> int:
    forbidden = action == sqlite3.SQLITE_TRANSACTION and what == "ROLLBACK"
    return sqlite3.SQLITE_DENY if forbidden else sqlite3.SQLITE_OK


async def test_no_thread_outlives_close_where_glances_cannot_be_closed(path: Path) -> None:
    database = SQLiteDatabase(path)
    await asyncio.to_thread(
        lambda: asyncio.run(database.glance(threads))
    )  # theirs is that thread's from now on
    running = [await database.read(threads), await database.write(threads)]
    with pytest.raises(sqlite3.ProgrammingError):
        await database.close()
    for thread in running:
        await asyncio.to_thread(thread.join, 10)
    assert not any(thread.is_alive() for thread in running)

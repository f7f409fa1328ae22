"""Who waits is woken: by commits and by logs, of this process and of others, and by nothing else."""

import asyncio
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ci_common.stores import Subscription
from ci_persistence.change_hub import InotifyChangeHub
from ci_persistence.log_store import FileLogStore
from ci_persistence.migrations import migrate
from ci_persistence.sqlite_connection import connect
from tests.support.database import new_database

SOON = 5.0
NEVER = 0.05  # long enough for an event to arrive that should not
# A commit made by another process.
COMMIT = (
    "import sqlite3, sys; d = sqlite3.connect(sys.argv[1]); d.execute(sys.argv[2]); d.commit(); d.close()"
)
INSERT = "INSERT INTO controller (id, epoch, holder, heartbeat_at) VALUES (1, 1, 'h', 't')"
TOUCH = "UPDATE controller SET epoch = epoch + 1"


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return new_database(tmp_path)


@pytest.fixture
async def hub(database: Path, tmp_path: Path) -> AsyncIterator[InotifyChangeHub]:
    (tmp_path / "data").mkdir()
    hub = InotifyChangeHub(database, tmp_path / "data" / "logs")
    await hub.start()
    yield hub
    await hub.close()


@pytest.fixture
def logs(tmp_path: Path) -> FileLogStore:
    return FileLogStore(tmp_path / "data" / "logs")


async def settle(subscription: Subscription) -> None:
    """Nothing that happened so far will wake the subscription any more."""
    while await subscription.wait(NEVER):
        pass


async def test_a_commit_of_another_process_wakes(hub: InotifyChangeHub, database: Path) -> None:
    with hub.database() as changes:
        assert not await changes.wait(NEVER)
        await asyncio.to_thread(
            subprocess.run, [sys.executable, "-c", COMMIT, str(database), INSERT], check=True
        )
        assert await changes.wait(SOON)


async def test_a_commit_is_visible_to_whom_it_wakes(hub: InotifyChangeHub, database: Path) -> None:
    # The wake-up comes with the commit, not with the write before its fsync; nothing else comes after it.
    writer, reader = connect(database), connect(database)
    writer.execute(INSERT)
    with hub.database() as changes:
        await settle(changes)
        for epoch in range(2, 40):
            await asyncio.to_thread(_commit_once, database)
            while reader.execute("SELECT epoch FROM controller").fetchone()[0] != epoch:
                assert await changes.wait(SOON)
    writer.close()
    reader.close()


def _commit_once(database: Path) -> None:
    db = connect(database)
    db.execute(TOUCH)
    db.close()


async def test_a_rolled_back_transaction_wakes_nobody(hub: InotifyChangeHub, database: Path) -> None:
    db = connect(database)
    with hub.database() as changes:
        await settle(changes)
        db.execute("BEGIN IMMEDIATE")
        db.execute(INSERT)
        db.execute("ROLLBACK")
        assert not await changes.wait(NEVER)
    db.close()


async def test_a_change_between_two_calls_is_not_missed(hub: InotifyChangeHub, database: Path) -> None:
    db = connect(database)
    with hub.database() as waiting, hub.database() as late:
        db.execute(INSERT)
        assert await waiting.wait(SOON)
        assert await late.wait(0)
        assert not await late.wait(0)
    db.close()


async def test_a_burst_of_commits_is_few_hints(hub: InotifyChangeHub, database: Path) -> None:
    db = connect(database)
    db.execute(INSERT)
    with hub.database() as changes:
        await settle(changes)
        commits = asyncio.create_task(asyncio.to_thread(_many_commits, database))
        hints = 0
        while not commits.done() and await changes.wait(SOON):
            hints += 1
        await commits
    db.close()
    assert 1 <= hints <= 150


def _insert(database: Path) -> None:
    db = connect(database)
    db.execute(INSERT)
    db.close()


def _many_commits(database: Path) -> None:
    db = connect(database)
    for _ in range(300):
        db.execute(TOUCH)
    db.close()


async def test_a_log_wakes_its_followers_only(hub: InotifyChangeHub, logs: FileLogStore) -> None:
    writer = logs.writer("job", 1)
    with hub.log("job") as mine, hub.log("other") as others, hub.database() as database:
        for subscription in (mine, others, database):
            await settle(subscription)
        writer.write(0, b"line\n")
        assert await mine.wait(SOON)
        assert not await others.wait(NEVER)
        assert not await database.wait(0)
    writer.close()


async def test_a_log_that_comes_later_wakes(hub: InotifyChangeHub, logs: FileLogStore) -> None:
    with hub.log("job") as changes:  # neither its directory nor that of all logs exists
        await settle(changes)
        writer = logs.writer("job", 1)
        assert await changes.wait(SOON)
        await settle(changes)
        writer.write(0, b"line\n")
        assert await changes.wait(SOON)
        writer.close()
        await settle(changes)
        second = logs.writer("job", 2)
        second.write(0, b"of the next attempt\n")
        assert await changes.wait(SOON)
        second.close()


async def test_followers_of_a_log_hear_of_commits_too(hub: InotifyChangeHub, database: Path) -> None:
    db = connect(database)
    with hub.log("job") as changes:
        db.execute(INSERT)
        assert await changes.wait(SOON)
    db.close()


async def test_the_last_follower_takes_the_watch_along(hub: InotifyChangeHub, logs: FileLogStore) -> None:
    writer = logs.writer("job", 1)
    with hub.log("job") as first:
        with hub.log("job"):
            pass
        await settle(first)
        writer.write(0, b"line\n")
        assert await first.wait(SOON)
    with hub.log("job") as again:
        await settle(again)
        writer.write(5, b"line\n")
        assert await again.wait(SOON)
    writer.close()


async def test_a_database_that_comes_later_wakes(tmp_path: Path) -> None:
    hub = InotifyChangeHub(tmp_path / "later.db", tmp_path / "logs")
    await hub.start()
    with hub.database() as changes:
        await asyncio.to_thread(migrate, tmp_path / "later.db")
        assert await changes.wait(SOON)
    await hub.close()


async def test_a_database_whose_folder_comes_later_wakes_who_asks_then(tmp_path: Path) -> None:
    path = tmp_path / "absent" / "ci.db"
    hub = InotifyChangeHub(path, tmp_path / "absent" / "data" / "logs")
    await hub.start()
    path.parent.mkdir()
    with hub.database() as changes:
        await asyncio.to_thread(migrate, path)
        assert await changes.wait(SOON)
    await hub.close()


async def test_a_restored_database_wakes_and_is_followed(hub: InotifyChangeHub, database: Path) -> None:
    (database.parent / "backup").mkdir()
    copy = new_database(database.parent / "backup")
    with hub.database() as changes:
        await settle(changes)
        copy.replace(database)
        assert await changes.wait(SOON)
        await settle(changes)
        db = sqlite3.connect(database)
        db.execute(INSERT)
        db.commit()
        assert await changes.wait(SOON)
        db.close()


async def test_without_a_watcher_subscriptions_time_out(tmp_path: Path) -> None:
    hub = InotifyChangeHub(tmp_path / "absent" / "ci.db", tmp_path / "logs")
    with hub.log("job") as changes:
        assert not await changes.wait(0.01)
    await hub.start()  # its directory does not exist
    with hub.database() as changes:
        assert not await changes.wait(0.01)
    await hub.close()
    await hub.close()


async def test_a_waiter_is_told_whether_only_a_log_changed(
    hub: InotifyChangeHub, database: Path, logs: FileLogStore
) -> None:
    writer = logs.writer("job", 1)
    await asyncio.to_thread(_insert, database)
    with hub.log("job") as changes:
        await settle(changes)
        writer.write(0, b"a line\n")
        assert await changes.wait(SOON)
        assert changes.only_log
        await asyncio.to_thread(_commit_once, database)
        assert await changes.wait(SOON)
        assert not changes.only_log
        with hub.log("job") as other:  # woken in the same moment, so that both have come
            changes.wake()
            writer.write(7, b"both\n")
            assert await other.wait(SOON)
        assert await changes.wait(SOON)
        assert not changes.only_log
    writer.close()


async def test_a_wait_may_be_shorter_or_longer_than_the_one_before(hub: InotifyChangeHub) -> None:
    with hub.log("job") as changes:
        given_up = asyncio.create_task(changes.wait(3600))
        await asyncio.sleep(0)
        given_up.cancel()
        await asyncio.wait([given_up])
        assert not await changes.wait(0.01)
        assert not await changes.wait(0.02)
        changes.wake()
        assert await changes.wait(3600)

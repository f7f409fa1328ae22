"""The repository contract over every database we have, and what is particular to SQLite."""

import asyncio
import re
import sqlite3
import threading
from collections.abc import AsyncIterator, Generator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest

from ci_common.errors import (
    CIError,
    DatabaseBusy,
    DatabaseCorrupt,
    SchemaMissing,
    StorageFull,
)
from ci_common.job_terms import JobStatus
from ci_common.models import JobFilter
from ci_common.repository import JobRepository
from ci_persistence import sql_control, sql_queue_stats, sql_repeats
from ci_persistence.postgres_repository import PostgresJobRepository
from ci_persistence.rows import from_text, to_text
from ci_persistence.sql_listing import listing_query
from ci_persistence.sqlite_connection import HAS_WAL_RESET_BUG, connect
from ci_persistence.sqlite_errors import translated
from ci_persistence.sqlite_repository import SQLiteJobRepository
from tests.support.database import new_database
from tests.support.postgres import drop_postgres, is_locked, new_postgres
from tests.support.repository_contract import RepositoryContract
from tests.support.repository_contract.story import START, Backend, Story, at, make_job, make_user


def open_sqlite(location: str) -> JobRepository:
    return SQLiteJobRepository(location)


def sqlite_is_locked(location: str) -> bool:
    db = connect(Path(location), busy_timeout_ms=0)
    try:
        db.execute("BEGIN IMMEDIATE")
    except sqlite3.OperationalError:
        return True
    finally:
        db.close()
    return False


def sqlite_backend(directory: Path) -> Backend:
    return Backend(open_sqlite, str(new_database(directory)), sqlite_is_locked)


def open_postgres(location: str) -> JobRepository:
    return PostgresJobRepository(location)


def postgres_backend() -> Backend:
    return Backend(open_postgres, new_postgres(), is_locked)


@contextmanager
def a_sqlite_backend(directory: Path) -> Generator[Backend]:
    yield sqlite_backend(directory)


@contextmanager
def a_postgres_backend(directory: Path) -> Generator[Backend]:
    backend = postgres_backend()
    yield backend
    drop_postgres(backend.location)


BACKENDS = {"sqlite": a_sqlite_backend, "postgresql": a_postgres_backend}


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Generator[Backend]:
    with BACKENDS[request.param](tmp_path) as backend:
        yield backend


class TestRepository(RepositoryContract):
    """Every database does what the contract says."""


# -- SQLite ----------------------------------------------------------------------------------------------


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return new_database(tmp_path)


@pytest.fixture
async def repository(path: Path) -> AsyncIterator[SQLiteJobRepository]:
    repository = SQLiteJobRepository(path)
    yield repository
    await repository.close()


async def test_nothing_is_created_before_the_controller_does_it(tmp_path: Path) -> None:
    path = tmp_path / "ci_jobs.db"
    server, controller = SQLiteJobRepository(path), SQLiteJobRepository(path)
    for call in (server.check(), server.get_user("x"), server.create_user(make_user())):
        with pytest.raises(SchemaMissing, match="start ci-controller"):
            await call
    assert not await asyncio.to_thread(path.exists)
    await controller.initialize()
    await server.check()
    await server.create_user(make_user())
    await server.close()
    await controller.close()


async def test_an_empty_file_is_not_a_schema(tmp_path: Path) -> None:
    path = tmp_path / "ci_jobs.db"
    await asyncio.to_thread(path.touch)
    repository = SQLiteJobRepository(path)
    with pytest.raises(SchemaMissing):
        await repository.check()
    await repository.initialize()
    await repository.check()
    await repository.close()


async def test_no_thread_outlives_close(path: Path) -> None:
    before = set(threading.enumerate())
    repository = SQLiteJobRepository(path)
    await repository.create_user(make_user())
    await repository.list_users()
    ours = [thread for thread in threading.enumerate() if thread not in before]
    assert len(ours) == 2
    await repository.close()
    for thread in ours:
        thread.join(5)
        assert not thread.is_alive()


async def test_close_waits_for_what_was_begun(repository: SQLiteJobRepository) -> None:
    writes = [asyncio.create_task(repository.create_user(make_user(str(n)))) for n in range(20)]
    await asyncio.sleep(0)
    await repository.close()
    await asyncio.gather(*writes)
    assert len(await repository.list_users()) == 20


async def test_a_failed_transaction_leaves_nothing(repository: SQLiteJobRepository, path: Path) -> None:
    story = Story(repository)
    await story.begin()
    first = await story.queue()
    db = connect(path)
    db.execute("CREATE TRIGGER no_claim BEFORE INSERT ON attempts BEGIN SELECT raise(ABORT, 'no'); END")
    db.close()
    with pytest.raises(CIError):
        await repository.claim_jobs(story.lease, 1, at(1))
    assert await story.job(first.id) == first
    assert await story.timeline(first.id) == ["submitted"]
    assert not sqlite_is_locked(str(path))


async def test_a_lock_held_elsewhere_is_waited_for(repository: SQLiteJobRepository, path: Path) -> None:
    other = connect(path)
    other.execute("BEGIN IMMEDIATE")
    write = asyncio.create_task(repository.create_user(make_user()))
    assert await repository.list_users() == []  # readers are not held up
    assert not write.done()
    other.execute("ROLLBACK")
    other.close()
    await write


async def test_the_write_ahead_log_shrinks_only_where_we_say(
    repository: SQLiteJobRepository, path: Path
) -> None:
    story = Story(repository)
    await story.begin()
    filler = "x" * 100_000
    for _ in range(60):
        await repository.create_job(make_job(story.user, archive_ref=filler))
    wal = path.with_name(path.name + "-wal")
    assert await asyncio.to_thread(_size, wal) > 4 * 1024 * 1024 or not HAS_WAL_RESET_BUG
    await repository.maintain()
    assert await asyncio.to_thread(_size, wal) == 0
    assert len((await repository.list_jobs(JobFilter())).jobs) == 60


def _size(path: Path) -> int:
    return path.stat().st_size


def test_connections_are_set_up_by_our_rules(path: Path) -> None:
    db = connect(path)
    pragmas = {
        name: db.execute(f"PRAGMA {name}").fetchone()[0]
        for name in ("journal_mode", "synchronous", "foreign_keys")
    }
    automatic = db.execute("PRAGMA wal_autocheckpoint").fetchone()[0]
    db.close()
    assert pragmas == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1}
    assert (automatic == 0) == HAS_WAL_RESET_BUG


Parameters = tuple[str, ...] | dict[str, str] | list[str | int]
FREQUENT: list[tuple[tuple[str, Parameters], str]] = [
    ((sql_control.COUNT_QUEUED, {"now": "", "unbelievable": "", "pool": ""}), "jobs_queued"),
    ((sql_control.OPEN_ATTEMPTS, {"agent": ""}), "attempts_open"),
    ((sql_control.EXPIRED, ("",)), "jobs_queued_since"),
    ((sql_control.OVERDUE, ("",)), "jobs_queue_deadline"),
    ((sql_repeats.DEAD_LETTERS, [100]), "jobs_dead"),
    ((sql_queue_stats.ENDED, ("",)), "jobs_by_end"),
    ((sql_queue_stats.MEASURED, ("",)), "jobs_by_end"),
    ((sql_queue_stats.DEPTHS, ()), "jobs_open_by_user"),
    ((sql_queue_stats.OLDEST, ()), "jobs_queued"),
    (listing_query(JobFilter()), "jobs_by_age"),
    (listing_query(JobFilter(limit=20, created_before=START)), "jobs_by_age"),
    (listing_query(JobFilter(user_id="u", limit=20)), "jobs_by_user"),
    (
        listing_query(JobFilter(user_id="u", statuses=frozenset({JobStatus.RUNNING, JobStatus.QUEUED}))),
        "jobs_by_user",
    ),
    (("SELECT * FROM api_keys WHERE key_hash = ?", ("",)), "sqlite_autoindex_api_keys"),
    (("SELECT * FROM users WHERE email_folded = ?", ("",)), "sqlite_autoindex_users"),
    (("SELECT * FROM jobs WHERE user_id = ? AND idempotency_key = ?", ("", "")), "sqlite_autoindex_jobs"),
    (("SELECT DISTINCT archive_ref FROM jobs", ()), "jobs_by_archive"),
]


@pytest.mark.parametrize(("query", "index"), FREQUENT)
def test_frequent_queries_use_an_index(query: tuple[str, Parameters], index: str, path: Path) -> None:
    db = connect(path)
    steps = [row["detail"] for row in db.execute("EXPLAIN QUERY PLAN " + query[0], query[1])]
    db.close()
    assert any(index in step for step in steps), steps
    assert not [step for step in steps if "TEMP B-TREE FOR ORDER BY" in step and index != "attempts_open"]
    assert not [
        step for step in steps if re.fullmatch(r"SCAN (?!found|in_pool)\w+", step)
    ]  # a count for each user


def test_errors_of_the_driver_become_ours(path: Path, tmp_path: Path) -> None:
    holder, db = connect(path), connect(path, busy_timeout_ms=0)
    holder.execute("BEGIN IMMEDIATE")
    with pytest.raises(DatabaseBusy) as busy, translated(path):
        db.execute("BEGIN IMMEDIATE")
    assert busy.value.retry_after
    holder.close()
    with pytest.raises(SchemaMissing), translated(path):
        db.execute("SELECT * FROM no_such_table")
    db.execute(f"PRAGMA max_page_count = {db.execute('PRAGMA page_count').fetchone()[0]}")
    with pytest.raises(StorageFull), translated(path):
        db.execute(
            "INSERT INTO controller (id, epoch, holder, heartbeat_at) VALUES (1, 1, ?, '')",
            ("x" * 1_000_000,),
        )
    db.close()
    garbage = tmp_path / "garbage.db"
    garbage.write_bytes(b"not a database" * 1000)
    with pytest.raises(DatabaseCorrupt, match="restore the latest backup"), translated(garbage):
        connect(garbage)


def test_every_error_of_the_driver_is_translated(path: Path) -> None:
    for kind in (sqlite3.Error, *sqlite3.Error.__subclasses__(), *sqlite3.DatabaseError.__subclasses__()):
        with pytest.raises(CIError), translated(path):
            raise kind("made up")


def test_text_order_of_timestamps_is_time_order() -> None:
    moments = [START + timedelta(microseconds=step) for step in (0, 1, 999_322, 10**6, 10**9, 10**12)]
    texts = [to_text(moment) for moment in moments]
    assert texts == sorted(texts)
    assert len({len(text) for text in texts}) == 1
    assert [from_text(text) for text in texts] == moments
    with pytest.raises(ValueError, match="no time zone"):
        from_text("2026-01-02T03:04:05")

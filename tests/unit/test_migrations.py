"""The schema: made once, by whoever comes first, and never by a program that does not know it."""

import asyncio
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ci_common.errors import DatabaseCorrupt, SchemaMissing, SchemaTooNew, Unavailable
from ci_persistence.migrations import available_migrations, current_version, migrate
from ci_persistence.sqlite_connection import connect
from ci_persistence.sqlite_repository import SQLiteJobRepository
from tests.support.database import new_database


def tables(path: Path) -> set[str]:
    db = connect(path)
    try:
        return {row["name"] for row in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    finally:
        db.close()


def instance_id(path: Path) -> str:
    db = connect(path)
    try:
        return db.execute("SELECT instance_id FROM installation").fetchone()[0]
    finally:
        db.close()


def set_version(path: Path, version: int) -> None:
    db = connect(path)
    db.execute("DELETE FROM schema_version")
    db.execute("INSERT INTO schema_version VALUES (?, 'then')", (version,))
    db.close()


def test_a_new_database_has_every_migration_and_an_identity(tmp_path: Path) -> None:
    path = tmp_path / "ci_jobs.db"
    migrate(path)
    db = connect(path)
    versions = [row["version"] for row in db.execute("SELECT version FROM schema_version ORDER BY version")]
    db.close()
    assert versions == list(available_migrations()) == list(range(1, current_version() + 1))
    assert len(instance_id(path)) == 36


def test_migrating_again_changes_nothing(tmp_path: Path) -> None:
    path = new_database(tmp_path)
    before = instance_id(path)
    migrate(path)
    assert instance_id(path) == before


def test_a_database_of_the_first_release_keeps_its_jobs(tmp_path: Path) -> None:
    path = tmp_path / "ci_jobs.db"
    db = sqlite3.connect(path)
    db.executescript(available_migrations()[1])
    db.execute("CREATE TABLE schema_version (version INTEGER PRIMARY KEY, applied_at TEXT NOT NULL) STRICT")
    db.execute("INSERT INTO schema_version VALUES (1, 'then')")
    db.execute("INSERT INTO users VALUES ('u', 'Ada', 'a@b', 'a@b', 't', 1, 'user')")
    for job, truncated in (("whole", 0), ("lossy", 1)):
        db.execute(
            "INSERT INTO jobs (id, user_id, created_at, archive_ref, status, options, attempt, success, end_time, "
            "queued_since) VALUES (?, 'u', 't', 'r', 'completed', '{}', 1, 1, 't', 't')",
            (job,),
        )
        db.execute(
            "INSERT INTO attempts (job_id, number, holder, token, claimed_at, ended_at, log_truncated) "
            "VALUES (?, 1, 'h', 't', 't', 't', ?)",
            (job, truncated),
        )
    db.commit()
    db.close()
    migrate(path)
    db = connect(path)
    found = {row["id"]: row["log_truncated"] for row in db.execute("SELECT id, log_truncated FROM jobs")}
    db.close()
    assert found == {"whole": 0, "lossy": 1}


def test_several_may_migrate_at_once(tmp_path: Path) -> None:
    path = tmp_path / "ci_jobs.db"
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(migrate, [path] * 6))
    assert "jobs" in tables(path)


def test_the_file_is_shared_with_the_group_and_nobody_else(tmp_path: Path) -> None:
    path = tmp_path / "ci_jobs.db"
    migrate(path)
    assert path.stat().st_mode & 0o777 == 0o660


def test_an_interrupted_migration_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "ci_jobs.db"
    db = sqlite3.connect(path)
    db.execute("CREATE TABLE job_events (in_the_way)")  # the last table of the first migration
    db.close()
    with pytest.raises(Unavailable, match="already exists"):
        migrate(path)
    assert tables(path) == {"job_events"}


async def test_an_older_schema_is_missing_until_it_is_migrated(tmp_path: Path) -> None:
    path = new_database(tmp_path)
    await asyncio.to_thread(set_version, path, 0)
    repository = SQLiteJobRepository(path)
    with pytest.raises(SchemaMissing):
        await repository.check()
    await asyncio.to_thread(set_version, path, current_version())
    await repository.check()
    await repository.close()


async def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    path = new_database(tmp_path)
    await asyncio.to_thread(set_version, path, current_version() + 1)
    repository = SQLiteJobRepository(path)
    for call in (repository.initialize(), repository.check(), repository.list_users()):
        with pytest.raises(SchemaTooNew, match="install the newer release"):
            await call
    await repository.close()


async def test_an_open_server_notices_a_newer_schema(tmp_path: Path) -> None:
    path = new_database(tmp_path)
    repository = SQLiteJobRepository(path)
    await repository.check()
    await asyncio.to_thread(set_version, path, current_version() + 1)
    with pytest.raises(SchemaTooNew):
        await repository.check()
    await repository.close()


@pytest.mark.parametrize("damage", ["header", "pages"])
def test_a_damaged_database_is_refused_with_instructions(damage: str, tmp_path: Path) -> None:
    path = new_database(tmp_path)
    data = bytearray(path.read_bytes())
    if damage == "header":
        data[:16] = b"something else!!"
    else:
        data[4096 * 3 : 4096 * 9] = b"\xff" * (4096 * 6)
    path.write_bytes(data)
    with pytest.raises(DatabaseCorrupt, match="restore the latest backup"):
        migrate(path)


def test_a_database_whose_directory_is_missing_is_an_error_with_a_name(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="absent"):
        migrate(tmp_path / "absent" / "ci_jobs.db")

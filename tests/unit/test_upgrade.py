"""Databases that people have: upgraded whole or not at all, refused by older programs, refused when damaged.

The dumps in tests/fixtures/databases were made by scripts/dump_database.py when their schema was released.
"""

import asyncio
import contextlib
import random
import re
import sqlite3
import subprocess
import sys
from datetime import date
from pathlib import Path

import httpx
import pytest

from ci_common.errors import CIError, DatabaseCorrupt
from ci_common.job_terms import JobStatus, Reason
from ci_common.models import DailyTotal, Idempotency, JobFilter, LogSeal
from ci_common.verdict import verdict
from ci_persistence.migrations import available_migrations, current_version, migrate
from ci_persistence.sqlite_repository import SQLiteJobRepository
from scripts.dump_database import database_of
from tests.support.database import new_database
from tests.support.installation import Installation
from tests.support.repository_contract.story import at, make_job
from tests.support.server import Account, Site
from tests.support.soak import SOAKING

DUMPS = {
    int(path.stem): path for path in (Path(__file__).parents[1] / "fixtures" / "databases").glob("*.sql")
}
RELEASED = {1, 2}
SCHEMAS = list(available_migrations())


def built(schema: int, directory: Path) -> Path:
    """The stored database of that schema is a file again; returns its path."""
    path = directory / "ci_jobs.db"
    db = sqlite3.connect(path)
    if schema in DUMPS:
        db.executescript(DUMPS[schema].read_text(encoding="utf-8"))
    else:  # not released yet, so nobody has it: made anew each time
        with contextlib.closing(database_of(schema)) as fresh:
            fresh.backup(db)
    db.execute("PRAGMA journal_mode = WAL")
    db.close()
    return path


def schema_of(path: Path) -> dict[str, str]:
    """Return the definition of every table and index, free of layout and comments."""
    db = sqlite3.connect(path)
    try:
        rows = db.execute(
            "SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL AND name NOT LIKE 'sqlite_%'"
        )
        return {name: " ".join(re.sub(r"--[^\n]*", "", sql).split()) for name, sql in rows}
    finally:
        db.close()


def version_of(path: Path) -> int:
    db = sqlite3.connect(path)
    try:
        return int(db.execute("SELECT max(version) FROM schema_version").fetchone()[0])
    finally:
        db.close()


def test_every_released_schema_is_stored() -> None:
    assert set(DUMPS) >= RELEASED
    assert max(DUMPS) <= current_version()


@pytest.mark.parametrize("schema", SCHEMAS)
def test_an_upgraded_database_has_the_schema_of_a_new_one(schema: int, tmp_path: Path) -> None:
    path = built(schema, tmp_path)
    migrate(path)
    fresh = tmp_path / "fresh"
    fresh.mkdir()
    assert schema_of(path) == schema_of(new_database(fresh))
    db = sqlite3.connect(path)
    assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert db.execute("PRAGMA foreign_key_check").fetchall() == []
    assert db.execute("PRAGMA auto_vacuum").fetchone() == (2,)
    db.close()


@pytest.mark.parametrize("schema", SCHEMAS)
async def test_an_upgraded_database_does_all_that_a_new_one_does(schema: int, tmp_path: Path) -> None:
    repository = SQLiteJobRepository(await asyncio.to_thread(built, schema, tmp_path))
    try:
        await repository.initialize()
        ada = await repository.get_user_by_email("ADA@example.org")
        assert ada is not None
        jobs = {job.id: job for job in (await repository.list_jobs(JobFilter())).jobs}
        assert len(jobs) == 7
        assert jobs["j-passed"].success is True
        assert jobs["j-passed"].log_truncated in (False, None)
        assert (jobs["j-dead"].status, jobs["j-dead"].reason) == (JobStatus.DEAD_LETTERED, Reason.INFRA)
        for job in jobs.values():
            assert [event.type for event in await repository.get_events(job.id)] == ["submitted", job.status]
        assert [key.name for key in await repository.list_api_keys(ada.id)] == ["laptop"]
        again = await repository.create_job(make_job(ada), Idempotency("key-j-passed", "fp"))
        assert again.id == "j-passed"

        lease = await repository.take_over("new", at(0))
        assert lease.epoch == 8
        [held] = await repository.open_attempts()
        assert await repository.finish_attempt(held.fence, verdict(None), LogSeal(1, "e" * 64), at(1))
        [claimed] = await repository.claim_jobs(lease, 9, at(2))
        assert (claimed.job.id, claimed.fence.attempt) == ("j-queued", 1)
        assert await repository.mark_pruned(lease, archives=["j-dead"], logs=["j-dead"], now=at(3))
        assert await repository.remove_jobs(lease, ["j-dead"]) == 1
    finally:
        await repository.close()


@pytest.mark.parametrize("schema", sorted(RELEASED))
async def test_jobs_that_ended_before_totals_were_kept_are_counted(schema: int, tmp_path: Path) -> None:
    repository = SQLiteJobRepository(await asyncio.to_thread(built, schema, tmp_path))
    await repository.initialize()
    await repository.initialize()
    expected = {None: 1, Reason.TESTS_FAILED: 1, Reason.TIMEOUT: 1, Reason.CANCELLED: 1, Reason.INFRA: 1}
    totals = await repository.daily_totals()
    await repository.close()
    assert set(totals) == {DailyTotal(date(2026, 1, 2), "u-ada", why, n) for why, n in expected.items()}


# Dies at the n-th statement in a child of its own, for n = 1, 2 … until a migration gets through.
KILL_AT_EVERY_STATEMENT = """
import os, shutil, sys
from pathlib import Path
from ci_persistence.migrations import migrate

source, target = Path(sys.argv[1]), Path(sys.argv[2])
for point in ("during_migration", "after_migration"):
    number, died = 0, True
    while died:
        number += 1
        copy = target / f"{point}-{number}"
        copy.mkdir()
        shutil.copy(source, copy / "ci_jobs.db")
        child = os.fork()
        if child == 0:
            os.environ["CI_CRASH_AT"] = f"{point}:{number}"
            migrate(copy / "ci_jobs.db")
            os._exit(0)
        died = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 137
    print(point, number - 1)
"""


@pytest.mark.parametrize("schema", [0, *sorted(RELEASED)] if SOAKING else [max(RELEASED)])
def test_a_migration_killed_at_any_statement_left_the_old_schema_or_the_new_one(
    schema: int, tmp_path: Path
) -> None:
    """Row 52."""
    if schema:
        source = built(schema, tmp_path)
    else:
        source = tmp_path / "ci_jobs.db"
        source.touch()
    db = sqlite3.connect(source)
    db.execute("PRAGMA journal_mode = DELETE")  # one file to copy
    db.close()
    old = schema_of(source)
    copies = tmp_path / "copies"
    copies.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", KILL_AT_EVERY_STATEMENT, str(source), str(copies)],
        capture_output=True,
        text=True,
        check=True,
    )
    statements = int(done.stdout.split()[1])
    assert statements >= 10, done.stdout
    assert done.stdout.split()[3] == "1"
    fresh = tmp_path / "fresh"
    fresh.mkdir()
    new = schema_of(new_database(fresh))
    for number in range(1, statements + 1):
        path = copies / f"during_migration-{number}" / "ci_jobs.db"
        assert schema_of(path) == old, number
        migrate(path)
        assert schema_of(path) == new
    assert schema_of(copies / "after_migration-1" / "ci_jobs.db") == new
    assert version_of(copies / "after_migration-1" / "ci_jobs.db") == current_version()


def test_a_migration_takes_nothing_away_that_the_release_before_reads() -> None:
    """Expand first, contract later: what goes is unused by then, and goes in a release of its own."""
    forbidden = re.compile(r"\b(DROP\s+(TABLE|COLUMN)|RENAME)\b", re.IGNORECASE)
    assert [number for number, text in available_migrations().items() if forbidden.search(text)] == []


async def test_a_server_of_an_older_release_serves_nothing_from_a_newer_schema(
    site: Site, ada: Account, http: httpx.AsyncClient
) -> None:
    """Row 52: two versions at once."""
    assert (await http.get("/jobs")).status_code == 200
    db = sqlite3.connect(site.settings.db_path)
    db.execute("INSERT INTO schema_version VALUES (?, 'then')", (current_version() + 1,))
    db.commit()
    db.close()
    assert (await http.get("/ready")).status_code == 503
    assert (await http.get("/health")).status_code == 200


# -- damage ----------------------------------------------------------------------------------------------


def test_a_flipped_bit_anywhere_is_refused_with_instructions_or_does_no_harm(tmp_path: Path) -> None:
    """Row 49: whatever SQLite's check sees is refused; the rest opens, and nothing ends in a traceback."""
    whole = built(2, tmp_path)
    migrate(whole)
    db = sqlite3.connect(whole)
    db.execute("PRAGMA journal_mode = DELETE")
    db.close()
    sound = whole.read_bytes()
    choice = random.Random(49)
    said: list[CIError] = []
    for offset in [*range(0, 100, 3), *(choice.randrange(len(sound)) for _ in range(150))]:
        data = bytearray(sound)
        data[offset] ^= 1 << choice.randrange(8)
        damaged = tmp_path / "damaged.db"
        for leftover in tmp_path.glob("damaged.db*"):
            leftover.unlink()
        damaged.write_bytes(data)
        try:
            migrate(damaged)
        except CIError as error:
            said.append(error)
    # The others are of a version or a mode of the file that cannot be used.
    corrupt = [error for error in said if isinstance(error, DatabaseCorrupt)]
    assert len(corrupt) >= 10
    assert all("ci-admin restore" in error.detail for error in corrupt)


@pytest.mark.parametrize("page", range(2, 30, 3))
def test_a_page_of_garbage_is_refused(page: int, tmp_path: Path) -> None:
    path = built(2, tmp_path)
    migrate(path)
    db = sqlite3.connect(path)
    db.execute("PRAGMA journal_mode = DELETE")
    db.close()
    data = bytearray(path.read_bytes())
    data[4096 * page : 4096 * (page + 1)] = random.Random(page).randbytes(4096)
    path.write_bytes(data)
    with pytest.raises(DatabaseCorrupt, match="ci-admin restore"):
        migrate(path)


def test_the_daemons_say_in_one_sentence_what_to_do(tmp_path: Path) -> None:
    system = Installation(tmp_path, "damaged-")
    path = new_database(tmp_path)
    data = bytearray(path.read_bytes())
    data[4096 * 2 : 4096 * 9] = b"\xff" * (4096 * 7)
    path.write_bytes(data)
    controller = system.start_controller()
    assert controller.process.wait(timeout=60) == 75
    assert "ci-admin restore" in controller.tail()
    assert "Traceback" not in controller.tail()
    listed = system.admin("user", "list")
    assert (listed.code, "Traceback" in listed.err) == (75, False)
    assert path.read_bytes() == data

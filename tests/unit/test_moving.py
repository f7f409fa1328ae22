"""`ci-admin migrate`: from a file to a server, all of it or nothing."""

import json
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import psycopg
import pytest

from ci_common.verdict import verdict
from ci_persistence.moving import TABLES
from ci_persistence.postgres_connection import connect
from ci_persistence.postgres_repository import PostgresJobRepository
from ci_persistence.sqlite_repository import SQLiteJobRepository
from tests.support.admin import Admin, Said, admin
from tests.support.database import new_database
from tests.support.postgres_fixtures import url
from tests.support.repository_contract.blobs import ONE, a_pack
from tests.support.repository_contract.story import SEAL, Story, at, make_job, make_key, make_user

__all__ = ["admin", "url"]


async def used(directory: Path) -> Path:
    """A database file in which much has happened, and nobody is at work any more; returns its path."""
    path = new_database(directory)
    repository = SQLiteJobRepository(path)
    story = Story(repository)
    await story.begin()
    await repository.create_api_key(make_key(story.user))
    await repository.add_pack(story.user.id, a_pack("pack", ONE), at(0))
    await story.queue()
    run = await story.run("c1", 2)
    await repository.finish_attempt(run.fence, verdict(None), SEAL, at(3))
    await repository.create_job(make_job(story.user, at(4)), packs=["pack"])
    await repository.pause_queue("a rest", at(5))
    await repository.close()
    return path


def rows_of_file(path: Path) -> dict[str, list[tuple[object, ...]]]:
    with closing(sqlite3.connect(path)) as db:
        return {table: sorted(db.execute(f"SELECT * FROM {table}"), key=repr) for table in TABLES}


def rows_of_server(url: str, like: Path) -> dict[str, list[tuple[object, ...]]]:
    """Return the rows with their columns in the order that the file has them in."""
    with closing(sqlite3.connect(like)) as db:
        columns = {
            table: ", ".join(f'"{row[1]}"' for row in db.execute(f"PRAGMA table_info({table})"))
            for table in TABLES
        }
    with psycopg.connect(url) as server:
        found = {
            table: server.execute(f"SELECT {columns[table]} FROM {table}".encode()).fetchall()
            for table in TABLES
        }
    return {table: sorted(map(tuple, rows), key=repr) for table, rows in found.items()}


async def test_every_row_is_on_the_server_and_nothing_is_claimed_in_the_file(
    admin: Admin, tmp_path: Path, url: str
) -> None:
    path = await used(tmp_path)
    before = rows_of_file(path)
    done = admin("migrate", "--to", url, "--json")
    assert done.code == 0, done.err
    told = json.loads(done.out)
    assert told["rows"] == {table: len(rows) for table, rows in before.items()}
    assert told["data_dir"] == f"{path}.data"
    after = rows_of_server(url, path)
    [move] = [row for row in after.pop("audit_events") if row not in before["audit_events"]]
    assert "database.move" in move
    assert after == {table: rows for table, rows in before.items() if table != "audit_events"}
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("SELECT reason FROM queue_pause").fetchall() == [("a rest",)], (
            "it was paused before"
        )


async def test_what_is_moved_goes_on_there(admin: Admin, tmp_path: Path, url: str) -> None:
    await used(tmp_path)
    assert admin("migrate", "--to", url).code == 0
    moved = PostgresJobRepository(url)
    try:
        assert await moved.resume_queue(at(6))
        lease = await moved.take_over("successor", at(7))
        assert lease.epoch > 1, "fences of the file's controllers stay stale"
        [attempt] = await moved.claim_jobs(lease, 5, at(8))
        await moved.create_user(make_user("bob"))
        await moved.add_pack(attempt.job.user_id, a_pack("later", b"later"), at(9))
        assert {pack.name for pack in await moved.packs()} == {"pack", "later"}
    finally:
        await moved.close()


async def test_the_file_is_paused_once_it_was_moved(admin: Admin, tmp_path: Path, url: str) -> None:
    path = new_database(tmp_path)
    assert admin("migrate", "--to", url).code == 0
    with closing(sqlite3.connect(path)) as db:
        [(reason,)] = db.execute("SELECT reason FROM queue_pause")
    assert reason.startswith("moved to postgresql://")


async def test_a_database_in_use_is_not_moved_into_and_nothing_changes(
    admin: Admin, tmp_path: Path, url: str
) -> None:
    path = await used(tmp_path)
    assert admin("migrate", "--to", url).code == 0
    there, here = rows_of_server(url, path), rows_of_file(path)
    again = admin("migrate", "--to", url)
    assert (again.code, "holds an installation already" in again.err) == (65, True)
    assert (rows_of_server(url, path), rows_of_file(path)) == (there, here)


async def test_who_has_the_file_open_is_to_stop_first(admin: Admin, tmp_path: Path, url: str) -> None:
    path = await used(tmp_path)
    refused = _with_another_process_inside(path, lambda: admin("migrate", "--to", url))
    assert refused.code == 75
    assert "stop controller, servers" in refused.err
    with closing(connect(url)) as db:
        assert db.execute("SELECT count(*) FROM users").fetchone()[0] == 0


def _with_another_process_inside(path: Path, command: Callable[[], Said]) -> Said:
    """Return what is said while a process other than this one has the file open."""
    inside = "import sqlite3, sys; db = sqlite3.connect(sys.argv[1]); db.execute('SELECT 1 FROM users').fetchall(); "
    inside += "print(flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", inside, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout
        other.stdout.readline()
        said = command()
        other.communicate()
    return said


def test_every_table_is_moved(tmp_path: Path) -> None:
    with closing(sqlite3.connect(new_database(tmp_path))) as db:
        names = db.execute("SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite_%'")
        assert {name for (name,) in names} == {*TABLES, "schema_version"}


@pytest.mark.parametrize(
    ("source", "target", "said"),
    [
        ("sqlite:///absent.db", "postgresql://db/ci", "no database"),
        ("postgresql://db/ci", "postgresql://db/ci", "--from names a file"),
        ("sqlite:///{path}", "sqlite:///other.db", "--to names a server"),
        ("sqlite:///{path}", "mysql://db/ci", "begins with postgresql://"),
    ],
)
def test_what_cannot_be_moved_is_said(
    source: str, target: str, said: str, admin: Admin, tmp_path: Path
) -> None:
    done = admin("migrate", "--from", source.format(path=new_database(tmp_path)), "--to", target)
    assert done.code
    assert said in done.err

"""PostgreSQL goes away at the n-th statement, for every n of every write: all of it stands or nothing, and once."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import psycopg
import pytest
from psycopg.rows import dict_row

from ci_common.errors import CIError, OutcomeUnknown
from ci_persistence import postgres_database
from ci_persistence.postgres_connection import TELL_AND_COMMIT, Connection
from ci_persistence.postgres_repository import PostgresJobRepository
from tests.support.postgres import drop_postgres, is_locked, new_postgres
from tests.support.soak import SOAKING
from tests.unit.test_failing_statements import WRITES, Cast, cast_in

_RANDOM = {"token", "instance_id", "applied_at"}
_COUNTED = {("packs", "id"), ("blobs", "pack_id"), ("audit_events", "id")}  # numbers are not given twice
_real = Connection.execute
# Those that a job cannot do without; the others have the same transactions around them, and their turn in the soak.
# At the n-th statement of SQLite all fail in every run (`test_failing_statements.py`).
_EVERYDAY = (
    *("create_job", "request_cancel", "claim_jobs", "claim_for_agent", "finish_attempt", "release_attempt"),
)


class Loss:
    """The connection is lost when its n-th statement from now on is about to be sent."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.left = 0  # statements until then; 0: never
        self.statements: list[object] = []

    def execute(self, db: Connection, query: Any, params: Any, **options: Any) -> Any:
        self.statements.append(query)
        if self.left:
            self.left -= 1
            if not self.left:
                self._end(db)
        return _real(db, query, params, **options)

    def _end(self, db: Connection) -> None:
        with psycopg.connect(self._url, autocommit=True) as other:
            other.execute("SELECT pg_terminate_backend(%s, 10000)", (db.info.backend_pid,))


@asynccontextmanager
async def a_cast(write: str) -> AsyncGenerator[tuple[Cast, str]]:
    """A database in which the write of that name has something to do, and its URL."""
    url = new_postgres()
    repository = PostgresJobRepository(url)
    try:
        yield await cast_in(repository, write), url
    finally:
        await repository.close()
        drop_postgres(url)


def dump(url: str) -> dict[str, list[str]]:
    """Return everything in the database but what is random, or counted whether it is committed or not."""
    with psycopg.connect(url) as connection, connection.cursor(row_factory=dict_row) as db:
        tables = db.execute("SELECT tablename AS name FROM pg_tables WHERE schemaname = 'public'").fetchall()
        return {
            str(table["name"]): sorted(
                str(
                    {
                        name: row[name]
                        for name in row
                        if name not in _RANDOM and (table["name"], name) not in _COUNTED
                    }
                )
                for row in db.execute(f"SELECT * FROM {table['name']}".encode()).fetchall()
            )
            for table in tables
        }


@pytest.mark.parametrize("name", WRITES if SOAKING else _EVERYDAY)
async def test_a_write_whose_connection_is_lost_did_nothing_and_is_done_by_the_next_one(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with a_cast(name) as (cast, url):
        await WRITES[name](cast)
        after = dump(url)
    async with a_cast(name) as (cast, url):
        loss, before = Loss(url), dump(url)

        def execute(db: Connection, query: Any, params: Any = None, **options: Any) -> Any:
            return loss.execute(db, query, params, **options)

        monkeypatch.setattr(Connection, "execute", execute)
        with monkeypatch.context() as impatient:
            impatient.setattr(postgres_database, "_PATIENCE", -1.0)
            count = await _lost_at_every_statement(name, cast, loss)
        assert dump(url) == before
        assert not is_locked(url)
        loss.left = count - 1  # the last one before COMMIT: all was done, and is done again
        await WRITES[name](cast)
        assert loss.left == 0
        assert dump(url) == after


async def _lost_at_every_statement(name: str, cast: Cast, loss: Loss) -> int:
    """Return how many statements the write has; the last one is COMMIT, after which nobody knows."""
    for nth in range(1, 1000):
        await cast.repository.list_users()  # a connection is there, and its set-up counts for nothing
        loss.statements.clear()
        loss.left = nth
        with pytest.raises(CIError) as lost:
            await WRITES[name](cast)
        if loss.statements[-1] == TELL_AND_COMMIT:
            assert type(lost.value) is OutcomeUnknown
            return nth
        assert not isinstance(lost.value, OutcomeUnknown)
    raise AssertionError("no COMMIT")

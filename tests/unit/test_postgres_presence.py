"""Who has a session with PostgreSQL: seen by others as long as the process lives, and as soon as it does not."""

import asyncio
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable
from contextlib import suppress

import psycopg
import pytest

from ci_common.errors import Unavailable
from ci_persistence.postgres_presence import PostgresPresence
from ci_persistence.postgres_repository import PostgresJobRepository
from tests.support import eventually as waiting
from tests.support.controlled import eventually
from tests.support.postgres import cluster
from tests.support.postgres_fixtures import repository, url

__all__ = ["repository", "url"]

# Leads under epoch 3 until it is told to end.
LEADING = """
import asyncio, sys
from ci_persistence.postgres_presence import PostgresPresence

async def main():
    print(await PostgresPresence(sys.argv[1]).lead(3), flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


@pytest.fixture
async def presence(url: str) -> AsyncIterator[PostgresPresence]:
    one = PostgresPresence(url)
    yield one
    await one.close()


@pytest.fixture
async def other(url: str) -> AsyncIterator[PostgresPresence]:
    one = PostgresPresence(url)
    yield one
    await one.close()


def cut_sessions(url: str) -> None:
    """Every session of a controller has ended, as after a fault of the network."""
    with psycopg.connect(url, autocommit=True) as db:
        db.execute(
            b"SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            b"WHERE datname = current_database() AND application_name = 'ci-controller'"
        )


async def test_a_leader_is_seen_under_its_epoch_until_it_goes(
    presence: PostgresPresence, other: PostgresPresence
) -> None:
    assert not await other.is_led()
    assert await presence.lead(3)
    assert [await other.is_led(epoch) for epoch in (None, 2, 3, 4)] == [True, False, True, False]
    assert not await other.lead(3), "there is one"
    await presence.close()
    await eventually(lambda: _is(other.lead(3)), seconds=60)


async def _is(answer: Awaitable[bool]) -> bool:
    return await answer


async def test_what_is_left_of_an_earlier_leader_is_in_nobodys_way(
    presence: PostgresPresence, other: PostgresPresence
) -> None:
    assert await presence.lead(3)
    assert await other.lead(4)


async def test_who_waits_is_counted(
    presence: PostgresPresence, other: PostgresPresence, repository: PostgresJobRepository
) -> None:
    assert await repository.count_standing_by() == 0
    for one in (presence, other, other):
        await one.stand_by()
    assert await repository.count_standing_by() == 2
    assert await presence.lead(3)
    await eventually(lambda: _is_one(repository), seconds=60)


async def _is_one(repository: PostgresJobRepository) -> bool:
    return await repository.count_standing_by() == 1


async def test_a_session_that_was_cut_is_made_anew(
    url: str, presence: PostgresPresence, other: PostgresPresence
) -> None:
    assert await presence.lead(3)
    await other.stand_by()
    await asyncio.to_thread(cut_sessions, url)
    with pytest.raises(Unavailable):  # who waits hears of it
        await other.is_led(3)
    await eventually(lambda: other.is_led(3), seconds=60)


async def test_it_comes_back_with_the_database(presence: PostgresPresence, other: PostgresPresence) -> None:
    assert await presence.lead(3)
    cluster().stop(hard=True)
    with pytest.raises(Unavailable):
        await other.is_led(3)
    cluster().start()  # in this thread, with which it ends
    await eventually(lambda: other.is_led(3), seconds=60)


async def test_a_process_that_is_killed_is_missed_at_once_and_one_that_is_stopped_is_not(
    url: str, other: PostgresPresence
) -> None:
    command = (sys.executable, "-c", LEADING, url)
    process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert await process.stdout.readline() == b"True\n"
        process.send_signal(signal.SIGSTOP)
        assert await other.is_led(3)
        process.kill()
        await eventually(lambda: _is_not_led(other), seconds=60)
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def _is_not_led(presence: PostgresPresence) -> bool:
    return not await presence.is_led(3)


async def test_nothing_is_open_after_close(url: str, presence: PostgresPresence) -> None:
    assert await presence.lead(3)
    await presence.close()
    await presence.stand_by()
    await presence.close()

    def sessions() -> int:
        query = (
            b"SELECT count(*) FROM pg_stat_activity WHERE application_name = 'ci-controller' AND datname = "
        )
        with psycopg.connect(url) as db:
            row = db.execute(query + b"current_database()").fetchone()
        return int(row[0]) if row else -1

    await asyncio.to_thread(waiting.eventually, lambda: sessions() == 0, what="the end of the sessions")

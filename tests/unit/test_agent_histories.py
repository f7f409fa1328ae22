"""Histories of agents on every database: whatever goes on at once, a job has one lease and one end."""

import asyncio
import os
import secrets
from collections.abc import AsyncGenerator, Callable, Generator, Iterable
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest

from ci_common.repository import JobRepository
from tests.support.agent_histories import History
from tests.support.agent_history_checks import violations
from tests.support.agent_schedules import Schedule
from tests.support.in_memory import home
from tests.support.soak import SOAKING
from tests.unit.test_repository import BACKENDS

__all__ = ["home"]

ONE = os.environ.get("CI_SCHEDULE_SEED")
SCHEDULES = int(os.environ.get("CI_SCHEDULES", "2000" if SOAKING else "4"))
STEPS = 90
_OF_ONE_DATABASE = 20  # schedules: all of one is over before the next begins
_CLIENTS = 3


@asynccontextmanager
async def clients(
    open_: Callable[[str], JobRepository], location: str
) -> AsyncGenerator[list[JobRepository]]:
    """Several processes' ways to one database."""
    opened = [open_(location) for _ in range(_CLIENTS)]
    try:
        yield opened
    finally:
        await asyncio.gather(*(one.close() for one in opened))


async def told(seed: int, repositories: list[JobRepository]) -> History:
    """Return the history of the schedule of that seed; every third is of actors at the same time."""
    schedule = Schedule(seed, repositories)
    await schedule.begin()
    if seed % 3:
        await schedule.live(STEPS)
    else:
        await schedule.live_at_once(STEPS // 5)
    return await schedule.recover()


@contextmanager
def named(seed: int, database: str) -> Generator[None]:
    """What fails in here says how to see it again."""
    try:
        yield
    except BaseException as error:
        again = (
            f"CI_SCHEDULE_SEED={seed} .venv/bin/pytest -n 0 tests/unit/test_agent_histories.py -k {database}"
        )
        error.add_note(f"seed {seed}\nagain: {again}")
        raise


def seeds() -> Iterable[int]:
    if ONE:
        return [int(ONE)]
    first = secrets.randbelow(10**9) if SOAKING else 0
    return range(first, first + SCHEDULES)


@pytest.mark.timeout(4 * 3600 if SOAKING else 120)
@pytest.mark.parametrize("database", BACKENDS)
async def test_no_history_shows_two_leases_or_two_ends(database: str, home: Path) -> None:
    left = list(seeds())
    while left:
        now, left = left[:_OF_ONE_DATABASE], left[_OF_ONE_DATABASE:]
        with BACKENDS[database](home) as backend:
            async with clients(backend.open, backend.location) as opened:
                for seed in now:
                    with named(seed, database):
                        assert violations(await told(seed, opened)) == []

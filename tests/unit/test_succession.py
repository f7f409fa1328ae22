"""Taking turns as leader over PostgreSQL: who may wait, who wins, and what a waiter bears meanwhile."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path

import psycopg
import pytest
from structlog.testing import capture_logs

from ci_common.clock import Clock, SystemClock, utcnow
from ci_common.errors import RunnerElsewhere, Unavailable
from ci_controller.succession import Succession
from ci_persistence import postgres_migrations
from ci_persistence.migrations import available_migrations
from ci_persistence.postgres_change_hub import PostgresChangeHub
from ci_persistence.postgres_presence import PostgresPresence
from ci_persistence.postgres_repository import PostgresJobRepository
from tests.support.controlled import eventually
from tests.support.postgres_fixtures import repository, story, url
from tests.support.repository_contract.story import Story
from tests.unit.test_postgres_presence import cut_sessions

__all__ = ["repository", "story", "url"]

LONG = 60.0  # seconds


class QuickClock(SystemClock):
    """Each look is four seconds after the one before: a waiter's patience takes a few looks."""

    def __init__(self) -> None:
        self._looks = 0

    def monotonic(self) -> float:
        self._looks += 1
        return 4.0 * self._looks


class Candidate:
    """What one controller needs to come to lead."""

    def __init__(self, url: str, home: Path, runs_on: str | None = None, clock: Clock | None = None) -> None:
        self.repository = PostgresJobRepository(url)
        self.presence = PostgresPresence(url)
        self.hub = PostgresChangeHub(url, home / "no-file", home / "logs")
        self.asked = 0
        self.succession = Succession(
            self.repository, self.presence, self.hub, clock or SystemClock(), runs_on=runs_on
        )

    def gaining(self, holder: str) -> "asyncio.Task[object]":
        return asyncio.create_task(self.succession.gain(holder, self._asking))

    def _asking(self) -> None:
        self.asked += 1

    async def close(self) -> None:
        await self.hub.close()
        await self.presence.close()
        await self.repository.close()


@pytest.fixture
async def candidates(url: str, tmp_path: Path) -> AsyncIterator["Candidates"]:
    made = Candidates(url, tmp_path)
    yield made
    for one in made.all:
        await one.close()


class Candidates:
    """Makes candidates whose hubs run, and ends them."""

    def __init__(self, url: str, home: Path) -> None:
        self._url, self._home = url, home
        self.all: list[Candidate] = []

    async def one(self, runs_on: str | None = None, clock: Clock | None = None) -> Candidate:
        self.all.append(Candidate(self._url, self._home, runs_on, clock))
        await self.all[-1].hub.start()
        return self.all[-1]


async def test_the_engine_of_the_leader_decides_who_may_wait(
    candidates: Candidates, repository: PostgresJobRepository
) -> None:
    leader = await candidates.one("engine-1")
    lease = await leader.succession.gain("leader", lambda: None)
    state = await repository.controller_state()
    assert state is not None
    assert state.runs_on == "engine-1"
    stranger = await candidates.one("engine-2")
    gaining = stranger.gaining("stranger")

    async def is_refused() -> bool:
        assert await repository.heartbeat(lease, utcnow())
        return gaining.done()

    await eventually(is_refused, seconds=LONG)
    with pytest.raises(RunnerElsewhere, match=r"leader runs jobs on another engine.*--no-local-runner"):
        await gaining
    await stranger.close()
    waiting = [(await candidates.one(engine)).gaining(str(engine)) for engine in ("engine-1", None)]
    await eventually(lambda: _count(repository, 2), seconds=LONG)
    assert [one.done() for one in waiting] == [False, False]
    assert await repository.heartbeat(lease, utcnow())
    await _cancelled(*waiting)


async def test_the_engine_of_a_leader_that_is_lost_keeps_nobody_out(
    candidates: Candidates, repository: PostgresJobRepository
) -> None:
    lost = await repository.take_over("lost", utcnow(), runs_on="engine-1")
    heir = await candidates.one("engine-2", QuickClock())
    lease = await asyncio.wait_for(heir.succession.gain("heir", lambda: None), LONG)
    assert lease.epoch == lost.epoch + 1
    state = await repository.controller_state()
    assert state is not None
    assert state.runs_on == "engine-2"


async def test_a_leader_that_hangs_with_its_session_keeps_no_other_engine_out(
    candidates: Candidates, repository: PostgresJobRepository
) -> None:
    """A process that was stopped keeps its session for as long as its host lives."""
    hung = await candidates.one("engine-1")
    await hung.succession.gain("hung", lambda: None)
    heir = await candidates.one("engine-2", QuickClock())
    await asyncio.wait_for(heir.succession.gain("heir", lambda: None), LONG)
    state = await repository.controller_state()
    assert state is not None
    assert (state.epoch, state.runs_on) == (2, "engine-2")
    watcher = await candidates.one()
    assert await watcher.presence.is_led(1), "and its session was there all the time"


async def test_a_leader_that_is_heard_of_without_a_session_keeps_its_engine(
    candidates: Candidates, repository: PostgresJobRepository
) -> None:
    lease = await repository.take_over("leader", utcnow(), runs_on="engine-1")

    async def is_refused() -> bool:
        assert await repository.heartbeat(lease, utcnow())
        return stranger.done()

    stranger = (await candidates.one("engine-2")).gaining("stranger")
    await eventually(is_refused, seconds=LONG)
    with pytest.raises(RunnerElsewhere):
        await stranger


async def test_where_nobody_leads_any_more_the_engine_may_be_another_one(
    candidates: Candidates, repository: PostgresJobRepository
) -> None:
    before = await repository.take_over("gone", utcnow() - timedelta(hours=1), runs_on="engine-1")
    assert await repository.release(before, "stopped", utcnow())
    successor = await (await candidates.one("engine-2")).succession.gain("successor", lambda: None)
    assert successor.epoch == before.epoch + 1


@pytest.mark.parametrize("engine", ["engine-2", None])
async def test_one_that_was_stopped_while_jobs_ran_has_time_to_return(
    candidates: Candidates, repository: PostgresJobRepository, story: Story, engine: str | None
) -> None:
    await story.queue()
    await story.run()
    lease = await repository.take_over("restarting", utcnow(), runs_on="engine-1")
    assert await repository.release(lease, "stopped", utcnow())
    with capture_logs() as said:
        other = await candidates.one(engine, QuickClock())
        await asyncio.wait_for(other.succession.gain("other", lambda: None), LONG)
        assert _reasons(said) == ["it is silent for 16 s"]
    assert [attempt.job.id for attempt in await repository.open_attempts()], (
        "what follows is the heir's to decide"
    )


async def test_on_its_own_engine_nobody_waits_for_its_return(
    candidates: Candidates, repository: PostgresJobRepository, story: Story
) -> None:
    await story.queue()
    await story.run()
    lease = await repository.take_over("restarting", utcnow(), runs_on="engine-1")
    assert await repository.release(lease, "stopped", utcnow())
    with capture_logs() as said:
        same = await candidates.one("engine-1")
        await asyncio.wait_for(same.succession.gain("same", lambda: None), LONG)
    assert _reasons(said) == ["it was stopped"]


def _reasons(events: Sequence[Mapping[str, object]]) -> list[object]:
    """Return why leaders were succeeded."""
    return [one["why"] for one in events if one["event"] == "taking over"]


async def test_a_row_that_a_stopped_leader_holds_is_asked_for_again_without_another_silence(
    candidates: Candidates, repository: PostgresJobRepository, url: str
) -> None:
    lease = await repository.take_over("stopped", utcnow())
    leader = await candidates.one()
    assert await leader.presence.lead(lease.epoch)
    async with await psycopg.AsyncConnection.connect(url) as held:
        await held.execute(b"SELECT FROM controller FOR UPDATE")
        with capture_logs() as said:
            heir = (await candidates.one(None, QuickClock())).gaining("heir")
            await eventually(lambda: _was_given_up(url), seconds=LONG)
            await eventually(lambda: _was_said(said, "cannot look for the leader"), seconds=LONG)
            await held.rollback()
            await asyncio.wait_for(heir, LONG)
    [why] = _reasons(said)
    assert str(why).startswith("it is silent for ")
    assert why != "it is silent for 16 s", "it has counted on since"


async def _was_given_up(url: str) -> bool:
    """A statement that waited for the row was ended, as it is when it has waited for too long."""
    query = (
        b"SELECT pg_cancel_backend(pid) FROM pg_stat_activity "
        b"WHERE datname = current_database() AND wait_event_type = 'Lock'"
    )
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as db:
        return await (await db.execute(query)).fetchone() is not None


@pytest.fixture
def newer_release(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From the call on this release knows one migration more than the database has."""
    migrations = {**available_migrations("postgresql"), 2: "CREATE TABLE newer (id integer)"}

    def known(_: str) -> dict[int, str]:
        return migrations

    return lambda: monkeypatch.setattr(postgres_migrations, "available_migrations", known)


async def test_the_tables_of_an_older_release_that_lives_are_left_alone(
    candidates: Candidates, repository: PostgresJobRepository, url: str, newer_release: Callable[[], None]
) -> None:
    lease = await repository.take_over("older", utcnow())
    newer_release()

    async def is_waited_for() -> bool:
        assert await repository.heartbeat(lease, utcnow())
        return await _was_said(said, "waiting: another controller leads")

    with capture_logs() as said:
        waiting = (await candidates.one()).gaining("newer")
        await eventually(is_waited_for, seconds=LONG)
    assert not await _is_migrated(url), "its session is missing, but not for long enough"
    await _cancelled(waiting)


async def test_an_older_release_that_is_stopped_is_succeeded(
    candidates: Candidates, repository: PostgresJobRepository, url: str, newer_release: Callable[[], None]
) -> None:
    lease = await repository.take_over("older", utcnow(), runs_on="engine-1")
    assert await (await candidates.one()).presence.lead(lease.epoch)
    newer_release()
    with capture_logs() as said:
        heir = (await candidates.one("engine-1", QuickClock())).gaining("newer")
        await asyncio.wait_for(heir, LONG)
    assert _reasons(said) == ["it is silent for 16 s"]
    assert await _is_migrated(url)


async def _is_migrated(url: str) -> bool:
    async with await psycopg.AsyncConnection.connect(url) as db:
        row = await (await db.execute(b"SELECT to_regclass('newer') IS NOT NULL")).fetchone()
    return row == (True,)


async def _nothing_yet(_: PostgresJobRepository) -> int:
    return 1


async def _one_without_a_session(repository: PostgresJobRepository) -> int:
    return (await repository.take_over("dead", utcnow())).epoch + 1


async def _one_that_was_stopped(repository: PostgresJobRepository) -> int:
    lease = await repository.take_over("stopped", utcnow())
    assert await repository.release(lease, "stopped", utcnow())
    return lease.epoch + 1


@pytest.mark.parametrize("before", [_nothing_yet, _one_without_a_session, _one_that_was_stopped])
async def test_an_heir_that_hangs_before_it_writes_is_in_nobodys_way(
    candidates: Candidates,
    repository: PostgresJobRepository,
    url: str,
    before: Callable[[PostgresJobRepository], Awaitable[int]],
) -> None:
    epoch = await before(repository)
    hung, heir, watcher = (
        PostgresPresence(url),
        await candidates.one(None, QuickClock()),
        PostgresPresence(url),
    )
    try:
        assert await hung.lead(epoch)
        lease = await asyncio.wait_for(heir.succession.gain("heir", lambda: None), LONG)
        assert lease.epoch == epoch
        assert not await watcher.lead(epoch), "the hung one still has the lock"
        await hung.close()
        await eventually(lambda: watcher.is_led(epoch), seconds=LONG)
        await heir.presence.close()
        await eventually(lambda: watcher.lead(epoch), seconds=LONG)
    finally:
        await hung.close()
        await watcher.close()


async def test_of_two_that_wait_one_succeeds_a_leader_that_releases(
    candidates: Candidates, repository: PostgresJobRepository
) -> None:
    leader = await candidates.one()
    lease = await leader.succession.gain("leader", lambda: None)
    waiting = [await candidates.one() for _ in range(2)]
    tasks = {one.gaining(f"heir {n}"): one for n, one in enumerate(waiting)}
    await eventually(lambda: _count(repository, 2), seconds=LONG)
    assert [one.asked for one in waiting] == [0, 0]
    assert await repository.release(lease, "stopped", utcnow())
    done, others = await asyncio.wait(tasks, timeout=LONG, return_when=asyncio.FIRST_COMPLETED)
    [heir], [other] = done, others
    assert tasks[heir].asked, "the lease counts from when it was asked for, not from when the wait began"
    await eventually(lambda: _count(repository, 1), seconds=LONG)
    assert not other.done()
    state = await repository.controller_state()
    assert state is not None
    assert (state.epoch, state.is_released) == (lease.epoch + 1, False)
    await _cancelled(other)


async def test_a_database_that_cannot_be_reached_at_first_is_said_to_the_operator(tmp_path: Path) -> None:
    nowhere = Candidate("postgresql://ci@127.0.0.1:1/ci", tmp_path)
    with pytest.raises(Unavailable, match="refused"):
        await nowhere.gaining("lost")
    await nowhere.close()


async def test_one_that_waits_bears_it_that_the_database_goes_away(
    candidates: Candidates, repository: PostgresJobRepository, url: str
) -> None:
    await (await candidates.one()).succession.gain("leader", lambda: None)
    with capture_logs() as said:
        waiting = (await candidates.one()).gaining("heir")
        await eventually(lambda: _was_said(said, "waiting: another controller leads"), seconds=LONG)
        cut_sessions(url)
        await eventually(lambda: _was_said(said, "cannot look for the leader"), seconds=LONG)
    await eventually(lambda: _count(repository, 1), seconds=LONG)
    assert not waiting.done()
    await _cancelled(waiting)


async def _was_said(events: Sequence[Mapping[str, object]], what: str) -> bool:
    return any(one["event"] == what for one in events)


async def _count(repository: PostgresJobRepository, number: int) -> bool:
    return await repository.count_standing_by() == number


async def _cancelled(*tasks: "asyncio.Task[object]") -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)

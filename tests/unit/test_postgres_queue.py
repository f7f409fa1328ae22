"""The rules of the queue between sessions of PostgreSQL: what one forbids, another does not do afterwards."""

import asyncio
import re
import threading
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, closing
from typing import Any

import psycopg
import pytest

from ci_common.errors import JobFinished, PriorityNotAllowed
from ci_common.job_terms import JobOptions, JobStatus, Priority, Reason
from ci_common.models import Attempt, LimitChange
from ci_common.verdict import verdict
from ci_persistence import (
    sql_accounts,
    sql_attempts,
    sql_control,
    sql_endings,
    sql_jobs,
    sql_pause,
    sql_queue,
)
from ci_persistence.postgres_connection import connect
from ci_persistence.postgres_database import PostgresDatabase
from ci_persistence.postgres_repository import PostgresJobRepository
from ci_persistence.rows import to_text
from ci_persistence.sql_connection import Work
from tests.support.eventually import eventually
from tests.support.postgres_fixtures import repository, story, url
from tests.support.repository_contract.story import Story, at, make_user

__all__ = ["repository", "story", "url"]

HELD_UP = b"SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"


@asynccontextmanager
async def about_to_commit(url: str, work: Work[Any]) -> AsyncGenerator[None]:
    """Another session has done the work, and commits it at the end of the block."""
    database, done, go_on = PostgresDatabase(url), threading.Event(), threading.Event()

    def held(db: Any) -> None:
        work(db)
        done.set()
        assert go_on.wait(10)

    session = asyncio.create_task(database.write(held))
    try:
        assert await asyncio.to_thread(done.wait, 10)
        yield
    finally:
        go_on.set()
        await session
        await database.close()


async def one_waits(url: str) -> None:
    """Some session waits for another one's lock."""
    await asyncio.to_thread(eventually, lambda: _is_held_up(url), what="waiting for a lock")


def _is_held_up(url: str) -> bool:
    with psycopg.connect(url) as db:
        return db.execute(HELD_UP).fetchone() is not None


def claimed_by(story: Story) -> Work[Any]:
    return lambda db: sql_control.claim_jobs(db, story.lease, 1, at(3))


# -- pauses ------------------------------------------------------------------------------------------------


async def test_a_pause_stands_when_whatever_was_just_claimed_is_claimed(story: Story, url: str) -> None:
    for n in range(2):
        await story.queue(n)
    async with about_to_commit(url, claimed_by(story)):
        pause = asyncio.create_task(story.repository.pause_queue("why", at(3)))
        await one_waits(url)
        assert not pause.done()
    await pause
    assert len(await story.repository.open_attempts()) == 1
    assert await story.repository.claim_jobs(story.lease, 9, at(4)) == []


async def test_a_claim_waits_for_a_pause_and_takes_nothing(story: Story, url: str) -> None:
    await story.queue()
    async with about_to_commit(url, lambda db: sql_pause.pause_queue(db, None, at(3), "eve")):
        claim = asyncio.create_task(story.repository.claim_jobs(story.lease, 9, at(3)))
        await one_waits(url)
    assert await claim == []


async def test_the_first_controller_of_all_waits_for_a_pause(
    repository: PostgresJobRepository, url: str
) -> None:
    async with about_to_commit(url, lambda db: sql_pause.pause_queue(db, None, at(3), "eve")):
        first = asyncio.create_task(repository.take_over("holder", at(3)))
        await one_waits(url)
    assert await repository.claim_jobs(await first, 9, at(4)) == []


async def test_of_pauses_at_once_the_first_stands(story: Story) -> None:
    for n in range(10):
        pauses = await asyncio.gather(*(story.repository.pause_queue(f"{m}", at(n)) for m in range(4)))
        assert set(pauses) == {await story.repository.queue_pause()}
        resumed = await asyncio.gather(*(story.repository.resume_queue(at(n)) for _ in range(4)))
        assert sorted(resumed) == [False, False, False, True]


# -- limits of users -----------------------------------------------------------------------------------------


async def test_claims_at_once_take_no_more_of_a_user_than_may_run(story: Story) -> None:
    await story.repository.set_user_limits(story.user.id, LimitChange(max_running=2), at(0))
    for n in range(6):
        await story.queue(n)
    for seconds in range(10, 15):
        claims = await asyncio.gather(
            *(story.repository.claim_jobs(story.lease, 1, at(seconds)) for _ in range(6))
        )
        claimed = [attempt for claim in claims for attempt in claim]
        assert len(claimed) == 2 == len(await story.repository.open_attempts())
        await asyncio.gather(*(story.release(attempt.fence) for attempt in claimed))


async def test_a_claim_waits_for_a_limit_and_keeps_to_it(story: Story, url: str) -> None:
    for n in range(3):
        await story.queue(n)
    await story.claim()
    async with about_to_commit(url, limited(story, LimitChange(max_running=1))):
        claim = asyncio.create_task(story.repository.claim_jobs(story.lease, 9, at(3)))
        await one_waits(url)
    assert await claim == []


async def test_who_just_lost_a_priority_submits_nothing_with_it(story: Story, url: str) -> None:
    async with about_to_commit(url, limited(story, LimitChange(Priority.LOW))):
        submission = asyncio.create_task(story.queue())
        await one_waits(url)
    with pytest.raises(PriorityNotAllowed):
        await submission


async def test_who_just_lost_a_priority_gives_it_to_no_job(story: Story, url: str) -> None:
    job = await story.queue(options=JobOptions(priority=Priority.LOW))
    async with about_to_commit(url, limited(story, LimitChange(Priority.LOW))):
        change = asyncio.create_task(
            story.repository.set_priority(job.id, story.user.id, Priority.NORMAL, "ada", at(3))
        )
        await one_waits(url)
    with pytest.raises(PriorityNotAllowed):
        await change


def limited(story: Story, change: LimitChange) -> Work[Any]:
    return lambda db: sql_accounts.set_user_limits(db, story.user.id, change, at(3), "eve")


# -- changes of a priority -------------------------------------------------------------------------------------


async def test_a_priority_given_during_a_claim_is_that_of_the_claimed_job(story: Story, url: str) -> None:
    job = await story.queue()
    async with about_to_commit(url, claimed_by(story)):
        change = asyncio.create_task(story.repository.set_priority(job.id, None, Priority.HIGH, "eve", at(3)))
        await one_waits(url)
    changed = await change
    assert (changed.status, changed.options.priority) == (JobStatus.CLAIMED, Priority.HIGH)
    assert await story.timeline(job.id) == ["submitted", "claimed", "priority_changed"]


async def test_no_priority_is_given_to_a_job_that_just_ends(story: Story, url: str) -> None:
    job = await story.queue()
    async with about_to_commit(url, lambda db: sql_jobs.request_cancel(db, job.id, None, "eve", at(3))):
        change = asyncio.create_task(story.repository.set_priority(job.id, None, Priority.HIGH, "eve", at(3)))
        await one_waits(url)
    with pytest.raises(JobFinished):
        await change


async def test_a_claim_does_not_wait_for_the_job_whose_priority_just_changes(story: Story, url: str) -> None:
    first, second = await story.queue(0), await story.queue(1)
    bob = make_user("bob")
    await story.repository.create_user(bob)
    async with about_to_commit(
        url,
        lambda db: sql_jobs.set_priority(db, first.id, None, Priority.LOW, "eve", at(3), None),
    ):
        assert await story.repository.claim_jobs(story.lease, 1, at(3)) == []
        other = Story(story.repository)
        other.user, other.lease = bob, story.lease
        theirs = await other.queue(2)
        assert (await other.claim(3)).job.id == theirs.id
    assert [(await story.claim(4)).job.id for _ in range(2)] == [second.id, first.id]


async def test_priorities_change_while_jobs_are_claimed(story: Story) -> None:
    """Each job is claimed once, with the priority it had or was just given, and its timeline has no gap."""
    for n in range(15):
        jobs = [await story.queue(n) for _ in range(3)]
        words = (Priority.LOW, Priority.HIGH, Priority.CRITICAL)
        claims = asyncio.gather(*(story.repository.claim_jobs(story.lease, 1, at(99)) for _ in range(3)))
        for job in jobs:
            await asyncio.gather(
                *(story.repository.set_priority(job.id, None, word, "eve", at(99)) for word in words)
            )
        claimed = [attempt.job.id for claim in await claims for attempt in claim]
        claimed += [one.job.id for one in await story.repository.claim_jobs(story.lease, 9, at(99))]
        assert sorted(claimed) == sorted(job.id for job in jobs)
        for job in jobs:
            assert sorted(await story.timeline(job.id)) == [
                "claimed",
                *["priority_changed"] * 3,
                "submitted",
            ]


def test_a_claim_reads_no_more_than_it_needs_when_statistics_know_of_no_queue(url: str) -> None:
    """As they are whenever the queue was empty for a while; then a burst comes."""
    claimable = sql_queue.times(at(1))
    with closing(connect(url)) as db:
        add_jobs(db, "completed", 3000)
        db.execute("ANALYZE")
        add_jobs(db, "queued", 3000)
        choosing = indexes_of(db, sql_queue.STANDINGS, {**claimable, "limit": 3})
        following = indexes_of(db, sql_queue.FOLLOWING, {**claimable, "user": "user1", "more": 3})
        taking = indexes_of(db, sql_queue.TAKE.format(ids=":a, :b"), {**claimable, "a": "x", "b": "y"})
    assert choosing == {"jobs_queued_by_user", "jobs_open_by_user", "jobs_open_by_pool"}
    assert following == {"jobs_queued_by_user"}
    assert taking == {"jobs_pkey"}


@pytest.mark.parametrize("rows", [1, 10])
def test_verdicts_are_recorded_by_the_key_of_their_jobs(url: str, rows: int) -> None:
    ending, finishing = f"job, {sql_endings.VERDICT}", f"job, attempt, token, {sql_endings.VERDICT}"
    with closing(connect(url)) as db:
        add_jobs(db, "completed", 3000)
        db.execute("ANALYZE")
        add_jobs(db, "queued", 3000)
        assert given_plan(db, ending, sql_endings.END, rows) == {"jobs_pkey"}
        for statement in (sql_attempts.FINISH, sql_attempts.FINISH_FREE):
            assert given_plan(db, finishing, statement, rows) == {"jobs_pkey"}


def add_jobs(db: Any, status: str, count: int) -> None:
    ended = to_text(at(1)) if status == "completed" else None
    for user in range(10):
        db.execute(
            "INSERT INTO users (id, name, email, email_folded, created_at, is_active, role) "
            "VALUES (:n, :n, :n, :n, :now, 1, 'user') ON CONFLICT DO NOTHING",
            {"n": f"user{user}", "now": to_text(at(0))},
        )
    db.execute(
        "INSERT INTO jobs (id, user_id, created_at, archive_ref, status, options, queued_since, success, end_time) "
        "SELECT :status || n, 'user' || n % 10, :now, 'ref', :status, '{}', :now, :success, :ended "
        "FROM generate_series(1, :count) AS n",
        {"status": status, "now": to_text(at(0)), "success": ended and 1, "ended": ended, "count": count},
    )


def given_plan(db: Any, columns: str, statement: str, rows: int) -> set[str]:
    """Return the indexes of jobs by which a statement about so many rows would read."""
    row = {name: "failed" if name == "status" else "1" for name in columns.split(", ")}
    values = ", ".join([f"({', '.join('?' * len(row))})"] * rows)
    return indexes_of(db, f"WITH given ({columns}) AS (VALUES {values}) {statement}", [*row.values()] * rows)


def indexes_of(db: Any, statement: str, values: dict[str, Any] | list[str]) -> set[str]:
    """Return the indexes by which the planner would read jobs; reading all of them would be none."""
    plan = "\n".join(row[0] for row in db.execute("EXPLAIN " + statement, values))
    assert "Seq Scan on jobs" not in plan, plan
    return set(re.findall(r"(?:using|Bitmap Index Scan on) (jobs\w+)", plan))


async def test_a_job_that_somebody_changes_holds_up_its_own_verdict_only(
    story: Story, repository: PostgresJobRepository, url: str
) -> None:
    """Whether verdicts come together or one after the other."""
    attempts = [await claimed_next(story, n) for n in range(4)]
    changed = attempts[0].job.id

    def finishing(attempt: Attempt) -> asyncio.Task[bool]:
        return asyncio.create_task(
            repository.finish_attempt(attempt.fence, verdict(Reason.BAD_ARCHIVE), None, at(7))
        )

    async with about_to_commit(url, lambda db: sql_jobs.request_cancel(db, changed, None, "ada", at(6))):
        held_up, together = (finishing(attempt) for attempt in attempts[:2])
        await one_waits(url)
        assert await together
        assert [await finishing(attempt) for attempt in attempts[2:]] == [True, True]
        assert not held_up.done()
    assert await held_up
    assert await story.timeline(changed) == ["submitted", "claimed", "cancel_requested", "failed"]


async def claimed_next(story: Story, n: int) -> Attempt:
    await story.queue(n)
    return await story.claim(n)

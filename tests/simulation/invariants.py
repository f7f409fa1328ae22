"""I1 to I8 and I10, each a function that raises AssertionError in a world where it does not hold.

I9 is in `World._pass_of`: each pass has a deadline, while slow calls never end by themselves.
"""

import hashlib
import sqlite3
from collections import Counter
from collections.abc import Sequence

from ci_common.errors import JobFinished, JobNotFound
from ci_common.job_terms import JobStatus, Reason
from ci_common.models import Job, JobFilter
from ci_persistence.rows import job_from
from ci_persistence.sqlite_connection import connect
from tests.simulation.behaviour import ENDINGS, Kind, output_of
from tests.simulation.engine import key_of
from tests.simulation.world import World


async def check_all(world: World) -> None:
    """Every invariant holds now."""
    db = connect(world.database, busy_timeout_ms=0)
    try:
        i8_no_transaction_is_open(db)
        jobs = [job_from(row) for row in db.execute("SELECT * FROM jobs")]
        i1_an_acknowledged_job_exists_once(world, jobs)
        i2_a_verdict_is_written_once(world, db, jobs)
        i2_a_verdict_is_true(world, db, jobs)
        i3_an_attempt_runs_at_most_once(world, db)
        i4_nothing_is_removed_before_its_log_and_verdict(world, db)
        i5_a_sealed_log_is_what_was_printed(world, jobs)
        i6_limits_hold(world, db)
        i10_a_container_is_one_attempts(world, db)
    finally:
        db.close()
    await i7_nobody_sees_what_is_not_theirs(world)


def i1_an_acknowledged_job_exists_once(world: World, jobs: Sequence[Job]) -> None:
    """That it becomes terminal is for `World.recover` to show."""
    assert {job.id for job in jobs} == set(world.submitted)


def i2_a_verdict_is_written_once(world: World, db: sqlite3.Connection, jobs: Sequence[Job]) -> None:
    finals = Counter(
        row["job_id"]
        for row in db.execute(
            "SELECT job_id FROM job_events WHERE type IN ('completed', 'failed', 'cancelled', 'dead_lettered')"
        )
    )
    for job in jobs:
        assert finals[job.id] == job.status.is_terminal, job
        if job.status.is_terminal:
            assert world.finals.setdefault(job.id, job) == job, "a final word was changed"


def i2_a_verdict_is_true(world: World, db: sqlite3.Connection, jobs: Sequence[Job]) -> None:
    """Each ending is what the job did, or what was done to it; lost by infrastructure is never a failed test."""
    for job in jobs:
        if not job.status.is_terminal:
            continue
        match job.status, job.reason:
            case JobStatus.CANCELLED, _:
                assert job.id in world.cancelled, job
            case JobStatus.DEAD_LETTERED, _:
                assert _charged(db, job) == world.system.policy.max_attempts, job
            case JobStatus.FAILED, Reason.TIMEOUT | Reason.QUEUE_TIMEOUT if world.jumped:
                pass  # a successor knows only the wall clock
            case ending:
                assert ending == ENDINGS[world.kinds[job.id]], job


def _charged(db: sqlite3.Connection, job: Job) -> int:
    query = "SELECT count(*) FROM attempts WHERE job_id = ? AND begun_at IS NOT NULL"
    return db.execute(query, (job.id,)).fetchone()[0]


def i3_an_attempt_runs_at_most_once(world: World, db: sqlite3.Connection) -> None:
    assert all(times == 1 for times in world.engine.runs.values()), world.engine.runs
    running = Counter(key for container in world.engine.running() if (key := key_of(container)))
    assert all(count == 1 for count in running.values()), running
    doubled = db.execute(
        "SELECT job_id FROM attempts WHERE ended_at IS NULL GROUP BY job_id HAVING count(*) > 1"
    ).fetchall()
    assert not doubled


def i4_nothing_is_removed_before_its_log_and_verdict(world: World, db: sqlite3.Connection) -> None:
    """What no attempt has is removed only if it was never fed, and no attempt gets it any more."""
    recorded = {row["container_id"] for row in db.execute("SELECT container_id FROM attempts")}
    for removal in world.removed:
        name, row = removal.name, removal.row
        if row is None:
            assert name.startswith("waiting-"), f"{name} removed, and no attempt has it"
            assert removal.container_id not in recorded, f"{name} removed before an attempt got it"
            continue
        assert row["ended_at"] is not None, f"{name} removed before its verdict"
        assert row["log_sha256"] is not None, f"{name} removed before its log was sealed"


def i5_a_sealed_log_is_what_was_printed(world: World, jobs: Sequence[Job]) -> None:
    for job in jobs:
        if job.log_sha256 is None:
            continue
        log = world.system.log(job.id, job.attempt)
        assert (job.log_size, job.log_sha256) == (len(log), hashlib.sha256(log).hexdigest()), job
        if job.status is JobStatus.COMPLETED:
            assert job.log_truncated == (world.kinds[job.id] is Kind.CRASHES), "that one has no last word"
            assert log == output_of(job.id)
        elif not job.log_truncated:
            assert output_of(job.id).startswith(log)


def i6_limits_hold(world: World, db: sqlite3.Connection) -> None:
    query = "SELECT count(started_at), count(*) FROM attempts WHERE ended_at IS NULL"
    started, held = db.execute(query).fetchone()
    policy = world.system.policy
    assert started <= policy.max_running_jobs, "more run than may"
    wait = 0 if policy.environments.are_off else policy.max_running_jobs  # for what another one builds
    assert held <= policy.max_running_jobs + wait, "more are claimed than may be"
    fresh = dict(  # what comes back to the queue was admitted before, and is not refused again
        db.execute(
            "SELECT user_id, count(*) FROM jobs WHERE status = 'queued' AND attempt = 0 GROUP BY user_id"
        ).fetchall()
    )
    assert max(fresh.values(), default=0) <= world.limits.per_user, "a user has more queued than they may"
    assert sum(fresh.values()) <= world.limits.total, "more is queued than may be"


def i10_a_container_is_one_attempts(world: World, db: sqlite3.Connection) -> None:
    """Whether or not it waited: it is fed for one attempt at most, and no two attempts have it."""
    assert all(times <= 1 for times in world.engine.feeds.values()), world.engine.feeds
    shared = db.execute(
        "SELECT container_id FROM attempts WHERE container_id IS NOT NULL"
        " GROUP BY container_id HAVING count(*) > 1"
    ).fetchall()
    assert not shared, "two attempts have one container"


async def i7_nobody_sees_what_is_not_theirs(world: World) -> None:
    """Not by its id, not in a listing, and a cancel cannot tell it from what does not exist."""
    repository = world.system.repository
    for user in world.users.values():
        listed = (await repository.list_jobs(JobFilter(user_id=user.id))).jobs
        theirs = {job.id for job in world.submitted.values() if job.user_id == user.id}
        assert {job.id for job in listed} == theirs, "a listing holds somebody else's"
    for job in list(world.submitted.values())[-1:]:
        for user in world.users.values():
            seen = await repository.get_job(job.id, user.id)
            assert (seen is not None) == (user.id == job.user_id), "seen by its id"
        await _a_stranger_cannot_cancel(world, job)


async def _a_stranger_cannot_cancel(world: World, job: Job) -> None:
    stranger = next(user for user in world.users.values() if user.id != job.user_id)
    try:
        await world.system.repository.request_cancel(job.id, stranger.id, "a stranger", world.clock.now())
    except JobNotFound:
        return
    except JobFinished:
        raise AssertionError("a stranger learned that it has ended") from None
    raise AssertionError("cancelled by a stranger")


def i8_no_transaction_is_open(db: sqlite3.Connection) -> None:
    try:
        db.execute("BEGIN IMMEDIATE")
    except sqlite3.OperationalError as error:
        raise AssertionError("a transaction outlived its call") from error
    db.execute("ROLLBACK")

"""Row 44 of the fault catalogue: 10 000 queued jobs of 50 users, claimed fairly and by index."""

import re
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path

import pytest

from ci_common.job_terms import JobStatus
from ci_common.models import ControllerLease, JobFilter
from ci_persistence import sql_control, sql_queue
from ci_persistence.rows import to_text
from ci_persistence.sql_listing import list_jobs
from ci_persistence.sqlite_connection import connect
from tests.support.database import new_database
from tests.support.repository_contract.story import START, at

USERS = 50
JOBS = 10_000
NEWCOMER = "newcomer"


@pytest.fixture
def crowded(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    """A queue of 10 000 jobs of 50 users, and behind them all one job of somebody else."""
    db = connect(new_database(tmp_path))
    db.execute("BEGIN IMMEDIATE")
    for name in [*(f"user{n:02}" for n in range(USERS)), NEWCOMER]:
        db.execute(
            "INSERT INTO users (id, name, email, email_folded, created_at, is_active, role) "
            "VALUES (?, ?, ?, ?, ?, 1, 'user')",
            (name, name, name, name, to_text(START)),
        )
    owners = [f"user{n % USERS:02}" for n in range(JOBS)] + [NEWCOMER]
    for number, owner in enumerate(owners):
        queued = to_text(at(number / 1000))
        db.execute(
            "INSERT INTO jobs (id, user_id, created_at, archive_ref, status, options, queued_since) "
            """VALUES (?, ?, ?, 'ref', 'queued', '{"pytest_args": [], "timeout_seconds": null}', ?)""",
            (f"job{number:05}", owner, queued, queued),
        )
    db.execute("COMMIT")
    yield db
    db.close()


@pytest.fixture
def lease(crowded: sqlite3.Connection) -> ControllerLease:
    return sql_control.take_over(crowded, "controller", START)


def finish(db: sqlite3.Connection, job_id: str) -> None:
    db.execute("UPDATE attempts SET ended_at = ? WHERE job_id = ?", (to_text(at(99)), job_id))
    db.execute(
        "UPDATE jobs SET status = 'completed', success = 1, end_time = ? WHERE id = ?",
        (to_text(at(99)), job_id),
    )


def test_row_44_a_small_user_waits_for_one_job_of_each_other_at_most(
    crowded: sqlite3.Connection, lease: ControllerLease
) -> None:
    """One slot: each job ends before the next is claimed. Whoever queued 200 before does not matter."""
    for _ in range(
        USERS
    ):  # everybody else had a turn lately, so that the newcomer does not come first at once
        [attempt] = sql_control.claim_jobs(crowded, lease, 1, at(50))
        finish(crowded, attempt.job.id)
        if attempt.job.user_id == NEWCOMER:
            return
    [attempt] = sql_control.claim_jobs(crowded, lease, 1, at(50))
    assert attempt.job.user_id == NEWCOMER


def test_row_44_nobody_is_claimed_twice_and_all_get_their_turns(
    crowded: sqlite3.Connection, lease: ControllerLease
) -> None:
    claimed = [
        attempt for _ in range(20) for attempt in sql_control.claim_jobs(crowded, lease, USERS + 1, at(50))
    ]
    assert len({attempt.job.id for attempt in claimed}) == len(claimed) == 20 * (USERS + 1)
    by_user = [attempt.job.user_id for attempt in claimed if attempt.job.user_id != NEWCOMER]
    counts = {user: by_user.count(user) for user in set(by_user)}
    assert max(counts.values()) - min(counts.values()) <= 1


def test_row_44_the_listing_is_paged_by_key(crowded: sqlite3.Connection) -> None:
    page = list_jobs(crowded, JobFilter(statuses=frozenset({JobStatus.QUEUED}), limit=500))
    assert len(page.jobs) == 500
    assert page.next_cursor


THREE_OF_FOUR = "id >= 'job02500' AND status = 'queued'"


@pytest.mark.parametrize(
    "thinned",
    [
        f"DELETE FROM jobs WHERE {THREE_OF_FOUR}",
        f"UPDATE jobs SET status = 'completed', success = 1, end_time = created_at WHERE {THREE_OF_FOUR}",
    ],
)
def test_row_44_the_work_of_a_claim_does_not_grow_with_the_queue(
    crowded: sqlite3.Connection, lease: ControllerLease, thinned: str
) -> None:
    """Counted in steps of SQLite's machine, not in time."""
    full = steps_of_a_claim(crowded, lease)
    crowded.execute(thinned)
    assert full < 1.5 * steps_of_a_claim(crowded, lease)


def test_row_44_nor_does_it_when_the_jobs_are_of_all_classes(
    crowded: sqlite3.Connection, lease: ControllerLease
) -> None:
    one_class = steps_of_a_claim(crowded, lease)
    crowded.execute("UPDATE jobs SET priority = CAST(substr(id, 4) AS INTEGER) % 4 WHERE status = 'queued'")
    assert steps_of_a_claim(crowded, lease) < 1.5 * one_class


def test_the_only_urgent_job_among_very_many_is_claimed_first(
    crowded: sqlite3.Connection, lease: ControllerLease
) -> None:
    crowded.execute("UPDATE jobs SET priority = 1 WHERE id = 'job07777'")
    [attempt] = sql_control.claim_jobs(crowded, lease, 1, at(50))
    assert attempt.job.id == "job07777"


def steps_of_a_claim(db: sqlite3.Connection, lease: ControllerLease) -> int:
    hundreds: list[None] = []
    db.set_progress_handler(lambda: hundreds.append(None), 100)
    assert sql_control.claim_jobs(db, lease, 1, at(50))
    db.set_progress_handler(None, 0)
    return 100 * len(hundreds)


def test_row_44_claiming_uses_its_indexes(crowded: sqlite3.Connection) -> None:
    claimable = sql_queue.times(START)
    choosing = plan_of(crowded, sql_queue.STANDINGS, {**claimable, "limit": 3})
    for index in ("jobs_queued_by_user", "jobs_open_by_user", "users_by_last_claim"):
        assert any(index in step for step in choosing), choosing
    tables = {step for step in choosing if re.fullmatch(r"SCAN (jobs|users|held)", step)}
    assert not tables, choosing
    following = plan_of(crowded, sql_queue.FOLLOWING, {**claimable, "user": "user01", "more": 3})
    assert ["jobs_queued_by_user" in step for step in following] == [True], following
    taking = plan_of(crowded, sql_queue.TAKE.format(ids=":a, :b"), {**claimable, "a": "job1", "b": "job2"})
    assert not [step for step in taking if step.startswith("SCAN jobs")], taking


def plan_of(db: sqlite3.Connection, statement: str, values: Mapping[str, object]) -> list[str]:
    return [row["detail"] for row in db.execute("EXPLAIN QUERY PLAN " + statement, values)]


def test_a_batch_is_claimed_in_the_order_of_single_claims(tmp_path: Path) -> None:
    one_by_one, at_once = ([*claimed_in(tmp_path / name, batch)] for name, batch in (("a", 1), ("b", 7)))
    assert one_by_one == at_once


def claimed_in(home: Path, batch: int) -> Iterator[str]:
    """All jobs of three users in batches: users with other limits, held jobs, classes and times of their last claim."""
    home.mkdir()
    with closing(connect(new_database(home))) as db:
        for number, limit in enumerate((None, 9, None)):
            db.execute(
                "INSERT INTO users (id, name, email, email_folded, created_at, is_active, role, max_running, "
                "last_claim) VALUES (:id, :id, :id, :id, :at, 1, 'user', :limit, :last)",
                {"id": f"user{number}", "at": to_text(START), "limit": limit, "last": 3 - number},
            )
        for number in range(40):
            user, rank = (number * number) % 3, (number * 7) % 4
            db.execute(
                "INSERT INTO jobs (id, user_id, created_at, archive_ref, status, options, queued_since, priority) "
                """VALUES (?, ?, ?, 'ref', 'queued', '{"pytest_args": [], "timeout_seconds": null}', ?, ?)""",
                (f"job{number:02}", f"user{user}", to_text(at(number)), to_text(START), rank),
            )
        lease = sql_control.take_over(db, "controller", START)
        while claimed := sql_control.claim_jobs(db, lease, batch, at(50)):
            yield from (attempt.job.id for attempt in claimed)

"""The contract about jobs as their owners see them."""

import asyncio
import base64
from dataclasses import replace
from typing import Any

import pytest

from ci_common.errors import (
    AlreadyExists,
    IdempotencyConflict,
    InvalidRequest,
    JobFinished,
    JobNotFound,
    TooManyRequests,
    Unauthorized,
    Unavailable,
)
from ci_common.job_terms import JobOptions, JobStatus, Reason
from ci_common.models import Idempotency, JobEvent, JobFilter, QueueLimits
from ci_common.repository import JobRepository
from tests.support.repository_contract.story import (
    START,
    Backend,
    Story,
    at,
    make_job,
    make_user,
)

BEFORE_TIME = base64.urlsafe_b64encode(b"0001-01-01T00:00:00+14:00 x").decode()  # a date, but none in UTC
LIMITS = QueueLimits(per_user=2, total=3)


class JobsContract:
    async def test_a_new_job_is_queued_and_seen_by_all(self, story: Story, other: JobRepository) -> None:
        job = make_job(
            story.user, options=JobOptions(("-k", "a b", "é"), 12.5, fresh=True), archive_ref="x.zip"
        )
        assert await story.repository.create_job(job) == job
        assert await other.get_job(job.id) == job
        assert await other.get_events(job.id) == [JobEvent("submitted", START, {}, 0)]
        with pytest.raises(AlreadyExists):
            await other.create_job(job)

    async def test_a_foreign_job_looks_like_none(self, story: Story) -> None:
        job = await story.queue()
        assert await story.repository.get_job(job.id, user_id=story.user.id) == job
        assert await story.repository.get_job(job.id, user_id="somebody else") is None
        assert await story.repository.get_job("unknown") is None

    async def test_only_active_users_submit(self, story: Story) -> None:
        await story.repository.set_user_active(story.user.id, active=False, now=START)
        for user in (story.user, make_user("nobody")):
            with pytest.raises(Unauthorized):
                await story.repository.create_job(make_job(user))
        assert (await story.repository.list_jobs(JobFilter())).jobs == ()

    async def test_the_loser_of_two_equal_submissions_gets_the_winners_job(self, story: Story) -> None:
        promise = Idempotency("key", "fingerprint")
        first = await story.repository.create_job(make_job(story.user), promise)
        assert await story.repository.create_job(make_job(story.user), promise) == first
        assert await story.repository.find_idempotent(story.user.id, "key") == (first, "fingerprint")
        assert await story.repository.find_idempotent(story.user.id, "other") is None
        assert await story.timeline(first.id) == ["submitted"]

    async def test_a_reused_key_is_a_conflict(self, story: Story) -> None:
        await story.repository.create_job(make_job(story.user), Idempotency("key", "fingerprint"))
        with pytest.raises(IdempotencyConflict):
            await story.repository.create_job(make_job(story.user), Idempotency("key", "another"))

    async def test_idempotency_keys_are_each_users_own(self, story: Story) -> None:
        bob = make_user("bob")
        await story.repository.create_user(bob)
        promise = Idempotency("key", "fingerprint")
        mine = await story.repository.create_job(make_job(story.user), promise)
        assert (await story.repository.create_job(make_job(bob), promise)).id != mine.id

    async def test_fifty_equal_submissions_at_once_are_one_job(
        self, story: Story, other: JobRepository, backend: Backend
    ) -> None:
        third = backend.open(backend.location)
        promise = Idempotency("key", "fingerprint")
        replicas = (story.repository, other, third)
        try:
            created = await asyncio.gather(
                *(replicas[n % 3].create_job(make_job(story.user), promise) for n in range(50))
            )
        finally:
            await third.close()
        assert len({job.id for job in created}) == 1
        assert len((await other.list_jobs(JobFilter())).jobs) == 1

    async def test_a_user_with_a_full_queue_gets_no_further_job(self, story: Story) -> None:
        first = await story.queue()
        await story.repository.create_job(make_job(story.user), limits=LIMITS)
        for call in (
            story.repository.check_room(story.user.id, LIMITS),
            story.repository.create_job(make_job(story.user), limits=LIMITS),
        ):
            with pytest.raises(TooManyRequests) as refused:
                await call
            assert refused.value.retry_after
        assert len((await story.repository.list_jobs(JobFilter())).jobs) == 2
        await story.repository.request_cancel(first.id, None, "ada", at(1))
        await story.repository.check_room(story.user.id, LIMITS)
        await story.repository.create_job(make_job(story.user), limits=LIMITS)

    async def test_a_full_queue_takes_no_job_of_anybody(self, story: Story) -> None:
        bob = make_user("bob")
        await story.repository.create_user(bob)
        for _ in range(LIMITS.total):
            await story.queue()
        for call in (
            story.repository.check_room(bob.id, LIMITS),
            story.repository.create_job(make_job(bob), limits=LIMITS),
        ):
            with pytest.raises(Unavailable) as refused:
                await call
            assert refused.value.retry_after
        await story.claim()
        await story.repository.create_job(make_job(bob), limits=LIMITS)

    async def test_a_repetition_has_its_place_in_a_full_queue(self, story: Story) -> None:
        promise = Idempotency("key", "fingerprint")
        first = await story.repository.create_job(make_job(story.user), promise, LIMITS)
        await story.queue()
        assert await story.repository.create_job(make_job(story.user), promise, LIMITS) == first

    async def test_submissions_at_once_never_exceed_the_limit(
        self, story: Story, other: JobRepository
    ) -> None:
        replicas = (story.repository, other)
        created = await asyncio.gather(
            *(replicas[n % 2].create_job(make_job(story.user), limits=LIMITS) for n in range(20)),
            return_exceptions=True,
        )
        assert sum(isinstance(one, TooManyRequests) for one in created) == 18
        assert len((await other.list_jobs(JobFilter())).jobs) == LIMITS.per_user

    async def test_listings_are_newest_first(self, story: Story) -> None:
        jobs = [await story.queue(seconds) for seconds in (3, 1, 2)]
        twins = sorted([await story.queue(9), await story.queue(9)], key=lambda job: job.id, reverse=True)
        page = await story.repository.list_jobs(JobFilter())
        assert page.jobs == (*twins, jobs[0], jobs[2], jobs[1])
        assert page.next_cursor is None

    async def test_listings_filter(self, story: Story) -> None:
        repository, bob = story.repository, make_user("bob")
        await repository.create_user(bob)
        old = await story.queue(0)
        new = await story.queue(10)
        foreign = await repository.create_job(make_job(bob, at(5)))
        await repository.request_cancel(old.id, None, "ada", at(20))

        async def ids(**fields: Any) -> set[str]:
            return {job.id for job in (await repository.list_jobs(JobFilter(**fields))).jobs}

        assert await ids() == {old.id, new.id, foreign.id}
        assert await ids(user_id=story.user.id) == {old.id, new.id}
        assert await ids(user_id="nobody") == set()
        assert await ids(statuses=frozenset({JobStatus.CANCELLED})) == {old.id}
        assert await ids(statuses=frozenset({JobStatus.CANCELLED, JobStatus.QUEUED})) == {
            old.id,
            new.id,
            foreign.id,
        }
        assert await ids(created_after=at(5)) == {foreign.id, new.id}
        assert await ids(created_before=at(5)) == {old.id}
        assert await ids(user_id=bob.id, statuses=frozenset({JobStatus.CANCELLED})) == set()

    async def test_pages_add_up_to_the_whole_even_while_jobs_come(self, story: Story) -> None:
        jobs = [await story.queue(n // 3) for n in range(11)]  # several of the same second
        seen: list[str] = []
        cursor = None
        while True:
            page = await story.repository.list_jobs(JobFilter(cursor=cursor, limit=3))
            seen += [job.id for job in page.jobs]
            await story.queue(100)
            cursor = page.next_cursor
            if cursor is None:
                break
        assert sorted(seen) == sorted(job.id for job in jobs)
        assert len(page.jobs) == 2

    async def test_a_full_last_page_has_no_next_one(self, story: Story) -> None:
        for _ in range(3):
            await story.queue()
        assert (await story.repository.list_jobs(JobFilter(limit=3))).next_cursor is None

    @pytest.mark.parametrize(
        "cursor", ["", "x", "é", "!!!!", "bm90IGEgY3Vyc29y", "MjAyNi0wMS0wMiB4", "A" * 5000, BEFORE_TIME]
    )
    async def test_a_made_up_cursor_is_refused(self, story: Story, cursor: str) -> None:
        with pytest.raises(InvalidRequest):
            await story.repository.list_jobs(JobFilter(cursor=cursor))

    async def test_a_job_knows_its_place_in_the_queue(self, story: Story) -> None:
        second, first = await story.queue(2), await story.queue(1)
        assert await story.repository.queue_position(first.id) == 0
        assert await story.repository.queue_position(second.id) == 1
        await story.claim()
        assert await story.repository.queue_position(first.id) is None
        assert await story.repository.queue_position(second.id) == 0
        assert await story.repository.queue_position("unknown") is None

    async def test_a_queued_job_is_cancelled_at_once(self, story: Story) -> None:
        job = await story.queue()
        cancelled = await story.repository.request_cancel(job.id, story.user.id, "ada@example.org", at(5))
        assert cancelled == await story.job(job.id)
        assert (cancelled.status, cancelled.success, cancelled.reason) == (
            JobStatus.CANCELLED,
            False,
            Reason.CANCELLED,
        )
        assert (cancelled.end_time, cancelled.cancel_requested_by) == (at(5), "ada@example.org")
        assert "ada@example.org" in (cancelled.message or "")
        assert await story.timeline(job.id) == ["submitted", "cancel_requested", "cancelled"]
        assert await story.repository.claim_jobs(story.lease, 9, at(9)) == []

    async def test_of_a_running_job_the_cancel_is_requested_once(self, story: Story) -> None:
        job = await story.queue()
        await story.run()
        first = await story.repository.request_cancel(job.id, None, "ada", at(5))
        assert (first.status, first.cancel_requested_at, first.cancel_requested_by) == (
            JobStatus.RUNNING,
            at(5),
            "ada",
        )
        assert await story.repository.request_cancel(job.id, None, "bob", at(6)) == first
        assert (await story.timeline(job.id)).count("cancel_requested") == 1
        (attempt,) = await story.repository.open_attempts()
        assert attempt.job == first

    async def test_what_cannot_be_cancelled(self, story: Story) -> None:
        job = await story.queue()
        for user_id, job_id in (("somebody else", job.id), (None, "unknown")):
            with pytest.raises(JobNotFound):
                await story.repository.request_cancel(job_id, user_id, "bob", at(5))
        await story.repository.request_cancel(job.id, None, "ada", at(5))
        with pytest.raises(JobFinished):
            await story.repository.request_cancel(job.id, None, "ada", at(6))

    async def test_events_are_numbered_in_order(self, story: Story) -> None:
        job = await story.queue()
        event = JobEvent("note", at(1), {"text": "é", "n": 1, "f": 0.5, "b": True, "none": None})
        await story.repository.add_event(job.id, event)
        assert await story.repository.get_events(job.id, 1) == [replace(event, index=1)]
        assert await story.repository.get_events(job.id, 2) == []
        with pytest.raises(JobNotFound):
            await story.repository.add_event("unknown", event)

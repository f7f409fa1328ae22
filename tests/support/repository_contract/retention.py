"""The contract about pruning: marks, rows that go, and the totals that stay."""

from dataclasses import replace
from datetime import timedelta

import pytest

from ci_common.errors import JobNotFound
from ci_common.job_terms import JobStatus, Reason
from ci_common.models import (
    AuditAction,
    AuditEvent,
    ControllerLease,
    DailyTotal,
    FinishedJob,
    Idempotency,
    Job,
)
from ci_common.repository import JobRepository
from ci_common.verdict import verdict
from tests.support.repository_contract.story import SEAL, START, Story, at, make_job, make_user


async def _finished(story: Story, seconds: float = 3, reason: Reason | None = None) -> Job:
    job = await story.queue(archive_ref=f"archive-{seconds:g}")
    attempt = await story.run(f"container-{seconds:g}", seconds)
    assert await story.repository.finish_attempt(attempt.fence, verdict(reason), SEAL, at(seconds))
    return job


async def _counted(story: Story) -> dict[Reason | None, int]:
    return {total.reason: total.jobs for total in await story.repository.daily_totals()}


class RetentionContract:
    async def test_finished_jobs_are_the_terminal_ones_the_last_to_end_first(self, story: Story) -> None:
        first, second = await _finished(story, 3), await _finished(story, 4)
        await story.queue(5)
        await story.queue(6)
        await story.run("running", 7)
        assert await story.repository.finished_jobs() == [
            FinishedJob(second.id, at(4), "archive-4"),
            FinishedJob(first.id, at(3), "archive-3"),
        ]

    async def test_what_is_marked_is_gone_for_everybody_and_stays_so(
        self, story: Story, other: JobRepository
    ) -> None:
        job = await _finished(story)
        before = await story.job(job.id)
        assert await story.repository.mark_pruned(story.lease, archives=[job.id], logs=[job.id], now=at(9))
        assert await other.mark_pruned(None, archives=[job.id], logs=[job.id], now=at(10))
        assert await other.get_job(job.id) == replace(before, log_pruned_at=at(9))
        assert await other.archive_refs_in_use() == set()
        (found,) = await other.finished_jobs()
        assert (found.archive_pruned, found.log_pruned) == (True, True)

    async def test_archive_and_log_are_marked_apart(self, story: Story) -> None:
        one, two = await _finished(story, 3), await _finished(story, 4)
        await story.repository.mark_pruned(story.lease, archives=[one.id], logs=[two.id], now=at(9))
        assert await story.repository.archive_refs_in_use() == {"archive-4"}
        assert (await story.job(one.id)).log_pruned_at is None
        assert (await story.job(two.id)).log_pruned_at == at(9)

    async def test_nothing_of_a_job_that_has_not_ended_is_ever_pruned(self, story: Story) -> None:
        running, queued = await story.queue(0), await story.queue(1)
        await story.run()
        both = [running.id, queued.id]
        before = [await story.job(job_id) for job_id in both]
        assert await story.repository.mark_pruned(story.lease, archives=both, logs=both, now=at(9))
        assert await story.repository.remove_jobs(story.lease, both) == 0
        assert [await story.job(job_id) for job_id in both] == before
        assert await story.repository.archive_refs_in_use() == {"ref"}

    async def test_an_archive_is_in_use_while_any_job_needs_it(self, story: Story) -> None:
        ended = await _finished(story, 3)
        await story.queue(4, archive_ref="archive-3")
        await story.repository.mark_pruned(story.lease, archives=[ended.id], logs=[], now=at(9))
        assert await story.repository.archive_refs_in_use() == {"archive-3"}

    async def test_a_job_goes_with_all_its_rows_only_when_both_are_marked(self, story: Story) -> None:
        job = await _finished(story)
        assert await story.repository.remove_jobs(story.lease, [job.id]) == 0
        await story.repository.mark_pruned(story.lease, archives=[job.id], logs=[], now=at(9))
        assert await story.repository.remove_jobs(story.lease, [job.id]) == 0
        await story.repository.mark_pruned(story.lease, archives=[], logs=[job.id], now=at(9))
        assert await story.repository.existing_jobs([job.id, "unknown"]) == {job.id}
        assert await story.repository.remove_jobs(story.lease, [job.id, "unknown"]) == 1
        assert await story.repository.get_job(job.id) is None
        assert await story.repository.get_events(job.id) == []
        assert await story.repository.ended_attempts(["container-3"]) == {}
        assert await story.repository.existing_jobs([job.id]) == set()
        with pytest.raises(JobNotFound):
            await story.repository.request_cancel(job.id, None, "operator", at(10))

    async def test_a_stale_lease_prunes_nothing(self, story: Story, other: JobRepository) -> None:
        job = await _finished(story)
        await other.take_over("successor", at(5))
        before = await story.job(job.id)
        for lease in (story.lease, ControllerLease(story.lease.epoch + 1, "impostor")):
            assert not await story.repository.mark_pruned(lease, archives=[job.id], logs=[job.id], now=at(9))
        assert await story.job(job.id) == before
        await other.mark_pruned(None, archives=[job.id], logs=[job.id], now=at(9))
        assert await story.repository.remove_jobs(story.lease, [job.id]) == 0
        assert await other.existing_jobs([job.id]) == {job.id}

    async def test_an_idempotency_key_is_remembered_as_long_as_its_job(self, story: Story) -> None:
        promise = Idempotency("key", "fingerprint")
        job = await story.repository.create_job(make_job(story.user), promise)
        await story.repository.request_cancel(job.id, None, "operator", at(1))
        again = make_job(story.user)
        assert (await story.repository.create_job(again, promise)).id == job.id
        await story.repository.mark_pruned(None, archives=[job.id], logs=[job.id], now=at(9))
        assert (await story.repository.create_job(again, promise)).id == job.id
        await story.repository.remove_jobs(None, [job.id])
        assert (await story.repository.create_job(again, promise)).id == again.id

    # -- the audit trail ---------------------------------------------------------------------------------

    async def test_cancels_go_from_the_audit_trail_and_nothing_else_does(
        self, story: Story, other: JobRepository
    ) -> None:
        for second in (3, 4, 5):
            await story.repository.request_cancel((await story.queue()).id, None, "ada", at(second))
        await story.repository.record_audit(AuditEvent(at(6), "eve", AuditAction.BACKUP, "here", {}))
        cancels = await story.repository.audited_cancels()
        assert [(one.at, one.actor) for one in cancels] == [(at(5), "ada"), (at(4), "ada"), (at(3), "ada")]
        trail = await story.repository.list_audit()
        every_number = range(1, len(trail) + 10)
        await other.take_over("successor", at(7))
        assert await story.repository.remove_cancels(story.lease, every_number) == 0
        assert await story.repository.list_audit() == trail
        assert await story.repository.remove_cancels(None, [cancels[2].id, cancels[1].id]) == 2
        assert await other.audited_cancels() == cancels[:1]
        assert await other.remove_cancels(None, every_number) == 1
        kept = [event for event in trail if event.action is not AuditAction.JOB_CANCEL]
        assert await other.list_audit() == kept

    # -- totals ------------------------------------------------------------------------------------------

    async def test_every_way_to_end_is_counted_once(self, story: Story) -> None:
        await _finished(story, 3)
        await _finished(story, 4, Reason.TESTS_FAILED)
        await story.repository.request_cancel((await story.queue(5)).id, None, "operator", at(5))
        await story.queue(6)
        assert await story.release((await story.run("lost", 7)).fence, max_attempts=1)
        await story.queue(8)
        assert await story.repository.expire_queued(story.lease, timedelta(seconds=1), at(60))
        assert await _counted(story) == {
            None: 1,
            Reason.TESTS_FAILED: 1,
            Reason.CANCELLED: 1,
            Reason.INFRA: 1,
            Reason.QUEUE_TIMEOUT: 1,
        }

    async def test_a_verdict_that_comes_twice_counts_once(self, story: Story, other: JobRepository) -> None:
        await story.queue()
        fence = (await story.run()).fence
        assert await story.release(fence, max_attempts=3) is JobStatus.QUEUED
        assert await _counted(story) == {}
        fence = (await story.run("second", 4)).fence
        assert await story.repository.finish_attempt(fence, verdict(None), SEAL, at(5))
        assert not await other.finish_attempt(fence, verdict(Reason.CRASHED), SEAL, at(6))
        assert await other.daily_totals() == [DailyTotal(START.date(), story.user.id, None, 1)]

    async def test_totals_are_by_user_and_day_and_outlive_the_jobs(self, story: Story) -> None:
        bob = make_user("bob")
        await story.repository.create_user(bob)
        day = timedelta(days=1)
        for user, end in ((story.user, START), (story.user, START + day), (bob, START + day)):
            job = await story.repository.create_job(make_job(user))
            await story.repository.request_cancel(job.id, None, "operator", end)
        expected = [
            DailyTotal((START + day).date(), story.user.id, Reason.CANCELLED, 1),
            DailyTotal((START + day).date(), bob.id, Reason.CANCELLED, 1),
            DailyTotal(START.date(), story.user.id, Reason.CANCELLED, 1),
        ]
        jobs = [job.id for job in await story.repository.finished_jobs()]
        await story.repository.mark_pruned(None, archives=jobs, logs=jobs, now=at(9))
        assert await story.repository.remove_jobs(None, jobs) == 3
        assert await story.repository.daily_totals() == expected
        assert await story.repository.daily_totals((START + day).date()) == expected[:2]

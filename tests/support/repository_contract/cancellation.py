"""The contract about callers that are cancelled at any moment."""

import asyncio
import random

from ci_common.errors import (
    CIError,
)
from ci_common.job_terms import JobStatus
from ci_common.models import JobFilter
from ci_common.repository import JobRepository
from tests.support.repository_contract.story import (
    Backend,
    Story,
    at,
    make_job,
)


class CancellationContract:
    async def test_cancelled_callers_leave_whole_transactions_and_no_locks(
        self, story: Story, other: JobRepository, backend: Backend
    ) -> None:
        chance = random.Random(7)
        present: set[str] = set()
        for _ in range(60):
            jobs = [make_job(story.user) for _ in range(3)]
            tasks = [asyncio.create_task(story.repository.create_job(job)) for job in jobs]
            await _wait_a_little(chance)
            for task in tasks:
                task.cancel()
            outcomes = await asyncio.gather(*tasks, return_exceptions=True)
            assert not backend.lock_out(backend.location)
            for job, outcome in zip(jobs, outcomes, strict=True):
                assert not isinstance(outcome, CIError)
                found = await other.get_job(job.id)
                events = await other.get_events(job.id)
                assert len(events) == (0 if found is None else 1)
                assert found is not None or isinstance(outcome, asyncio.CancelledError)
                present |= {job.id} if found else set()
        # What was absent when its caller knew of the cancellation did not come into being later.
        assert {job.id for job in (await other.list_jobs(JobFilter())).jobs} == present

    async def test_a_cancelled_claim_leaves_no_half_claimed_job(
        self, story: Story, other: JobRepository, backend: Backend
    ) -> None:
        chance = random.Random(11)
        for n in range(60):
            await story.queue(n)
        for _ in range(20):
            task = asyncio.create_task(story.repository.claim_jobs(story.lease, 3, at(99)))
            await _wait_a_little(chance)
            task.cancel()
            await asyncio.wait([task])
            assert not backend.lock_out(backend.location)
        claimed = (await other.list_jobs(JobFilter(statuses=frozenset({JobStatus.CLAIMED})))).jobs
        assert {attempt.job.id for attempt in await other.open_attempts()} == {job.id for job in claimed}
        assert len(claimed) % 3 == 0


async def _wait_a_little(chance: random.Random) -> None:
    for _ in range(chance.randrange(6)):
        await asyncio.sleep(0)
    if chance.random() < 0.5:
        await asyncio.sleep(chance.random() * 0.002)  # any moment of a transaction, on purpose

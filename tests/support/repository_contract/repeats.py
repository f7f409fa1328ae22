"""The contract about jobs that take over the tree of an earlier job of the same user."""

import pytest

from ci_common.errors import (
    ArchivePruned,
    IdempotencyConflict,
    JobNotFound,
    PriorityNotAllowed,
    TooManyRequests,
    Unauthorized,
)
from ci_common.job_terms import JobOptions, Priority
from ci_common.models import Idempotency, Job, JobFilter, QueueLimits, Repeat
from ci_common.repository import JobRepository
from ci_common.verdict import verdict
from tests.support.repository_contract.blobs import ONE, a_pack
from tests.support.repository_contract.story import SEAL, Story, at, make_job, make_user


async def a_source(story: Story) -> Job:
    return await story.queue(archive_ref="the tree", options=JobOptions(("-x",), 60.0))


async def jobs_of(story: Story) -> int:
    return len((await story.repository.list_jobs(JobFilter())).jobs)


class RepeatsContract:
    async def test_a_repeat_has_the_tree_and_what_it_does_not_change_of_the_options(
        self, story: Story, other: JobRepository
    ) -> None:
        source = await a_source(story)
        wishes = [
            Repeat(source.id, "a", {}),
            Repeat(source.id, "b", {"timeout_seconds": None, "priority": Priority.LOW}),
        ]
        jobs = await other.repeat_jobs(story.user.id, wishes, at(5))
        assert jobs == [await story.job("a"), await story.job("b")]
        assert {(job.archive_ref, job.repeat_of, job.created_at) for job in jobs} == {
            ("the tree", source.id, at(5))
        }
        assert [job.options for job in jobs] == [
            source.options,
            JobOptions(("-x",), None, priority=Priority.LOW),
        ]
        [event] = await other.get_events("a")
        assert (event.type, event.data) == ("submitted", {"repeat_of": source.id})

    async def test_what_is_somebody_elses_cannot_be_repeated(self, story: Story) -> None:
        bob = make_user("bob")
        await story.repository.create_user(bob)
        theirs = await story.repository.create_job(make_job(bob))
        mine = await a_source(story)
        for source in (theirs.id, "nobody"):
            with pytest.raises(JobNotFound):
                await story.repository.repeat_jobs(
                    story.user.id, [Repeat(mine.id, "a", {}), Repeat(source, "b", {})], at(5)
                )
        assert await jobs_of(story) == 2

    async def test_all_come_within_the_limits_or_none(self, story: Story) -> None:
        source = await a_source(story)
        wishes = [Repeat(source.id, name, {}) for name in "abc"]
        with pytest.raises(TooManyRequests):
            await story.repository.repeat_jobs(story.user.id, wishes, at(5), QueueLimits(3, 9))
        urgent = [*wishes, Repeat(source.id, "d", {"priority": Priority.HIGH})]
        with pytest.raises(PriorityNotAllowed):
            await story.repository.repeat_jobs(story.user.id, urgent, at(5))
        assert await jobs_of(story) == 1
        assert len(await story.repository.repeat_jobs(story.user.id, wishes, at(5), QueueLimits(4, 4))) == 3

    async def test_a_repetition_returns_the_same_jobs_whatever_became_of_the_source(
        self, story: Story
    ) -> None:
        source = await a_source(story)
        run = await story.run("c1", 2)
        await story.repository.finish_attempt(run.fence, verdict(None), SEAL, at(3))

        def wishes(*names: str, said: str = "said") -> list[Repeat]:
            return [Repeat(source.id, name, {}, Idempotency(f"key{n}", said)) for n, name in enumerate(names)]

        first = await story.repository.repeat_jobs(story.user.id, wishes("a", "b"), at(5))
        await story.repository.mark_pruned(None, archives=[source.id], logs=[], now=at(6))
        assert await story.repository.repeat_jobs(story.user.id, wishes("c", "d"), at(7)) == first
        with pytest.raises(IdempotencyConflict):
            await story.repository.repeat_jobs(story.user.id, wishes("c", "d", said="else"), at(7))
        with pytest.raises(ArchivePruned):
            await story.repository.repeat_jobs(story.user.id, [Repeat(source.id, "e", {})], at(8))

    async def test_who_is_locked_out_repeats_nothing(self, story: Story) -> None:
        source = await a_source(story)
        await story.repository.set_user_active(story.user.id, active=False, now=at(1))
        with pytest.raises(Unauthorized):
            await story.repository.repeat_jobs(story.user.id, [Repeat(source.id, "a", {})], at(2))

    async def test_a_repeat_needs_the_packs_of_its_tree(self, story: Story) -> None:
        await story.repository.add_pack(story.user.id, a_pack("pack", ONE), at(0))
        source = await story.repository.create_job(make_job(story.user, at(1)), packs=["pack"])
        await story.repository.repeat_jobs(story.user.id, [Repeat(source.id, "a", {})], at(50))
        await story.repository.request_cancel(source.id, None, "somebody", at(51))
        await story.repository.mark_pruned(None, archives=[source.id], logs=[], now=at(60))
        [pack] = await story.repository.packs()
        assert (pack.needed, pack.used_at) == (True, at(50))

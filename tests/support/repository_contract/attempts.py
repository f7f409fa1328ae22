"""The contract about what the holder of an attempt writes: fenced, once, whole."""

import asyncio
from dataclasses import replace

import pytest

from ci_common.errors import (
    Conflict,
)
from ci_common.job_terms import TRANSITIONS, JobOptions, JobStatus, Reason
from ci_common.models import ImageUse
from ci_common.verdict import ENDINGS, Ending, verdict
from tests.support.repository_contract.story import SEAL, Story, all_fenced_writes, at


class AttemptsContract:
    async def test_a_started_job_is_running(self, story: Story) -> None:
        job = await story.queue()
        fence = (await story.claim()).fence
        assert await story.repository.mark_started(fence, "container", "image", at(3))
        running = await story.job(job.id)
        assert (running.status, running.start_time, running.image_id) == (JobStatus.RUNNING, at(3), "image")
        (attempt,) = await story.repository.open_attempts()
        assert (attempt.container_id, attempt.image_id, attempt.started_at) == ("container", "image", at(3))
        assert await story.timeline(job.id) == ["submitted", "claimed", "running"]

    @pytest.mark.parametrize("cached", [None, False, True])
    async def test_a_started_job_tells_whether_its_image_was_kept(
        self, story: Story, cached: bool | None
    ) -> None:
        job = await story.queue()
        fence = (await story.claim()).fence
        assert (await story.job(job.id)).image_cached is None
        assert await story.repository.mark_started(fence, "container", "image", at(3), cached)
        running = await story.job(job.id)
        assert (running.image_id, running.image_cached) == ("image", cached)
        assert (await story.repository.get_events(job.id))[-1].data["image_cached"] is cached
        await story.release(fence)
        released = await story.job(job.id)
        assert (released.image_id, released.image_cached) == (None, None)

    async def test_an_image_was_used_when_the_last_attempt_started_in_it(self, story: Story) -> None:
        assert await story.repository.image_uses() == {}
        for number, image in enumerate(("one", "two", "one")):
            await story.queue(number)
            fence = (await story.claim(number)).fence
            assert await story.repository.mark_started(fence, f"container {number}", image, at(10 + number))
            if number < 2:
                await story.release(fence, 20, max_attempts=1, not_before=at(99))
        await story.queue(5)
        await story.claim(5)  # it has no container yet, so no image
        assert await story.repository.image_uses() == {
            "one": ImageUse(at(12), is_open=True),
            "two": ImageUse(at(11), is_open=False),
        }

    async def test_starting_again_is_the_same_only_in_the_same_container(self, story: Story) -> None:
        job = await story.queue()
        fence = (await story.run(seconds=3)).fence
        assert await story.repository.mark_started(fence, "container", "image", at(9))
        assert not await story.repository.mark_started(fence, "another", "image", at(9))
        assert (await story.job(job.id)).start_time == at(3)
        assert (await story.timeline(job.id)).count("running") == 1

    async def test_a_container_belongs_to_one_attempt(self, story: Story) -> None:
        await story.queue()
        await story.run("container")
        await story.queue(1)
        claimed = await story.claim()
        with pytest.raises(Conflict):
            await story.repository.mark_started(claimed.fence, "container", "image", at(9))
        assert (await story.job(claimed.job.id)).status is JobStatus.CLAIMED

    async def test_the_first_beginning_counts(self, story: Story) -> None:
        await story.queue()
        fence = (await story.run(seconds=2)).fence
        assert await story.repository.mark_begun(fence, at(9))
        (attempt,) = await story.repository.open_attempts()
        assert attempt.begun_at == at(2)

    async def test_the_first_decision_to_stop_wins(self, story: Story) -> None:
        await story.queue()
        fence = (await story.run()).fence
        first = await story.repository.record_stop(fence, Reason.TIMEOUT, "30 minutes are over", at(5))
        assert first is not None
        assert (first.reason, first.at, first.message) == (Reason.TIMEOUT, at(5), "30 minutes are over")
        assert await story.repository.record_stop(fence, Reason.CANCELLED, None, at(6)) == first
        (attempt,) = await story.repository.open_attempts()
        assert attempt.stop == first

    @pytest.mark.parametrize("ending", ENDINGS, ids=lambda ending: str(ending.reason))
    async def test_every_verdict_of_the_table_can_be_recorded(self, story: Story, ending: Ending) -> None:
        job = await story.queue()
        fence = (await story.run()).fence
        final = verdict(ending.reason, "What happened.", 1)
        assert await story.repository.finish_attempt(fence, final, SEAL, at(9))
        done = await story.job(job.id)
        assert (done.status, done.success, done.reason) == (
            ending.status,
            ending.reason is None,
            ending.reason,
        )
        assert (done.message, done.exit_code, done.end_time) == ("What happened.", 1, at(9))
        assert (done.log_size, done.log_sha256) == (SEAL.size, SEAL.sha256)
        assert (await story.timeline(job.id))[-1] == ending.status.value
        assert await story.repository.ended_attempts(["container"]) == {"container": (job.id, 1)}

    async def test_a_claimed_job_cannot_have_been_tested(self, story: Story) -> None:
        assert JobStatus.COMPLETED not in TRANSITIONS[JobStatus.CLAIMED]
        job = await story.queue()
        fence = (await story.claim()).fence
        assert not await story.repository.finish_attempt(fence, verdict(None), SEAL, at(9))
        assert (await story.job(job.id)).status is JobStatus.CLAIMED
        assert await story.repository.finish_attempt(fence, verdict(Reason.BAD_ARCHIVE), None, at(9))

    async def test_verdicts_at_the_same_time_are_each_judged_by_itself(self, story: Story) -> None:
        for n in range(4):
            await story.queue(n)
        running, failing, unstarted = (await story.run("a")), (await story.run("b")), (await story.claim())
        pool = (await story.queue(5, options=JobOptions(pool="gpu"))).id
        agent = await story.agent("rack", pool="gpu")
        (held,) = await story.repository.claim_for_agent(agent.lease, 1, at(6))
        stale = replace((await story.claim()).fence, token="not that")
        passed, failed = verdict(None), verdict(Reason.TESTS_FAILED, "1 failed", 1)
        asked = [
            (running.fence, passed),
            (unstarted.fence, passed),  # only what ran can have passed
            (failing.fence, failed),
            (stale, passed),
            (running.fence, failed),  # it has its verdict
            (held.fence, verdict(Reason.BAD_ARCHIVE)),
            (unstarted.fence, verdict(Reason.BAD_ARCHIVE)),
        ]
        answers = await asyncio.gather(
            *(story.repository.finish_attempt(fence, final, SEAL, at(9)) for fence, final in asked)
        )
        assert answers == [True, False, True, False, False, True, True]
        jobs = [await story.job(one.job.id) for one in (running, failing, unstarted, held)]
        assert [job.reason for job in jobs] == [
            None,
            Reason.TESTS_FAILED,
            Reason.BAD_ARCHIVE,
            Reason.BAD_ARCHIVE,
        ]
        assert (jobs[1].message, jobs[1].exit_code, jobs[1].log_size, jobs[1].end_time) == (
            "1 failed",
            1,
            SEAL.size,
            at(9),
        )
        assert (await story.timeline(running.job.id))[-2:] == ["running", "completed"]
        assert (await story.timeline(pool)) == ["submitted", "claimed", "failed"]
        assert [one.fence.job_id for one in await story.repository.open_attempts()] == [stale.job_id]
        counted = {total.reason: total.jobs for total in await story.repository.daily_totals()}
        assert counted == {None: 1, Reason.TESTS_FAILED: 1, Reason.BAD_ARCHIVE: 2}
        (known,) = await story.repository.list_agents()
        assert (known.jobs_completed, known.jobs_running) == (1, 0)

    async def test_a_verdict_is_final(self, story: Story) -> None:
        job = await story.queue()
        fence = (await story.run()).fence
        assert await story.repository.finish_attempt(fence, verdict(Reason.TESTS_FAILED), SEAL, at(9))
        done, timeline = await story.job(job.id), await story.timeline(job.id)
        for write in all_fenced_writes(story, fence):
            assert not await write()
        assert await story.job(job.id) == done
        assert await story.timeline(job.id) == timeline

    @pytest.mark.parametrize("field", ["job_id", "attempt", "token"])
    async def test_a_fence_wrong_in_one_part_changes_nothing(self, story: Story, field: str) -> None:
        await story.queue(1)
        bystander = await story.run("other container")
        job = await story.queue()
        fence = (await story.run()).fence
        wrong = {"job_id": bystander.fence.job_id, "attempt": 2, "token": bystander.fence.token}
        stale = replace(fence, **{field: wrong[field]})
        before = (await story.repository.open_attempts(), await story.timeline(job.id))
        for write in all_fenced_writes(story, stale):
            assert not await write()
        assert (await story.repository.open_attempts(), await story.timeline(job.id)) == before

    async def test_a_released_job_is_queued_again_and_clean(self, story: Story) -> None:
        job = await story.queue()
        fence = (await story.run()).fence
        assert await story.release(fence, not_before=at(60), log=SEAL) is JobStatus.QUEUED
        again = await story.job(job.id)
        assert (again.status, again.attempt, again.not_before) == (JobStatus.QUEUED, 1, at(60))
        assert (again.start_time, again.end_time, again.success, again.log_size) == (None, None, None, None)
        assert again.message == "The engine lost it."
        assert await story.timeline(job.id) == ["submitted", "claimed", "running", "released"]
        (second,) = await story.repository.claim_jobs(story.lease, 1, at(60))
        assert (second.fence.attempt, second.job.message) == (2, None)
        assert await story.release(fence) is None

    async def test_only_attempts_that_had_begun_are_charged(self, story: Story) -> None:
        job = await story.queue()
        for _ in range(5):
            assert await story.release((await story.claim()).fence, max_attempts=2) is JobStatus.QUEUED
        assert await story.release((await story.run("c1")).fence, max_attempts=2) is JobStatus.QUEUED
        assert await story.release((await story.claim()).fence, max_attempts=2) is JobStatus.QUEUED
        last = (await story.run("c2")).fence
        assert await story.release(last, max_attempts=2, log=SEAL) is JobStatus.DEAD_LETTERED
        dead = await story.job(job.id)
        assert (dead.reason, dead.success, dead.message) == (Reason.INFRA, False, "The engine lost it.")
        assert (dead.attempt, dead.log_size, dead.end_time) == (8, SEAL.size, at(3))

    @pytest.mark.parametrize("own", [1, 3])
    async def test_the_submitter_says_how_many_attempts_there_are(self, story: Story, own: int) -> None:
        await story.queue(options=JobOptions(max_attempts=own))
        for n in range(own - 1):
            assert await story.release((await story.run(f"c{n}")).fence, max_attempts=2) is JobStatus.QUEUED
        last = (await story.run("last")).fence
        assert await story.release(last, max_attempts=2) is JobStatus.DEAD_LETTERED

    async def test_a_released_job_with_a_cancel_request_is_cancelled(self, story: Story) -> None:
        job = await story.queue()
        fence = (await story.run()).fence
        await story.repository.request_cancel(job.id, None, "ada", at(3))
        assert await story.release(fence, max_attempts=1) is JobStatus.CANCELLED
        cancelled = await story.job(job.id)
        assert (cancelled.status, cancelled.reason) == (JobStatus.CANCELLED, Reason.CANCELLED)
        assert await story.repository.claim_jobs(story.lease, 1, at(9)) == []

    async def test_the_archives_of_all_jobs_are_in_use(self, story: Story) -> None:
        for ref in ("a", "b", "a"):
            await story.queue(archive_ref=ref)
        assert await story.repository.archive_refs_in_use() == {"a", "b"}

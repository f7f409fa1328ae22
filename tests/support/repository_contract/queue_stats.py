"""The contract about the queue's statistics."""

from ci_common.job_terms import JobOptions, JobStatus, Priority, Reason
from ci_common.queue_stats import Depth, Ended, QueueFigures
from ci_common.verdict import verdict
from tests.support.repository_contract.story import SEAL, Story, at


class QueueStatsContract:
    async def test_an_empty_queue_has_figures_too(self, story: Story) -> None:
        assert await story.repository.queue_figures(at(0)) == QueueFigures((), (), (), (), None)

    async def test_what_stands_where_is_counted_by_pool_and_priority(self, story: Story) -> None:
        for n in range(2):
            await story.queue(n)
        await story.run("c1", 5)
        await story.claim(6)
        await story.queue(7, options=JobOptions(priority=Priority.LOW))
        oldest = await story.queue(7)
        figures = await story.repository.queue_figures(at(0))
        assert set(figures.depths) == {
            Depth(JobStatus.RUNNING, "default", Priority.NORMAL, 1),
            Depth(JobStatus.CLAIMED, "default", Priority.NORMAL, 1),
            Depth(JobStatus.QUEUED, "default", Priority.NORMAL, 1),
            Depth(JobStatus.QUEUED, "default", Priority.LOW, 1),
        }
        assert len(figures.depths) == 4
        assert figures.oldest_at == oldest.created_at

    async def test_what_ended_in_the_window_is_told_with_its_waits_and_runs(self, story: Story) -> None:
        await story.queue(0)
        early = await story.run("c0", 1)
        assert await story.repository.finish_attempt(early.fence, verdict(None), SEAL, at(50))
        for n, reason in enumerate((None, Reason.TESTS_FAILED, Reason.OOM)):
            await story.queue(100)
            run = await story.run(f"c{n + 1}", 110 + n)
            assert await story.repository.finish_attempt(run.fence, verdict(reason), SEAL, at(150))
        cancelled = await story.queue(160)
        await story.repository.request_cancel(cancelled.id, None, "somebody", at(161))
        figures = await story.repository.queue_figures(at(50))
        assert set(figures.ended) == {
            Ended(JobStatus.COMPLETED, success=True, jobs=1),
            Ended(JobStatus.COMPLETED, success=False, jobs=1),
            Ended(JobStatus.FAILED, success=False, jobs=1),
            Ended(JobStatus.CANCELLED, success=False, jobs=1),
        }
        assert sorted(figures.waits) == [10, 11, 12]
        assert sorted(figures.runs) == [38, 39, 40]

    async def test_the_wait_lasts_until_the_attempt_that_counted(self, story: Story) -> None:
        await story.queue(0)
        await story.release((await story.run("c1", 10)).fence, 20)
        again = await story.run("c2", 30)
        assert await story.release(again.fence, 45, max_attempts=2) is JobStatus.DEAD_LETTERED
        figures = await story.repository.queue_figures(at(0))
        assert (figures.waits, figures.runs) == ((30.0,), (15.0,))

"""The contract about a queue that is paused."""

from datetime import timedelta

from ci_common.models import AuditAction, QueuePause
from ci_common.repository import JobRepository
from ci_common.verdict import verdict
from tests.support.repository_contract.story import SEAL, Story, at


class PausingContract:
    async def test_nothing_is_claimed_while_paused_and_what_runs_goes_on(
        self, story: Story, other: JobRepository
    ) -> None:
        await story.queue(0)
        queued = await story.queue(1)
        running = await story.run()
        pause = await story.repository.pause_queue("new disks", at(3), "eve")
        assert pause == QueuePause(at(3), "eve", "new disks") == await other.queue_pause()
        assert await story.repository.count_queued(at(4)) == 0
        assert await other.claim_jobs(story.lease, 9, at(4)) == []
        assert await story.repository.finish_attempt(running.fence, verdict(None), SEAL, at(5))
        assert await story.repository.queue_position(queued.id) == 0
        assert await other.resume_queue(at(6), "eve")
        assert await story.repository.queue_pause() is None
        assert (await story.claim(7)).job.id == queued.id

    async def test_a_pause_is_there_for_the_next_controller(self, story: Story) -> None:
        await story.queue()
        await story.repository.pause_queue(None, at(1))
        successor = await story.repository.take_over("successor", at(2))
        assert await story.repository.claim_jobs(successor, 9, at(3)) == []

    async def test_the_first_pause_stands_and_to_resume_twice_is_nothing(self, story: Story) -> None:
        assert not await story.repository.resume_queue(at(1))
        first = await story.repository.pause_queue("first", at(2))
        assert await story.repository.pause_queue("second", at(3)) == first
        assert await story.repository.resume_queue(at(4), "eve")
        assert not await story.repository.resume_queue(at(5))
        told = [
            (event.action, event.subject, event.actor, dict(event.details))
            for event in (await story.repository.list_audit())[-2:]
        ]
        assert told == [
            (AuditAction.QUEUE_PAUSE, "queue", "operator", {"reason": "first"}),
            (AuditAction.QUEUE_RESUME, "queue", "eve", {}),
        ]

    async def test_waiting_for_the_end_of_a_pause_is_no_waiting(self, story: Story) -> None:
        job = await story.queue(0)
        await story.repository.pause_queue(None, at(1))
        limit = timedelta(minutes=2)
        assert await story.repository.expire_queued(story.lease, limit, at(500)) == []
        await story.repository.resume_queue(at(600))
        assert await story.repository.expire_queued(story.lease, limit, at(719)) == []
        assert await story.repository.expire_queued(story.lease, limit, at(721)) == [job.id]

"""The contract about jobs that infrastructure lost too often, and how an operator has them run again."""

import pytest

from ci_common.dead_letters import DeadLetter
from ci_common.errors import ArchivePruned, Conflict, JobNotFound
from ci_common.job_terms import JobOptions, JobStatus, Priority, Reason
from ci_common.models import AuditAction, AuditEvent, Job, LimitChange
from ci_common.repository import JobRepository
from tests.support.repository_contract.blobs import ONE, a_pack
from tests.support.repository_contract.story import Story, at, make_job

BY = "operator (eve)"


async def a_dead_job(story: Story, seconds: float = 0, **fields: object) -> Job:
    """A job was lost twice, the first time before it had begun."""
    job = await story.queue(seconds, **fields)
    await story.release((await story.claim(seconds + 1)).fence, seconds + 2)
    last = await story.run(f"container-{job.id}", seconds + 3)
    assert await story.release(last.fence, seconds + 4, max_attempts=1) is JobStatus.DEAD_LETTERED
    return await story.job(job.id)


class DeadLettersContract:
    async def test_dead_letters_are_listed_the_latest_first(self, story: Story) -> None:
        old, new = await a_dead_job(story, 0), await a_dead_job(story, 10)
        await story.queue(20)
        email = story.user.email
        assert await story.repository.dead_letters(9) == [
            DeadLetter(new, email, archive_pruned=False, requeued_as=None),
            DeadLetter(old, email, archive_pruned=False, requeued_as=None),
        ]
        assert [one.job.id for one in await story.repository.dead_letters(1)] == [new.id]

    async def test_a_dead_letter_is_shown_with_its_attempts(self, story: Story) -> None:
        dead = await a_dead_job(story)
        queued = await story.queue(10)
        found = await story.repository.dead_letter(dead.id)
        assert found is not None
        first, second = found.attempts
        assert (first.number, first.claimed_at, first.started_at, first.begun_at) == (1, at(1), None, None)
        assert (second.number, second.started_at, second.begun_at) == (2, at(3), at(3))
        assert (second.ended_at, second.reason) == (at(4), Reason.INFRA)
        assert second.message == "The engine lost it."
        assert second.holder == "controller"
        assert await story.repository.dead_letter(queued.id) is None

    async def test_requeued_it_is_a_new_job_and_the_old_one_stays(
        self, story: Story, other: JobRepository
    ) -> None:
        await story.repository.set_user_limits(story.user.id, LimitChange(Priority.HIGH), at(0))
        options = JobOptions(("-x",), 60.0, fresh=True, priority=Priority.HIGH)
        dead = await a_dead_job(story, archive_ref="the tree", options=options)
        await story.repository.set_user_limits(story.user.id, LimitChange(Priority.LOW), at(5))
        [again] = await other.requeue_dead({dead.id: "new"}, at(6), BY)
        assert (
            again
            == Job("new", story.user.id, at(6), "the tree", options=options, repeat_of=dead.id)
            == await story.job("new")
        )
        assert await story.job(dead.id) == dead
        [event] = await story.repository.get_events("new")
        assert (event.type, event.data) == ("submitted", {"repeat_of": dead.id, "by": BY})
        assert (await story.repository.list_audit())[-1] == AuditEvent(
            at(6), BY, AuditAction.JOB_REQUEUE, dead.id, {"user_id": story.user.id, "job_id": "new"}
        )
        [told] = await story.repository.dead_letters(9)
        assert told.requeued_as == "new"
        assert (await story.claim(7)).job.id == "new"

    async def test_a_job_is_requeued_once(self, story: Story) -> None:
        dead = await a_dead_job(story)
        await story.repository.requeue_dead({dead.id: "new"}, at(6), BY)
        with pytest.raises(Conflict, match="queued again already, as job new"):
            await story.repository.requeue_dead({dead.id: "newer"}, at(7), BY)

    async def test_all_are_requeued_or_none(self, story: Story) -> None:
        dead, queued = await a_dead_job(story), await story.queue(10)
        for wrong, error in ((queued.id, Conflict), ("nobody", JobNotFound)):
            with pytest.raises(error):
                await story.repository.requeue_dead({dead.id: "a", wrong: "b"}, at(11), BY)
        assert await story.repository.get_job("a") is None
        assert await story.repository.requeue_dead({}, at(12), BY) == []

    async def test_what_was_pruned_cannot_be_requeued(self, story: Story) -> None:
        dead = await a_dead_job(story)
        await story.repository.mark_pruned(None, archives=[dead.id], logs=[], now=at(9))
        with pytest.raises(ArchivePruned, match="submit the tree again"):
            await story.repository.requeue_dead({dead.id: "new"}, at(10), BY)
        assert [one.archive_pruned for one in await story.repository.dead_letters(9)] == [True]

    async def test_nothing_is_requeued_for_who_is_locked_out(self, story: Story) -> None:
        dead = await a_dead_job(story)
        await story.repository.set_user_active(story.user.id, active=False, now=at(9))
        with pytest.raises(Conflict, match=f"ci-admin user activate {story.user.email}"):
            await story.repository.requeue_dead({dead.id: "new"}, at(10), BY)

    async def test_the_new_job_needs_what_the_tree_needs(self, story: Story) -> None:
        await story.repository.add_pack(story.user.id, a_pack("pack", ONE), at(0))
        job = await story.repository.create_job(make_job(story.user, at(1)), packs=["pack"])
        last = await story.run("c1", 2)
        assert await story.release(last.fence, 3, max_attempts=1) is JobStatus.DEAD_LETTERED
        await story.repository.requeue_dead({job.id: "new"}, at(50), BY)
        await story.repository.mark_pruned(None, archives=[job.id], logs=[], now=at(60))
        [pack] = await story.repository.packs()
        assert (pack.needed, pack.used_at) == (True, at(50))
        assert await story.repository.remove_packs(None, ["pack"]) == []
        assert await story.repository.archive_refs_in_use() == {job.archive_ref}

"""The contract about pools that may run only so many jobs at the same time."""

import asyncio

from ci_common.job_terms import JobOptions
from ci_common.models import AuditAction, PoolLimit
from ci_common.repository import JobRepository
from ci_common.verdict import verdict
from tests.support.repository_contract.story import SEAL, Story, at

GPU = JobOptions(pool="gpu")


class PoolsContract:
    async def test_no_more_jobs_of_a_pool_are_under_way_than_its_limit(
        self, story: Story, other: JobRepository
    ) -> None:
        first, second = await story.agent("rack-1"), await story.agent("rack-2")
        for seconds in range(4):
            await story.queue(seconds, options=GPU)
        assert await story.repository.limit_pool("gpu", 2, at(5), "eve") == PoolLimit("gpu", 2, 0)
        assert await other.count_queued(at(6), "gpu") == 2
        [held] = await story.repository.claim_for_agent(first.lease, 1, at(6))
        assert await other.full_pools() == ()
        assert await other.count_queued(at(6), "gpu") == 1
        assert len(await other.claim_for_agent(second.lease, 9, at(7))) == 1
        assert await other.count_queued(at(7), "gpu") == 0
        assert await other.claim_for_agent(first.lease, 9, at(7)) == []
        full = await other.full_pools()
        assert full == (PoolLimit("gpu", 2, 2),) == (await other.queue_view(story.user.id, 9)).full_pools
        assert await story.repository.mark_started(held.fence, "c1", "image", at(8))
        assert await story.repository.finish_attempt(held.fence, verdict(None), SEAL, at(8))
        assert len(await other.claim_for_agent(first.lease, 9, at(9))) == 1

    async def test_a_limit_is_of_its_pool_alone_and_can_be_taken_away(self, story: Story) -> None:
        agent, idle = await story.agent(), await story.agent("rack-2")
        for seconds in range(3):
            await story.queue(seconds, options=GPU)
        await story.queue(3)
        await story.repository.limit_pool("gpu", 2, at(5))
        assert len(await story.repository.claim_for_agent(agent.lease, 9, at(6))) == 2
        assert await story.repository.limit_pool("gpu", 1, at(7)) == PoolLimit("gpu", 1, 2)
        assert await story.repository.count_queued(at(8), "gpu") == 0
        assert len(await story.repository.claim_jobs(story.lease, 9, at(8))) == 1
        assert await story.repository.limit_pool("gpu", None, at(9)) is None
        assert await story.repository.pool_limits() == []
        assert len(await story.repository.claim_for_agent(idle.lease, 9, at(10))) == 1
        told = [
            (event.action, event.subject, dict(event.details))
            for event in await story.repository.list_audit()
        ]
        limited = [(AuditAction.POOL_LIMIT, "gpu", {"max_running": limit}) for limit in (2, 1, None)]
        assert [event for event in told if event[0] is AuditAction.POOL_LIMIT] == limited

    async def test_agents_that_claim_at_once_do_not_pass_the_limit(
        self, story: Story, other: JobRepository
    ) -> None:
        agents = [await story.agent(f"rack-{number}") for number in range(4)]
        for seconds in range(8):
            await story.queue(seconds, options=GPU)
        await story.repository.limit_pool("gpu", 3, at(9))
        repositories = (story.repository, other)
        claimed = await asyncio.gather(
            *(repositories[n % 2].claim_for_agent(agent.lease, 2, at(10)) for n, agent in enumerate(agents))
        )
        assert sum(map(len, claimed)) == 3

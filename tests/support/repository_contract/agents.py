"""The contract about agents: who holds what, and what becomes of it when one is lost."""

import asyncio
from dataclasses import replace
from datetime import timedelta

import pytest

from ci_common.errors import Conflict, NotFound, Unauthorized
from ci_common.job_terms import MOST_UNBEGUN, JobOptions, JobStatus, Reason
from ci_common.models import (
    Agent,
    AgentHealth,
    AgentLease,
    AgentState,
    Attempt,
    AuditAction,
    ControllerLease,
    ImageUse,
    Job,
    LimitChange,
)
from ci_common.repository import JobRepository
from ci_common.verdict import verdict
from tests.support.repository_contract.story import PROFILE, SEAL, Story, all_fenced_writes, at

MOST_AT_ONCE = 32  # jobs of one claim
GPU = JobOptions(pool="gpu")


async def claimed_by(story: Story, agent: Agent, seconds: float = 5, limit: int = 9) -> list[str]:
    attempts = await story.repository.claim_for_agent(agent.lease, limit, at(seconds))
    return [attempt.job.id for attempt in attempts]


async def running(story: Story, agent: Agent, container: str = "c1", seconds: float = 5) -> Attempt:
    """The agent's next job runs, and is charged."""
    [attempt] = await story.repository.claim_for_agent(agent.lease, 1, at(seconds))
    assert await story.repository.mark_started(attempt.fence, container, "image", at(seconds))
    assert await story.repository.mark_begun(attempt.fence, at(seconds))
    return attempt


async def seen(story: Story, agent: Agent) -> Agent:
    """Return the agent as it is now."""
    found = await story.repository.find_agent(agent.id)
    assert found is not None
    return found


class AgentsContract:
    async def test_an_agent_registers_with_its_key_and_is_known_by_it(
        self, story: Story, other: JobRepository
    ) -> None:
        agent = await story.agent(seconds=3)
        assert agent.profile == PROFILE
        assert (agent.id, agent.state, agent.lease.epoch) == ("key-rack-1", AgentState.ACTIVE, 1)
        assert agent.registered_at == agent.last_heartbeat == at(3)
        assert await other.find_agent("key-rack-1") == agent
        assert await other.list_agents() == [agent]
        assert await other.find_agent("unknown") is None
        with pytest.raises(NotFound):
            await other.register_agent("unknown", PROFILE, at(4))

    async def test_to_register_again_is_a_new_epoch_of_the_same_agent(self, story: Story) -> None:
        first = await story.agent()
        profile = replace(PROFILE, slots=8, labels=())
        second = await story.repository.register_agent(first.id, profile, at(9))
        assert second.lease == AgentLease(first.id, 2)
        assert (second.profile, second.registered_at) == (profile, at(9))
        assert await story.repository.heartbeat_agent(first.lease, None, None, at(10)) is None
        assert await claimed_by(story, first) == []

    async def test_an_agent_stays_in_the_pool_that_it_was_first_in(self, story: Story) -> None:
        """Or whoever got hold of its key could ask for any pool's trees."""
        first = await story.agent()
        with pytest.raises(Conflict, match="make another key"):
            await story.repository.register_agent(first.id, replace(PROFILE, pool="other"), at(9))
        assert await story.repository.find_agent(first.id) == first

    async def test_its_successor_can_write_what_it_cannot_any_more(self, story: Story) -> None:
        await story.queue(options=GPU)
        agent = await story.agent()
        attempt = await running(story, agent)
        await story.repository.register_agent(agent.id, PROFILE, at(6))
        for write in all_fenced_writes(story, attempt.fence):
            assert await write() in (False, None)
        [inherited] = await story.repository.open_attempts(agent.id)
        assert (inherited.fence.attempt, inherited.container_id) == (attempt.fence.attempt, "c1")
        assert await story.repository.finish_attempt(inherited.fence, verdict(None), SEAL, at(7))

    async def test_a_claim_is_of_the_agents_pool_and_within_its_slots(self, story: Story) -> None:
        mine = [await story.queue(n) for n in range(2)]
        gpu = [await story.queue(n, options=GPU) for n in range(4)]
        agent = await story.agent()
        assert await story.repository.count_queued(at(5)) == 2
        assert await story.repository.count_queued(at(5), "gpu") == 4
        assert await claimed_by(story, agent, limit=1) == [gpu[0].id]
        assert await claimed_by(story, agent) == [gpu[1].id]
        assert await claimed_by(story, agent) == []
        assert (await seen(story, agent)).jobs_running == 2
        assert (await story.claim(6)).job.id == mine[0].id
        held = await story.repository.open_attempts(agent.id)
        assert {attempt.job.id for attempt in held} == {job.id for job in gpu[:2]}
        assert [attempt.job.id for attempt in await story.repository.open_attempts()] == [mine[0].id]

    async def test_places_in_the_queue_are_those_of_the_pool(self, story: Story) -> None:
        for n in range(3):
            await story.queue(n)
        first, second = [await story.queue(9 + n, options=GPU) for n in range(2)]
        assert await story.repository.queue_position(first.id) == 0
        assert await story.repository.queue_position(second.id) == 1
        view = await story.repository.queue_view(story.user.id, 9)
        assert [place.before for place in view.places] == [0, 1, 2, 0, 1]

    async def test_two_claimants_at_once_never_take_the_same_job_nor_too_many(
        self, story: Story, other: JobRepository
    ) -> None:
        await story.repository.set_user_limits(story.user.id, LimitChange(max_running=5), at(0))
        jobs = {(await story.queue(n, options=GPU)).id for n in range(9)}
        agents = [await story.agent(f"rack-{n}", slots=3) for n in range(3)]
        claims = await asyncio.gather(
            *(
                client.claim_for_agent(agent.lease, 2, at(5))
                for client in (story.repository, other)
                for agent in agents
            )
        )
        claimed = [attempt.job.id for claim in claims for attempt in claim]
        assert len(claimed) == len(set(claimed)) == 5
        assert set(claimed) < jobs

    async def test_an_agent_that_drains_claims_nothing_and_ends_what_it_holds(self, story: Story) -> None:
        await story.queue(0, options=GPU)
        await story.queue(1, options=GPU)
        agent = await story.agent()
        attempt = await running(story, agent)
        drained = await story.repository.set_agent_state(agent.id, AgentState.DRAINING, at(6), "eve")
        assert drained is not None
        assert drained.state is AgentState.DRAINING
        assert await claimed_by(story, agent) == []
        assert await story.repository.finish_attempt(attempt.fence, verdict(None), SEAL, at(7))
        again = await story.repository.register_agent(agent.id, PROFILE, at(8))
        assert again.state is AgentState.DRAINING  # what an operator decided stays
        await story.repository.set_agent_state(agent.id, AgentState.ACTIVE, at(9), "eve")
        assert len(await claimed_by(story, again)) == 1
        told = [(event.action, event.actor, event.subject) for event in await story.repository.list_audit()]
        assert told[-2:] == [
            (AuditAction.AGENT_DRAIN, "eve", agent.id),
            (AuditAction.AGENT_RESUME, "eve", agent.id),
        ]
        assert await story.repository.set_agent_state("unknown", AgentState.ACTIVE, at(9)) is None

    async def test_an_agent_that_is_removed_has_no_key_and_renews_nothing(self, story: Story) -> None:
        agent = await story.agent()
        await story.repository.set_agent_state(agent.id, AgentState.REMOVED, at(5), "eve")
        assert await story.repository.heartbeat_agent(agent.lease, None, None, at(6)) is None
        [key] = await story.repository.list_api_keys()
        assert (key.id, key.is_active) == (agent.id, False)
        with pytest.raises(Unauthorized, match="revoked"):
            await story.repository.register_agent(agent.id, PROFILE, at(7))
        assert (await seen(story, agent)).state is AgentState.REMOVED

    async def test_an_agent_leaves_once_it_holds_nothing(self, story: Story) -> None:
        await story.queue(options=GPU)
        agent = await story.agent()
        attempt = await running(story, agent)
        with pytest.raises(Conflict, match="still holds 1"):
            await story.repository.deregister_agent(agent.lease, at(6))
        assert await story.repository.finish_attempt(attempt.fence, verdict(None), SEAL, at(7))
        assert await story.repository.deregister_agent(agent.lease, at(8))
        assert not await story.repository.deregister_agent(agent.lease, at(9))
        assert (await seen(story, agent)).state is AgentState.REMOVED
        back = await story.repository.register_agent(agent.id, PROFILE, at(10))
        assert back.state is AgentState.ACTIVE
        await story.repository.set_agent_state(agent.id, AgentState.DRAINING, at(11))
        assert await story.repository.deregister_agent(back.lease, at(12))
        back = await story.repository.register_agent(agent.id, PROFILE, at(13))
        assert back.state is AgentState.DRAINING

    async def test_a_heartbeat_is_counted_and_tells_of_the_agent(self, story: Story) -> None:
        agent = await story.agent(seconds=1)
        beat = await story.repository.heartbeat_agent(agent.lease, "no engine", 10**12, at(9))
        assert beat is not None
        assert beat == await seen(story, agent)
        assert (beat.beats, beat.last_heartbeat) == (agent.beats + 1, at(9))
        assert (beat.note, beat.disk_free) == ("no engine", 10**12)
        lease = timedelta(seconds=30)
        assert beat.health(at(10), lease) is AgentHealth.DEGRADED
        assert agent.health(at(10), lease) is AgentHealth.HEALTHY
        assert agent.health(at(12), lease) is AgentHealth.DEGRADED
        assert agent.health(at(32), lease) is AgentHealth.LOST

    async def test_pools_are_heard_of_through_agents_that_claim(self, story: Story) -> None:
        agents = [await story.agent(f"rack-{n}", seconds=n) for n in range(3)]
        await story.agent("cpu", seconds=7, pool="cpu")
        await story.repository.set_agent_state(agents[2].id, AgentState.DRAINING, at(9))
        assert await story.repository.pool_heartbeats() == {"gpu": at(1), "cpu": at(7)}
        assert (await story.repository.queue_view(story.user.id, 9)).pools == {"gpu": at(1), "cpu": at(7)}

    async def test_a_claim_holds_others_up_for_a_few_jobs_and_no_more(self, story: Story) -> None:
        agent = await story.agent(slots=100)
        for _ in range(MOST_AT_ONCE + 3):
            await story.queue(options=GPU)
        assert len(await claimed_by(story, agent, limit=99)) == MOST_AT_ONCE
        assert len(await claimed_by(story, agent, limit=99)) == 3

    async def test_what_a_lost_agent_held_is_queued_again(self, story: Story) -> None:
        job = await story.queue(options=GPU)
        agent = await story.agent()
        attempt = await running(story, agent)
        assert await story.repository.expire_agent(story.lease, await seen(story, agent), 3, at(40)) == [
            job.id
        ]
        back = await story.job(job.id)
        assert (back.status, back.message) == (JobStatus.QUEUED, "Agent rack-1 was lost.")
        for write in all_fenced_writes(story, attempt.fence):
            assert await write() in (False, None)
        [again] = await story.repository.claim_for_agent(agent.lease, 1, at(50))
        assert again.fence.attempt == 2

    async def test_a_job_whose_agents_are_lost_too_often_is_given_up(self, story: Story) -> None:
        job = await story.queue(options=GPU)
        agent = await story.agent()
        for number in (1, 2):
            await running(story, agent, f"c{number}")
            await story.repository.expire_agent(story.lease, await seen(story, agent), 2, at(40))
        ended = await story.job(job.id)
        assert (ended.status, ended.reason) == (JobStatus.DEAD_LETTERED, Reason.AGENT_LOST)

    async def test_a_job_that_agents_give_back_without_end_is_given_up(self, story: Story) -> None:
        """A broken agent would claim it for as long as it may be queued, each time with another log."""
        job = await story.queue(options=GPU)
        agent = await story.agent()
        for _ in range(MOST_UNBEGUN - 1):
            [attempt] = await story.repository.claim_for_agent(agent.lease, 1, at(2))
            assert await story.release(attempt.fence) is JobStatus.QUEUED
        [attempt] = await story.repository.claim_for_agent(agent.lease, 1, at(2))
        assert await story.release(attempt.fence, log=SEAL) is JobStatus.DEAD_LETTERED
        ended = await story.job(job.id)
        assert ended.message is not None
        assert ended.message.endswith("attempt 20 of those on agents that ended before its tests began.")

    async def test_an_agent_that_was_heard_of_since_is_not_lost(self, story: Story) -> None:
        await story.queue(options=GPU)
        agent = await story.agent()
        attempt = await running(story, agent)
        looked_at = await seen(story, agent)
        await story.repository.heartbeat_agent(agent.lease, None, None, at(31))
        assert await story.repository.expire_agent(story.lease, looked_at, 3, at(32)) == []
        looked_at = await seen(story, agent)
        await story.repository.register_agent(agent.id, PROFILE, at(33))
        assert await story.repository.expire_agent(story.lease, looked_at, 3, at(34)) == []
        stale = ControllerLease(0, "stale")
        assert await story.repository.expire_agent(stale, await seen(story, agent), 3, at(35)) == []
        [held] = await story.repository.open_attempts(agent.id)
        assert held.fence.attempt == attempt.fence.attempt

    async def test_a_take_over_takes_nothing_from_agents(self, story: Story) -> None:
        await story.queue(0, options=GPU)
        agent = await story.agent()
        attempt = await running(story, agent)
        await story.repository.take_over("successor", at(6))
        assert await story.repository.open_attempts() == []
        assert await story.repository.finish_attempt(attempt.fence, verdict(None), SEAL, at(7))
        assert (await seen(story, agent)).jobs_completed == 1

    async def test_what_ran_where_is_told_to_whom_it_ran_for(self, story: Story) -> None:
        job: Job = await story.queue(0, options=GPU)
        agent = await story.agent()
        attempt = await running(story, agent)
        assert await story.repository.image_uses() == {}
        assert await story.repository.image_uses(agent.id) == {"image": ImageUse(at(5), True)}
        await story.repository.finish_attempt(attempt.fence, verdict(None), SEAL, at(7))
        assert await story.repository.ended_attempts(["c1"]) == {}
        assert await story.repository.ended_attempts(["c1"], agent.id) == {"c1": (job.id, 1)}

"""The contract about the one controller: its lease, claiming, expiry."""

import asyncio
import multiprocessing
import random
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from datetime import timedelta

import pytest

from ci_common.job_terms import JobOptions, JobStatus, Reason
from ci_common.models import ControllerLease
from ci_common.repository import JobRepository
from ci_common.verdict import verdict
from tests.support.repository_contract.story import (
    SEAL,
    START,
    Backend,
    Story,
    at,
    claim_all,
    make_job,
    make_user,
)


class ControlContract:
    async def test_a_controller_is_known_by_its_heartbeat(self, repository: JobRepository) -> None:
        assert await repository.controller_state() is None
        lease = await repository.take_over("first", START)
        assert await repository.heartbeat(lease, at(5), "the engine does not answer")
        state = await repository.controller_state()
        assert state is not None
        assert (state.epoch, state.holder, state.heartbeat_at) == (lease.epoch, "first", at(5))
        assert state.note == "the engine does not answer"
        assert await repository.heartbeat(lease, at(6))
        state = await repository.controller_state()
        assert state is not None
        assert state.note is None

    async def test_taking_over_ends_the_earlier_lease(self, story: Story, other: JobRepository) -> None:
        job = await story.queue()
        successor = await other.take_over("successor", at(5))
        assert successor.epoch == story.lease.epoch + 1
        assert not await story.repository.heartbeat(story.lease, at(6))
        assert await story.repository.claim_jobs(story.lease, 1, at(6)) == []
        assert await story.repository.expire_queued(story.lease, timedelta(0), at(600)) == []
        assert await story.job(job.id) == job

    async def test_who_succeeds_nobody_is_the_first(self, repository: JobRepository) -> None:
        lease = await repository.succeed(None, "first", START, runs_on="engine-1")
        assert lease == ControllerLease(1, "first")
        assert await repository.succeed(None, "late", at(1)) is None
        state = await repository.controller_state()
        assert state is not None
        assert (state.holder, state.runs_on, state.is_released) == ("first", "engine-1", False)

    async def test_it_is_known_whether_the_controller_runs_jobs_itself(
        self, repository: JobRepository
    ) -> None:
        await repository.take_over("first", START)
        first = await repository.controller_state()
        assert first is not None
        assert first.runs_jobs
        assert await repository.succeed(first, "second", at(1), runs_jobs=False)
        second = await repository.controller_state()
        assert second is not None
        assert not second.runs_jobs
        await repository.take_over("third", at(2))
        third = await repository.controller_state()
        assert third is not None
        assert third.runs_jobs

    async def test_succeeding_is_taking_over(self, story: Story, other: JobRepository) -> None:
        await story.queue()
        running = await story.run()
        seen = await other.controller_state()
        lease = await other.succeed(seen, "successor", at(5))
        assert lease == ControllerLease(story.lease.epoch + 1, "successor")
        [inherited] = await other.open_attempts()
        assert not await story.repository.heartbeat(story.lease, at(6))
        assert not await story.repository.finish_attempt(running.fence, verdict(None), SEAL, at(6))
        assert await other.finish_attempt(inherited.fence, verdict(None), SEAL, at(6))

    async def test_who_was_heard_of_again_is_not_succeeded(self, story: Story, other: JobRepository) -> None:
        await story.queue()
        running = await story.run()
        seen = await other.controller_state()
        assert await story.repository.heartbeat(story.lease, at(5))
        assert await other.succeed(seen, "successor", at(5)) is None
        assert await story.repository.finish_attempt(running.fence, verdict(None), SEAL, at(6))
        assert await story.repository.heartbeat(story.lease, at(7))

    async def test_of_those_who_saw_the_same_exactly_one_succeeds(
        self, story: Story, other: JobRepository
    ) -> None:
        seen = await other.controller_state()
        pairs = [(one, n) for n in range(4) for one in (story.repository, other)]
        tries = [one.succeed(seen, f"heir {n}", at(5 + n)) for one, n in pairs]
        leases = await asyncio.gather(*tries)
        [lease] = [lease for lease in leases if lease]
        assert lease.epoch == story.lease.epoch + 1
        assert await other.heartbeat(lease, at(20))

    async def test_a_lease_that_was_released_entitles_to_nothing(
        self, story: Story, other: JobRepository
    ) -> None:
        job = await story.queue()
        assert await story.repository.release(story.lease, "it was stopped", at(5))
        state = await other.controller_state()
        assert state is not None
        assert (state.is_released, state.note, state.heartbeat_at) == (True, "it was stopped", at(5))
        assert not await story.repository.heartbeat(story.lease, at(6))
        assert await story.repository.claim_jobs(story.lease, 1, at(6)) == []
        assert await story.job(job.id) == job
        successor = await other.succeed(state, "successor", at(7))
        assert successor is not None
        assert not await story.repository.release(story.lease, "it was stopped", at(8))
        state = await other.controller_state()
        assert state is not None
        assert (state.is_released, state.note, state.holder) == (False, None, "successor")

    async def test_a_lease_is_also_its_holders_name(self, story: Story) -> None:
        await story.queue()
        impostor = ControllerLease(story.lease.epoch, "impostor")
        assert not await story.repository.heartbeat(impostor, at(1))
        assert await story.repository.claim_jobs(impostor, 1, at(1)) == []

    async def test_the_successor_can_finish_what_its_predecessor_claimed(
        self, story: Story, other: JobRepository
    ) -> None:
        await story.queue()
        running = await story.run()
        await story.queue(1)
        claimed = await story.claim()
        await other.take_over("successor", at(5))
        inherited = await other.open_attempts()
        assert [one.fence.job_id for one in inherited] == [claimed.fence.job_id, running.fence.job_id]
        assert not {one.fence.token for one in inherited} & {running.fence.token, claimed.fence.token}
        assert not await story.repository.finish_attempt(running.fence, verdict(None), SEAL, at(6))
        assert await other.finish_attempt(inherited[1].fence, verdict(None), SEAL, at(6))

    async def test_jobs_are_claimed_first_in_first_out(self, story: Story) -> None:
        second, first, third = [await story.queue(seconds) for seconds in (2, 1, 3)]
        assert await story.repository.count_queued(at(9)) == 3
        attempts = await story.repository.claim_jobs(story.lease, 2, at(9))
        assert [attempt.job.id for attempt in attempts] == [first.id, second.id]
        assert [attempt.fence.attempt for attempt in attempts] == [1, 1]
        assert attempts[0].fence.token != attempts[1].fence.token
        assert attempts[0].claimed_at == at(9)
        assert (
            attempts[0].job
            == await story.job(first.id)
            == replace(first, status=JobStatus.CLAIMED, attempt=1)
        )
        assert (await story.claim()).job.id == third.id
        assert await story.repository.count_queued(at(9)) == 0
        assert await story.timeline(first.id) == ["submitted", "claimed"]

    async def test_users_take_turns_however_many_jobs_one_has_queued(self, story: Story) -> None:
        many = [(await story.queue(n)).id for n in range(5)]
        other = make_user("grace")
        await story.repository.create_user(other)
        few = [(await story.repository.create_job(make_job(other, at(60 + n)))).id for n in range(2)]
        claimed = [(await story.claim(99)).job.id for _ in range(7)]
        assert claimed == [many[0], few[0], many[1], few[1], *many[2:]]

    async def test_a_turn_is_remembered_when_nothing_of_the_user_runs_any_more(self, story: Story) -> None:
        many = [(await story.queue(n)).id for n in range(5)]
        other = make_user("grace")
        await story.repository.create_user(other)
        single = await story.repository.create_job(make_job(other, at(60)))
        first = await story.run(seconds=99)
        await story.repository.finish_attempt(first.fence, verdict(None), SEAL, at(100))
        assert first.job.id == many[0]
        assert (await story.claim(101)).job.id == single.id

    async def test_who_has_fewer_jobs_running_comes_first(self, story: Story) -> None:
        other = make_user("grace")
        await story.repository.create_user(other)
        for n in range(3):
            await story.queue(n)
            await story.claim(50)
        await story.queue(3)
        theirs = [(await story.repository.create_job(make_job(other, at(60 + n)))).id for n in range(3)]
        assert [(await story.claim(99)).job.id for _ in range(3)] == theirs

    @pytest.mark.parametrize("seed", range(5))
    async def test_the_place_in_the_queue_is_the_order_of_claiming(self, story: Story, seed: int) -> None:
        rng = random.Random(seed)
        users = [make_user(f"user{n}") for n in range(4)]
        for user in users:
            await story.repository.create_user(user)
        for n in range(6):  # some run already, and have taken turns
            await story.repository.create_job(make_job(rng.choice(users), at(n)))
            await story.claim(10)
        jobs = [
            (await story.repository.create_job(make_job(rng.choice(users), at(20 + n)))).id for n in range(12)
        ]
        places = {job_id: await story.repository.queue_position(job_id) for job_id in jobs}
        claimed = [(await story.claim(99)).job.id for _ in jobs]
        assert [places[job_id] for job_id in claimed] == list(range(12))

    async def test_a_claim_of_none_claims_none(self, story: Story) -> None:
        await story.queue()
        assert await story.repository.claim_jobs(story.lease, 0, at(1)) == []

    async def test_claims_at_the_same_time_get_what_they_would_one_after_the_other(
        self, story: Story
    ) -> None:
        jobs = [(await story.queue(n)).id for n in range(6)]
        stale = replace(story.lease, epoch=story.lease.epoch + 1)
        asked = [(story.lease, 2), (story.lease, 0), (stale, 3), (story.lease, 1), (story.lease, 9)]
        found = await asyncio.gather(
            *(story.repository.claim_jobs(lease, limit, at(9)) for lease, limit in asked)
        )
        assert [[one.job.id for one in some] for some in found] == [jobs[:2], [], [], jobs[2:3], jobs[3:]]
        assert {one.fence for one in await story.repository.open_attempts()} == {
            one.fence for some in found for one in some
        }

    async def test_a_job_that_backs_off_is_not_claimed(self, story: Story) -> None:
        job = await story.queue()
        attempt = await story.claim()
        assert await story.release(attempt.fence, not_before=at(60)) is JobStatus.QUEUED
        later = await story.queue(10)
        assert await story.repository.count_queued(at(59)) == 1
        assert [one.job.id for one in await story.repository.claim_jobs(story.lease, 9, at(59))] == [later.id]
        assert await story.repository.count_queued(at(60)) == 1
        (again,) = await story.repository.claim_jobs(story.lease, 9, at(60))
        assert (again.job.id, again.fence.attempt, again.job.not_before) == (job.id, 2, None)

    async def test_a_clock_that_was_set_back_holds_no_job_back(self, story: Story) -> None:
        job = await story.queue()
        attempt = await story.claim()
        await story.release(attempt.fence, not_before=at(86_400 + 60))
        assert await story.repository.count_queued(at(10)) == 1
        assert (await story.claim(10)).job.id == job.id

    async def test_several_clients_never_claim_the_same_job(self, story: Story, other: JobRepository) -> None:
        jobs = {(await story.queue(n)).id for n in range(40)}
        claims = await asyncio.gather(
            *(
                client.claim_jobs(story.lease, 3, at(99))
                for client in (story.repository, other)
                for _ in range(8)
            )
        )
        claimed = [attempt.job.id for claim in claims for attempt in claim]
        assert len(claimed) == 40
        assert set(claimed) == jobs

    async def test_several_processes_never_claim_the_same_job(self, story: Story, backend: Backend) -> None:
        jobs = {(await story.queue(-n)).id for n in range(90)}
        loop = asyncio.get_running_loop()
        with ProcessPoolExecutor(3, mp_context=multiprocessing.get_context("spawn")) as processes:
            arguments = (backend.open, backend.location, story.lease)
            claims = await asyncio.gather(
                *(loop.run_in_executor(processes, claim_all, *arguments) for _ in range(3))
            )
        claimed = [job_id for claim in claims for job_id in claim]
        assert len(claimed) == 90
        assert set(claimed) == jobs

    async def test_open_attempts_are_the_claimed_and_running_ones(self, story: Story) -> None:
        for seconds in range(4):
            await story.queue(seconds)
        done = await story.run("c1", seconds=5)
        await story.repository.finish_attempt(done.fence, verdict(None), SEAL, at(6))
        running = await story.run("c2", seconds=7)
        claimed = await story.claim(8)
        found = await story.repository.open_attempts()
        assert [(one.fence, one.container_id, one.begun_at) for one in found] == [
            (running.fence, "c2", at(7)),
            (claimed.fence, None, None),
        ]
        assert found[1] == claimed
        assert found[0].job == await story.job(running.fence.job_id)

    async def test_ended_attempts_are_told_by_their_containers(self, story: Story) -> None:
        """Those of open attempts, and those that no attempt was recorded in, are not among them."""
        job = await story.queue()
        await story.release((await story.run("c1")).fence)
        await story.run("c2")
        asked = ["c2", *(f"unknown-{number}" for number in range(1100)), "c1"]
        assert await story.repository.ended_attempts(asked) == {"c1": (job.id, 1)}
        assert await story.repository.ended_attempts([]) == {}

    async def test_jobs_that_waited_too_long_are_failed(self, story: Story) -> None:
        old, new = await story.queue(0), await story.queue(100)
        assert await story.repository.expire_queued(story.lease, timedelta(minutes=2), at(121)) == [old.id]
        expired = await story.job(old.id)
        assert (expired.status, expired.reason, expired.success) == (
            JobStatus.FAILED,
            Reason.QUEUE_TIMEOUT,
            False,
        )
        assert (expired.end_time, await story.timeline(old.id)) == (at(121), ["submitted", "failed"])
        assert await story.job(new.id) == new

    async def test_releases_before_the_tests_began_are_bounded_by_the_queue_timeout(
        self, story: Story
    ) -> None:
        job = await story.queue(0)
        await story.release((await story.claim(50)).fence, seconds=100)
        assert await story.repository.expire_queued(story.lease, timedelta(minutes=2), at(121)) == [job.id]

    async def test_the_wait_starts_anew_after_the_tests_had_begun(self, story: Story) -> None:
        job = await story.queue(0)
        await story.release((await story.run(seconds=50)).fence, seconds=100)
        assert await story.repository.expire_queued(story.lease, timedelta(minutes=2), at(219)) == []
        assert await story.repository.expire_queued(story.lease, timedelta(minutes=2), at(221)) == [job.id]

    async def test_a_job_waits_no_longer_than_its_submitter_said(self, story: Story) -> None:
        day = timedelta(days=1)
        short = await story.queue(0, options=JobOptions(queue_timeout_seconds=60.0))
        long = await story.queue(0, options=JobOptions(queue_timeout_seconds=90_000.0))
        assert await story.repository.expire_queued(story.lease, day, at(60)) == []
        assert await story.repository.expire_queued(story.lease, day, at(70), timedelta(seconds=20)) == []
        assert await story.repository.expire_queued(story.lease, day, at(61)) == [short.id]
        assert (await story.job(short.id)).message == "It waited in the queue for more than 1 minutes."
        assert (await story.job(short.id)).reason is Reason.QUEUE_TIMEOUT
        assert await story.repository.expire_queued(story.lease, day, at(86_401)) == [long.id]

    async def test_that_wait_starts_anew_like_any_other(self, story: Story) -> None:
        job = await story.queue(0, options=JobOptions(queue_timeout_seconds=60.0))
        await story.release((await story.run(seconds=50)).fence, seconds=100)
        assert await story.repository.expire_queued(story.lease, timedelta(days=1), at(159)) == []
        await story.repository.pause_queue(None, at(159))
        assert await story.repository.expire_queued(story.lease, timedelta(days=1), at(500)) == []
        await story.repository.resume_queue(at(500))
        assert await story.repository.expire_queued(story.lease, timedelta(days=1), at(559)) == []
        await story.release((await story.claim(559)).fence, seconds=560)  # it had not begun: the wait goes on
        assert await story.repository.expire_queued(story.lease, timedelta(days=1), at(561)) == [job.id]

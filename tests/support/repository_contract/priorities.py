"""The contract about priorities: who may use which, and that all jobs of a class come before any of the next."""

import asyncio
import random

import pytest

from ci_common.errors import Conflict, JobFinished, JobNotFound, PriorityNotAllowed
from ci_common.job_terms import JobOptions, JobStatus, Priority
from ci_common.models import AuditAction, Idempotency, JobFilter, LimitChange, User, UserLimits
from ci_common.verdict import verdict
from tests.support.repository_contract.story import SEAL, Story, at, make_job, make_user

ANYTHING = UserLimits(Priority.CRITICAL)


async def with_limits(story: Story, limits: UserLimits = ANYTHING) -> User:
    """The story's user has these limits."""
    changed = await story.repository.set_user_limits(
        story.user.id, LimitChange.to(limits), at(0), "eve@example.org"
    )
    assert changed is not None
    return changed


class PrioritiesContract:
    async def test_the_most_urgent_class_is_claimed_first_and_the_oldest_of_it(self, story: Story) -> None:
        await with_limits(story)
        words = ["low", "normal", "high", "normal", "critical", "low", "high"]
        jobs = [
            await story.queue(n, options=JobOptions(priority=Priority(word))) for n, word in enumerate(words)
        ]
        claimed = [(await story.claim(50)).job for _ in jobs]
        assert claimed[0].options.priority is Priority.CRITICAL
        assert [job.id for job in claimed] == [jobs[n].id for n in (4, 2, 6, 1, 3, 0, 5)]

    async def test_a_better_class_comes_before_the_turns_of_others(self, story: Story) -> None:
        """Who has jobs running already goes first with an urgent one; within a class users take turns as ever."""
        await with_limits(story)
        bob = make_user("bob")
        await story.repository.create_user(bob)
        for n in range(2):
            await story.queue(n)
            await story.claim(5)
        theirs = await story.repository.create_job(make_job(bob, at(6)))
        normal = await story.queue(6)
        urgent = await story.queue(7, options=JobOptions(priority=Priority.HIGH))
        claimed = [(await story.claim(50)).job.id for _ in range(3)]
        assert claimed == [urgent.id, theirs.id, normal.id]

    async def test_an_urgent_job_that_backs_off_holds_up_nothing(self, story: Story) -> None:
        await with_limits(story)
        urgent = await story.queue(options=JobOptions(priority=Priority.HIGH))
        await story.release((await story.claim()).fence, not_before=at(60))
        low = await story.queue(10, options=JobOptions(priority=Priority.LOW))
        assert (await story.claim(20)).job.id == low.id
        assert (await story.claim(60)).job.id == urgent.id

    @pytest.mark.parametrize("seed", range(12))
    async def test_the_place_in_the_queue_is_the_order_of_claiming_over_all_classes(
        self, story: Story, seed: int
    ) -> None:
        rng = random.Random(seed)
        users = [make_user(f"user{n}", limits=ANYTHING) for n in range(4)]
        for user in users:
            await story.repository.create_user(user)
        for n in range(6):  # some run already, and have taken turns
            await story.repository.create_job(make_job(rng.choice(users), at(n)))
            await story.claim(10)
        jobs = [
            await story.repository.create_job(
                make_job(
                    rng.choice(users), at(20 + n), options=JobOptions(priority=rng.choice(list(Priority)))
                )
            )
            for n in range(16)
        ]
        places = {job.id: await story.repository.queue_position(job.id) for job in jobs}
        claimed = [(await story.claim(99)).job.id for _ in jobs]
        assert [places[job_id] for job_id in claimed] == list(range(16))

    async def test_a_user_gets_no_more_urgent_a_class_than_is_allowed(self, story: Story) -> None:
        assert story.user.limits == UserLimits(Priority.NORMAL)
        for word in (Priority.CRITICAL, Priority.HIGH):
            with pytest.raises(PriorityNotAllowed, match="highest for you is normal") as refused:
                await story.queue(options=JobOptions(priority=word))
            assert refused.value.extra == {"max_priority": "normal"}
        await story.queue(options=JobOptions(priority=Priority.LOW))
        assert await with_limits(story, UserLimits(Priority.HIGH)) == await story.repository.get_user(
            story.user.id
        )
        high = await story.queue(options=JobOptions(priority=Priority.HIGH))
        await with_limits(story, UserLimits(Priority.LOW))
        assert (await story.job(high.id)).options.priority is Priority.HIGH
        with pytest.raises(PriorityNotAllowed):
            await story.queue()

    async def test_a_repetition_is_the_same_job_when_less_is_allowed_by_then(self, story: Story) -> None:
        promise = Idempotency("key", "fingerprint")
        first = await story.repository.create_job(make_job(story.user), promise)
        await with_limits(story, UserLimits(Priority.LOW))
        assert await story.repository.create_job(make_job(story.user), promise) == first

    async def test_a_user_has_no_more_jobs_under_way_than_allowed(self, story: Story) -> None:
        await with_limits(story, UserLimits(Priority.CRITICAL, max_running=2))
        bob = make_user("bob")
        await story.repository.create_user(bob)
        mine = [await story.queue(n, options=JobOptions(priority=Priority.HIGH)) for n in range(4)]
        theirs = [await story.repository.create_job(make_job(bob, at(10 + n))) for n in range(3)]
        assert await story.repository.count_queued(at(20)) == 5
        claimed = await story.repository.claim_jobs(story.lease, 9, at(20))
        assert [one.job.id for one in claimed] == [mine[0].id, mine[1].id, *(job.id for job in theirs)]
        assert await story.repository.count_queued(at(20)) == 0
        assert await story.repository.claim_jobs(story.lease, 9, at(20)) == []
        assert await story.release(claimed[0].fence) is JobStatus.QUEUED
        assert [one.job.id for one in await story.repository.claim_jobs(story.lease, 9, at(20))] == [
            mine[0].id
        ]
        await with_limits(story, UserLimits(Priority.CRITICAL))
        assert len(await story.repository.claim_jobs(story.lease, 9, at(20))) == 2

    async def test_a_limit_below_what_runs_stops_nothing(self, story: Story) -> None:
        for n in range(3):
            await story.queue(n)
        await story.run("c1")
        await story.run("c2")
        await with_limits(story, UserLimits(max_running=1))
        assert len(await story.repository.open_attempts()) == 2
        assert await story.repository.count_queued(at(9)) == 0

    @pytest.mark.parametrize("seed", range(12))
    async def test_the_place_of_what_is_claimed_under_limits_is_the_order_of_claiming(
        self, story: Story, seed: int
    ) -> None:
        rng = random.Random(seed)
        limits = [UserLimits(Priority.CRITICAL, rng.choice([None, 2, 4])) for _ in range(4)]
        users = [make_user(f"user{n}", limits=limit) for n, limit in enumerate(limits)]
        for user in users:
            await story.repository.create_user(user)
        for n in range(5):
            await story.repository.create_job(make_job(rng.choice(users), at(n)))
            await story.repository.claim_jobs(story.lease, 1, at(10))
        for n in range(16):
            options = JobOptions(priority=rng.choice(list(Priority)))
            await story.repository.create_job(make_job(rng.choice(users), at(20 + n), options=options))
        queued = (await story.repository.list_jobs(JobFilter(statuses=frozenset({JobStatus.QUEUED})))).jobs
        places = {job.id: await story.repository.queue_position(job.id) for job in queued}
        count = await story.repository.count_queued(at(99))
        claimed = await story.repository.claim_jobs(story.lease, 99, at(99))
        assert [places[one.job.id] for one in claimed] == list(range(count))

    @pytest.mark.parametrize("seed", range(4))
    async def test_the_view_of_the_queue_has_the_same_places(self, story: Story, seed: int) -> None:
        rng = random.Random(seed)
        users = [make_user(f"user{n}", limits=ANYTHING) for n in range(3)]
        for user in users:
            await story.repository.create_user(user)
        for n in range(12):
            options = JobOptions(priority=rng.choice(list(Priority)))
            await story.repository.create_job(make_job(rng.choice(users), at(n), options=options))
        await story.repository.claim_jobs(story.lease, 2, at(20))
        for user in users:
            view = await story.repository.queue_view(user.id, 100)
            expected = [await story.repository.queue_position(place.job.id) for place in view.places]
            places = [place.before for place in view.places]
            assert places == expected
            assert places == sorted(places)
            shorter = await story.repository.queue_view(user.id, 2)
            assert shorter.places == view.places[:2]

    async def test_the_view_of_the_queue_tells_what_runs_and_for_how_long(self, story: Story) -> None:
        empty = await story.repository.queue_view(story.user.id, 9)
        assert (empty.places, empty.running, empty.under_way, empty.run_seconds) == ((), 0, 0, None)
        for n, end in enumerate((12, 14, 99)):
            await story.queue(n)
            done = await story.run(f"c{n}", seconds=10)
            await story.repository.finish_attempt(done.fence, verdict(None), SEAL, at(end))
        await story.queue(100)
        await story.run("c9", seconds=101)
        view = await story.repository.queue_view(story.user.id, 9)
        assert (view.running, view.under_way, view.run_seconds) == (1, 1, 4.0)
        assert (await story.repository.queue_view("somebody", 9)).running == 0
        await story.repository.pause_queue("why", at(102))
        view = await story.repository.queue_view(story.user.id, 9)
        assert view.pause == await story.repository.queue_pause()
        assert view.controller == await story.repository.controller_state()

    async def test_limits_are_audited_and_of_nobody_are_none(self, story: Story) -> None:
        await with_limits(story, UserLimits(Priority.HIGH))
        event = (await story.repository.list_audit())[-1]
        assert (event.action, event.subject, event.actor) == (
            AuditAction.USER_SET,
            story.user.id,
            "eve@example.org",
        )
        assert (event.details["max_priority"], event.details["max_running"]) == ("high", None)
        assert await story.repository.set_user_limits("nobody", LimitChange.to(ANYTHING), at(0)) is None

    async def test_who_changes_one_limit_leaves_the_other_as_it_is(self, story: Story) -> None:
        """Two operators change one each at the same time: neither read what the other wrote."""
        changes = (LimitChange(Priority.HIGH), LimitChange(max_running=3))
        await asyncio.gather(
            *(story.repository.set_user_limits(story.user.id, one, at(0)) for one in changes)
        )
        user = await story.repository.get_user(story.user.id)
        assert user is not None
        assert user.limits == UserLimits(Priority.HIGH, 3)
        event = (await story.repository.list_audit())[-1]
        assert (event.details["max_priority"], event.details["max_running"]) == ("high", 3)
        changed = await story.repository.set_user_limits(
            story.user.id, LimitChange(max_running="none"), at(0)
        )
        assert changed is not None
        assert changed.limits == UserLimits(Priority.HIGH)

    async def test_an_owner_changes_the_priority_within_what_is_allowed(self, story: Story) -> None:
        first, second = await story.queue(0), await story.queue(1)
        changed = await story.repository.set_priority(first.id, story.user.id, Priority.LOW, "ada", at(2))
        assert changed.options.priority is Priority.LOW
        assert changed == await story.job(first.id)
        assert await story.repository.queue_position(first.id) == 1
        [event] = await story.repository.get_events(first.id, 1)
        assert (event.type, dict(event.data)) == (
            "priority_changed",
            {"from": "normal", "to": "low", "by": "ada"},
        )
        with pytest.raises(PriorityNotAllowed):
            await story.repository.set_priority(first.id, story.user.id, Priority.HIGH, "ada", at(2))
        assert [(await story.claim(9)).job.id for _ in range(2)] == [second.id, first.id]
        audited = [event.action for event in await story.repository.list_audit()]
        assert AuditAction.JOB_PRIORITY not in audited

    async def test_an_operator_gives_any_job_any_priority_and_that_is_audited(self, story: Story) -> None:
        job = await story.queue()
        changed = await story.repository.set_priority(job.id, None, Priority.CRITICAL, "eve", at(1), "r-1")
        assert changed.options.priority is Priority.CRITICAL
        event = (await story.repository.list_audit())[-1]
        assert (event.action, event.actor, event.subject, event.request_id) == (
            AuditAction.JOB_PRIORITY,
            "eve",
            job.id,
            "r-1",
        )
        assert (event.details["from"], event.details["to"]) == ("normal", "critical")

    async def test_the_same_priority_again_changes_nothing(self, story: Story) -> None:
        job = await story.queue()
        assert await story.repository.set_priority(job.id, None, Priority.NORMAL, "eve", at(1)) == job
        assert await story.timeline(job.id) == ["submitted"]

    async def test_whose_job_it_is_and_whether_it_ended_count(self, story: Story) -> None:
        job = await story.queue()
        for job_id, user_id in ((job.id, "somebody else"), ("unknown", None)):
            with pytest.raises(JobNotFound):
                await story.repository.set_priority(job_id, user_id, Priority.LOW, "x", at(1))
        await story.repository.request_cancel(job.id, None, "ada", at(1))
        with pytest.raises(JobFinished):
            await story.repository.set_priority(job.id, None, Priority.LOW, "x", at(1))

    async def test_a_running_job_takes_its_new_priority_back_to_the_queue(self, story: Story) -> None:
        await story.queue()
        attempt = await story.run()
        await story.repository.set_priority(attempt.job.id, None, Priority.LOW, "eve", at(3))
        assert await story.release(attempt.fence) is JobStatus.QUEUED
        assert (await story.job(attempt.job.id)).options.priority is Priority.LOW

    async def test_an_owner_cannot_fill_the_timeline_with_changes(self, story: Story) -> None:
        job = await story.queue()
        words = [Priority.LOW, Priority.NORMAL]
        for n in range(20):
            await story.repository.set_priority(job.id, story.user.id, words[n % 2], "ada", at(n))
        with pytest.raises(Conflict, match="20 times"):
            await story.repository.set_priority(job.id, story.user.id, Priority.LOW, "ada", at(50))
        await story.repository.set_priority(job.id, None, Priority.LOW, "eve", at(51))

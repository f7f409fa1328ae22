"""The contract about the audit trail: every act has its row, in the transaction of the act."""

import pytest

from ci_common.errors import AlreadyExists, Conflict, JobFinished
from ci_common.models import OPERATOR, AuditAction, AuditEvent
from ci_common.repository import JobRepository
from tests.support.repository_contract.story import Story, at, make_key, make_user

EVE = "operator (eve)"


class AuditContract:
    async def test_every_change_of_users_and_keys_is_told(self, story: Story, other: JobRepository) -> None:
        repository, bob = story.repository, make_user("bob", created_at=at(1))
        first = make_key(bob, created_at=at(2))
        second = make_key(bob, created_at=at(3))
        await repository.create_user(bob, EVE)
        await repository.create_api_key(first, EVE)
        await repository.rotate_api_key(first.id, second, at(100), EVE)
        await repository.revoke_api_key(second.id, at(4), EVE)
        await repository.set_user_active(bob.id, active=False, now=at(5), by=EVE)
        await repository.set_user_active(bob.id, active=True, now=at(6), by=EVE)
        told = [
            (event.action, event.subject, event.at, event.actor) for event in await other.list_audit(at(1))
        ]
        assert told == [
            (AuditAction.USER_CREATE, bob.id, at(1), EVE),
            (AuditAction.KEY_CREATE, first.id, at(2), EVE),
            (AuditAction.KEY_ROTATE, first.id, at(3), EVE),
            (AuditAction.KEY_REVOKE, second.id, at(4), EVE),
            (AuditAction.USER_DEACTIVATE, bob.id, at(5), EVE),
            (AuditAction.USER_ACTIVATE, bob.id, at(6), EVE),
        ]

    async def test_the_trail_names_keys_and_holds_no_secret(self, story: Story) -> None:
        repository, key = story.repository, make_key(story.user)
        successor = make_key(story.user, created_at=at(3))
        await repository.create_api_key(key)
        await repository.rotate_api_key(key.id, successor, at(100))
        await repository.revoke_api_key(successor.id, at(5))
        trail = (await repository.list_audit())[1:]
        assert [event.details["prefix"] for event in trail] == [
            key.prefix,
            successor.prefix,
            successor.prefix,
        ]
        assert trail[1].details["successor"] == successor.id
        assert not [one for one in (key, successor) if one.key_hash in str(trail)]

    async def test_who_acts_without_a_name_is_the_operator(self, story: Story) -> None:
        [event] = await story.repository.list_audit()
        assert (event.actor, event.action, event.request_id) == (OPERATOR, AuditAction.USER_CREATE, None)

    async def test_a_cancel_is_told_once_with_its_request(self, story: Story, other: JobRepository) -> None:
        job = await story.queue()
        await story.run()
        for seconds, request in ((5, "req-1"), (6, "req-2")):
            await story.repository.request_cancel(job.id, None, "ada@example.org", at(seconds), request)
        [event] = await other.list_audit(at(1))
        assert event == AuditEvent(
            at(5),
            "ada@example.org",
            AuditAction.JOB_CANCEL,
            job.id,
            {"user_id": story.user.id, "status": "running"},
            "req-1",
        )

    async def test_deactivating_tells_of_each_job_it_cancels(self, story: Story) -> None:
        jobs = {(await story.queue(n)).id for n in range(2)}
        await story.repository.set_user_active(story.user.id, active=False, now=at(5), by=EVE)
        cancels = [one for one in await story.repository.list_audit() if one.action is AuditAction.JOB_CANCEL]
        assert {event.subject for event in cancels} == jobs
        assert {event.actor for event in cancels} == {EVE}

    async def test_what_did_not_happen_is_not_told(self, story: Story) -> None:
        repository = story.repository
        job = await story.queue()
        await repository.request_cancel(job.id, None, "ada", at(1))
        key = make_key(story.user)
        await repository.create_api_key(key)
        before = await repository.list_audit()
        with pytest.raises(AlreadyExists):
            await repository.create_user(story.user)
        with pytest.raises(Conflict):
            await repository.create_api_key(key)
        with pytest.raises(JobFinished):
            await repository.request_cancel(job.id, None, "ada", at(2))
        for nothing in (
            await repository.revoke_api_key("unknown", at(2)),
            await repository.set_user_active("nobody", active=False, now=at(2)),
        ):
            assert nothing is None
        assert await repository.list_audit() == before

    async def test_acts_that_are_no_transaction_are_recorded_too(
        self, story: Story, other: JobRepository
    ) -> None:
        event = AuditEvent(at(7), EVE, AuditAction.BACKUP, "instance", {"bytes": 42})
        await story.repository.record_audit(event)
        assert await other.list_audit(at(7)) == [event]

    async def test_the_trail_is_read_from_a_time_on_oldest_first(self, story: Story) -> None:
        events = [AuditEvent(at(n), EVE, AuditAction.PRUNE, str(n)) for n in (9, 3, 6)]
        for event in events:
            await story.repository.record_audit(event)
        assert [event.subject for event in await story.repository.list_audit(at(4))] == ["6", "9"]

"""The contract about users and their keys."""

from dataclasses import replace

import pytest

from ci_common.errors import (
    AlreadyExists,
    Conflict,
    NotFound,
)
from ci_common.models import (
    JobStatus,
    Role,
    Scope,
    new_id,
)
from ci_common.repository import JobRepository
from tests.support.repository_contract.story import Story, at, make_job, make_key, make_user


class AccountsContract:
    async def test_a_user_comes_back_as_it_went_in(
        self, repository: JobRepository, other: JobRepository
    ) -> None:
        user = replace(make_user(), is_active=False, role=Role.ADMIN, name="Ada \N{SNOWMAN}")
        await repository.create_user(user)
        assert await other.get_user(user.id) == user
        assert await other.get_user_by_email(user.email) == user
        assert await other.get_user("nobody") is None
        assert await other.get_user_by_email("nobody@example.org") is None

    async def test_an_address_is_one_user_whatever_its_case(self, repository: JobRepository) -> None:
        await repository.create_user(make_user(email="Ada@Example.org"))
        with pytest.raises(AlreadyExists):
            await repository.create_user(make_user("other", email="aDA@example.ORG"))
        found = await repository.get_user_by_email("ADA@EXAMPLE.ORG")
        assert found is not None
        assert found.email == "Ada@Example.org"

    async def test_users_are_listed_oldest_first(self, repository: JobRepository) -> None:
        for name, seconds in (("b", 2), ("c", 1), ("a", 3)):
            await repository.create_user(make_user(name, created_at=at(seconds)))
        assert [user.name for user in await repository.list_users()] == ["c", "b", "a"]

    async def test_a_key_comes_back_with_its_owner(self, story: Story, other: JobRepository) -> None:
        key = make_key(
            story.user,
            prefix="ci_abcdefgh",
            scopes=frozenset({Scope.ADMIN, Scope.READ}),
            expires_at=at(100),
            last_used_at=at(1),
        )
        await story.repository.create_api_key(key)
        assert await other.find_api_key(key.key_hash) == (key, story.user)
        assert await other.find_api_key("unknown") is None

    async def test_keys_are_listed_by_user_or_all_oldest_first(self, story: Story) -> None:
        repository, bob = story.repository, make_user("bob")
        await repository.create_user(bob)
        late, early = make_key(story.user, created_at=at(2)), make_key(story.user, created_at=at(1))
        foreign = make_key(bob, created_at=at(3))
        for key in (late, foreign, early):
            await repository.create_api_key(key)
        assert await repository.list_api_keys(story.user.id) == [early, late]
        assert await repository.list_api_keys() == [early, late, foreign]

    async def test_a_key_needs_an_owner_and_a_hash_of_its_own(self, story: Story) -> None:
        key = make_key(story.user)
        await story.repository.create_api_key(key)
        with pytest.raises(Conflict):
            await story.repository.create_api_key(replace(key, id=new_id()))
        with pytest.raises(NotFound):
            await story.repository.create_api_key(make_key(make_user("nobody")))

    async def test_a_revoked_key_is_inactive_everywhere_at_once(
        self, story: Story, other: JobRepository
    ) -> None:
        key = make_key(story.user)
        await story.repository.create_api_key(key)
        await other.find_api_key(key.key_hash)
        assert await story.repository.revoke_api_key(key.id) == replace(key, is_active=False)
        assert await other.find_api_key(key.key_hash) == (replace(key, is_active=False), story.user)
        assert await story.repository.revoke_api_key("unknown") is None

    async def test_the_last_use_of_a_key_never_goes_back(self, story: Story) -> None:
        key = make_key(story.user)
        await story.repository.create_api_key(key)
        for seconds in (5, 9, 7):
            await story.repository.touch_api_key(key.id, at(seconds))
        (found,) = await story.repository.list_api_keys(story.user.id)
        assert found.last_used_at == at(9)

    async def test_deactivating_ends_the_users_jobs(self, story: Story) -> None:
        repository, bob = story.repository, make_user("bob")
        await repository.create_user(bob)
        running = (await story.queue()).id
        await story.run()
        claimed = (await story.queue(1)).id
        await story.claim()
        queued = (await story.queue(2)).id
        foreign = await repository.create_job(make_job(bob))
        user = await repository.set_user_active(story.user.id, active=False, now=at(9))
        assert user == replace(story.user, is_active=False)
        assert (await story.job(queued)).status is JobStatus.CANCELLED
        for job_id, status in ((running, JobStatus.RUNNING), (claimed, JobStatus.CLAIMED)):
            job = await story.job(job_id)
            assert (job.status, job.cancel_requested_at) == (status, at(9))
        assert await story.job(foreign.id) == foreign

    async def test_reactivating_touches_no_jobs(self, story: Story) -> None:
        job = await story.queue()
        assert await story.repository.set_user_active(story.user.id, active=True, now=at(9)) == story.user
        assert await story.job(job.id) == job
        assert await story.repository.set_user_active("nobody", active=True, now=at(9)) is None

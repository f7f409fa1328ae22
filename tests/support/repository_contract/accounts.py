"""The contract about users and their keys."""

import asyncio
from dataclasses import replace

import pytest

from ci_common.errors import (
    AlreadyExists,
    Conflict,
    NotFound,
)
from ci_common.job_terms import JobStatus
from ci_common.models import Role, Scope
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
        assert await other.find_api_key(key.prefix) == (key, story.user)
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

    @pytest.mark.parametrize("same", ["key_hash", "prefix"])
    async def test_a_key_needs_an_owner_a_hash_and_a_public_part_of_its_own(
        self, story: Story, same: str
    ) -> None:
        key = make_key(story.user)
        await story.repository.create_api_key(key)
        with pytest.raises(Conflict):
            await story.repository.create_api_key(make_key(story.user, **{same: getattr(key, same)}))
        with pytest.raises(NotFound):
            await story.repository.create_api_key(make_key(make_user("nobody")))

    async def test_a_revoked_key_is_inactive_everywhere_at_once(
        self, story: Story, other: JobRepository
    ) -> None:
        key = make_key(story.user)
        await story.repository.create_api_key(key)
        await other.find_api_key(key.prefix)
        assert await story.repository.revoke_api_key(key.id, at(5)) == replace(key, is_active=False)
        assert await other.find_api_key(key.prefix) == (replace(key, is_active=False), story.user)
        assert await story.repository.revoke_api_key("unknown", at(5)) is None

    async def test_a_rotated_key_works_beside_its_successor_for_the_overlap(
        self, story: Story, other: JobRepository
    ) -> None:
        old = make_key(story.user)
        await story.repository.create_api_key(old)
        new = make_key(story.user, created_at=at(10))
        kept = await story.repository.rotate_api_key(old.id, new, at(100))
        assert kept == replace(old, expires_at=at(100))
        assert await other.find_api_key(old.prefix) == (kept, story.user)
        assert await other.find_api_key(new.prefix) == (new, story.user)
        assert await other.rotate_api_key("unknown", make_key(story.user), at(100)) is None

    async def test_a_rotation_never_prolongs_a_key(self, story: Story) -> None:
        old = make_key(story.user, expires_at=at(50))
        await story.repository.create_api_key(old)
        kept = await story.repository.rotate_api_key(old.id, make_key(story.user, created_at=at(10)), at(100))
        assert kept == old

    async def test_no_more_than_two_keys_of_a_name_live_after_a_rotation(self, story: Story) -> None:
        repository = story.repository
        old, second = make_key(story.user), make_key(story.user, created_at=at(10))
        await repository.create_api_key(old)
        await repository.create_api_key(make_key(story.user, name="another"))
        await repository.rotate_api_key(old.id, second, at(100))
        before = await repository.list_api_keys()
        with pytest.raises(Conflict, match="2 live keys"):
            await repository.rotate_api_key(second.id, make_key(story.user, created_at=at(20)), at(200))
        assert await repository.list_api_keys() == before
        third = make_key(story.user, created_at=at(100))  # the first has expired
        assert await repository.rotate_api_key(second.id, third, at(200)) is not None

    async def test_two_who_rotate_the_same_key_at_once_make_one_successor(
        self, story: Story, other: JobRepository
    ) -> None:
        old = make_key(story.user)
        await story.repository.create_api_key(old)
        outcomes = await asyncio.gather(
            *(
                client.rotate_api_key(old.id, make_key(story.user, created_at=at(10)), at(100))
                for client in (story.repository, other)
            ),
            return_exceptions=True,
        )
        assert sorted(type(outcome).__name__ for outcome in outcomes) == ["APIKey", "Conflict"]
        assert len(await other.list_api_keys()) == 2

    @pytest.mark.parametrize("end", ["revoked", "expired", "owner"])
    async def test_a_key_that_does_not_work_has_no_successor(self, story: Story, end: str) -> None:
        repository = story.repository
        old = make_key(story.user, expires_at=at(5) if end == "expired" else None)
        await repository.create_api_key(old)
        if end == "revoked":
            await repository.revoke_api_key(old.id, at(5))
        if end == "owner":
            await repository.set_user_active(story.user.id, active=False, now=at(5))
        with pytest.raises(Conflict):
            await repository.rotate_api_key(old.id, make_key(story.user, created_at=at(10)), at(100))
        assert len(await repository.list_api_keys()) == 1

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

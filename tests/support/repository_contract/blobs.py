"""The contract about contents of files: whose they are, which jobs need them, when they may go."""

import asyncio
from dataclasses import replace

import pytest

from ci_common.blobs import Blob, BlobPlace, Pack
from ci_common.errors import MissingBlobs, Unauthorized
from ci_common.models import Idempotency
from ci_common.repository import JobRepository
from tests.support.repository_contract.story import Story, at, make_job, make_user

ONE, TWO, THREE = (bytes([number]) * 32 for number in (1, 2, 3))


def a_pack(name: str, *hashes: bytes) -> Pack:
    """Return a pack of so many contents of ten bytes each."""
    blobs = [Blob(sha256, 10 * number, 10, 20, 1) for number, sha256 in enumerate(hashes)]
    return Pack(name, 10 * len(blobs), blobs)


class BlobsContract:
    async def test_a_blob_is_found_where_it_was_put_first(self, story: Story, other: JobRepository) -> None:
        assert await story.repository.add_pack(story.user.id, a_pack("a", ONE, TWO), at(1)) == 2
        assert await other.add_pack(story.user.id, a_pack("b", TWO, THREE), at(2)) == 1
        assert await other.add_pack(story.user.id, a_pack("c", ONE, THREE), at(3)) == 0
        assert await other.find_blobs(story.user.id, [ONE, TWO, THREE, bytes(32)]) == {
            ONE: BlobPlace("a", 0, 10, 20, 1),
            TWO: BlobPlace("a", 10, 10, 20, 1),
            THREE: BlobPlace("b", 10, 10, 20, 1),
        }
        assert [pack.name for pack in await other.packs()] == ["b", "a"]
        assert await other.known_packs(["a", "c"]) == {"a"}
        # Rows and blocks count, too: what is tiny is not free.
        assert await other.pack_bytes(story.user.id) == 40 + 2 * 4096 + 3 * 256

    async def test_what_is_somebody_elses_is_missing(self, story: Story) -> None:
        bob = make_user("bob")
        await story.repository.create_user(bob)
        await story.repository.add_pack(bob.id, a_pack("bobs", ONE), at(1))
        assert await story.repository.find_blobs(story.user.id, [ONE]) == {}
        assert await story.repository.pack_bytes(story.user.id) == 0
        assert await story.repository.add_pack(story.user.id, a_pack("own", ONE), at(2)) == 1
        await story.repository.forget_packs(story.user.id, ["bobs"])
        assert (await story.repository.find_blobs(bob.id, [ONE]))[ONE].pack == "bobs"

    async def test_whatever_is_forgotten_changes_its_owners_number(
        self, story: Story, other: JobRepository
    ) -> None:
        bob = make_user("bob")
        await story.repository.create_user(bob)
        await story.repository.add_pack(bob.id, a_pack("bobs", ONE), at(1))
        seen = [await other.forgettings(story.user.id)]
        for name in ("a", "b"):
            await story.repository.add_pack(story.user.id, a_pack(name, ONE), at(1))
            assert await other.forgettings(story.user.id) == seen[-1], "what was found stays where it is"
            if name == "a":
                await story.repository.forget_packs(story.user.id, ["a"])
            else:
                await story.repository.remove_packs(None, ["b"])
            seen.append(await other.forgettings(story.user.id))
        assert len(set(seen)) == len(seen)
        assert await other.forgettings(bob.id) == 0

    async def test_a_job_and_its_packs_are_one_transaction(self, story: Story) -> None:
        bob = make_user("bob")
        await story.repository.create_user(bob)
        await story.repository.add_pack(bob.id, a_pack("bobs", ONE), at(1))
        await story.repository.add_pack(story.user.id, a_pack("own", ONE), at(1))
        for packs in (["own", "bobs"], ["own", "never was"]):
            job = make_job(story.user)
            with pytest.raises(MissingBlobs):
                await story.repository.create_job(job, Idempotency("key", "print"), None, packs)
            assert await story.repository.get_job(job.id) is None
        assert await story.repository.find_idempotent(story.user.id, "key") is None
        assert not any(pack.needed for pack in await story.repository.packs())

    async def test_a_pack_stays_until_no_kept_archive_needs_it(self, story: Story) -> None:
        repository = story.repository
        await repository.add_pack(story.user.id, a_pack("a", ONE), at(1))
        jobs = [
            await repository.create_job(make_job(story.user, at(seconds)), packs=["a"]) for seconds in (2, 3)
        ]
        [pack] = await repository.packs()
        assert (pack.needed, pack.created_at, pack.used_at) == (True, at(1), at(3))
        for job in jobs:
            await repository.mark_pruned(
                None, archives=[job.id], logs=[job.id], now=at(4)
            )  # it has not ended
            assert await repository.remove_packs(None, ["a"]) == []
            await repository.request_cancel(job.id, None, "operator", at(5))
            assert await repository.remove_packs(None, ["a"]) == []
            await repository.mark_pruned(None, archives=[job.id], logs=[job.id], now=at(6))
        assert await repository.remove_packs(None, ["a", "never was"]) == ["a"]
        assert await repository.packs() == []

    async def test_a_pack_goes_however_much_lies_in_it(self, story: Story) -> None:
        hashes = [number.to_bytes(32) for number in range(6_000)]
        await story.repository.add_pack(story.user.id, a_pack("a", *hashes), at(1))
        await story.repository.add_pack(story.user.id, a_pack("b", ONE), at(2))
        assert len(await story.repository.find_blobs(story.user.id, hashes)) == 6_000
        assert await story.repository.remove_packs(story.lease, ["a"]) == ["a"]
        assert list(await story.repository.find_blobs(story.user.id, [*hashes, ONE])) == [ONE]

    async def test_what_is_to_go_is_missing_although_a_job_needs_it(self, story: Story) -> None:
        await story.repository.add_pack(story.user.id, a_pack("a", ONE), at(1))
        await story.queue(2)
        await story.repository.create_job(make_job(story.user), packs=["a"])
        assert await story.repository.remove_packs(story.lease, ["a"]) == []
        assert await story.repository.find_blobs(story.user.id, [ONE]) == {}
        assert await story.repository.known_packs(["a"]) == {"a"}
        assert await story.repository.add_pack(story.user.id, a_pack("b", ONE), at(3)) == 1

    async def test_what_lies_in_a_forgotten_pack_is_missing(self, story: Story) -> None:
        await story.repository.add_pack(story.user.id, a_pack("a", ONE), at(1))
        await story.repository.forget_packs(story.user.id, ["a", "never was"])
        assert await story.repository.find_blobs(story.user.id, [ONE]) == {}
        assert await story.repository.known_packs(["a"]) == {"a"}

    async def test_a_stale_lease_removes_no_pack(self, story: Story, other: JobRepository) -> None:
        await other.add_pack(story.user.id, a_pack("a", ONE), at(1))
        stale = replace(story.lease, epoch=story.lease.epoch + 1)
        assert await other.remove_packs(stale, ["a"]) == []
        assert ONE in await other.find_blobs(story.user.id, [ONE])

    async def test_a_job_goes_although_packs_stay(self, story: Story) -> None:
        await story.repository.add_pack(story.user.id, a_pack("a", ONE), at(1))
        job = await story.repository.create_job(make_job(story.user), packs=["a"])
        await story.repository.request_cancel(job.id, None, "operator", at(2))
        await story.repository.mark_pruned(None, archives=[job.id], logs=[job.id], now=at(3))
        assert await story.repository.remove_jobs(None, [job.id]) == 1
        assert [pack.needed for pack in await story.repository.packs()] == [False]

    async def test_a_locked_out_owner_stores_nothing(self, story: Story) -> None:
        await story.repository.set_user_active(story.user.id, active=False, now=at(1))
        with pytest.raises(Unauthorized):
            await story.repository.add_pack(story.user.id, a_pack("a", ONE), at(2))

    async def test_submitting_and_pruning_at_once_leaves_no_job_without_its_packs(
        self, story: Story, other: JobRepository
    ) -> None:
        for number in range(20):
            name = f"pack-{number}"
            await story.repository.add_pack(story.user.id, a_pack(name, bytes([100 + number]) * 32), at(1))
            job = make_job(story.user)
            submitted, removed = await asyncio.gather(
                story.repository.create_job(job, packs=[name]),
                other.remove_packs(None, [name]),
                return_exceptions=True,
            )
            if removed:
                assert isinstance(submitted, MissingBlobs)
                assert await other.get_job(job.id) is None
            else:
                assert await other.get_job(job.id) == submitted
                assert name in await other.known_packs([name])

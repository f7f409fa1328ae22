"""Users and keys as the operator handles them, on a real SQLite file."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from ci_admin import accounts
from ci_common.api_keys import hash_api_key, is_well_formed, key_prefix
from ci_common.errors import AlreadyExists, Conflict, InvalidRequest, NotFound
from ci_common.job_terms import JobStatus, new_id
from ci_common.models import DEFAULT_SCOPES, Job, Role, Scope, User
from ci_common.repository import JobRepository
from ci_persistence.sqlite_repository import SQLiteJobRepository

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


@pytest.fixture
async def repository(tmp_path: Path) -> AsyncIterator[JobRepository]:
    opened = SQLiteJobRepository(tmp_path / "ci_jobs.db")
    await opened.initialize()
    yield opened
    await opened.close()


async def _ada(repository: JobRepository) -> User:
    return await accounts.create_user(repository, "Ada", "ada@example.com", Role.USER, NOW)


async def test_a_user_is_found_by_id_and_by_address_in_any_case(repository: JobRepository) -> None:
    made = await _ada(repository)

    assert await accounts.find_user(repository, made.id) == made
    assert await accounts.find_user(repository, "ADA@example.com") == made


async def test_an_address_belongs_to_one_user(repository: JobRepository) -> None:
    await _ada(repository)

    with pytest.raises(AlreadyExists, match=r"ada@EXAMPLE\.com"):
        await accounts.create_user(repository, "Other", "ada@EXAMPLE.com", Role.USER, NOW)


@pytest.mark.parametrize(
    "email", ["", "ada", "ada@", "@example.com", "a da@example.com", "a@b@c", "a@b\x1b[31m"]
)
async def test_what_is_no_address_is_refused(repository: JobRepository, email: str) -> None:
    with pytest.raises(InvalidRequest, match="not an e-mail address"):
        await accounts.create_user(repository, "Ada", email, Role.USER, NOW)


@pytest.mark.parametrize("name", ["", "  ", "two\nlines", "x" * 255])
async def test_what_is_no_name_is_refused(repository: JobRepository, name: str) -> None:
    with pytest.raises(InvalidRequest, match="printable"):
        await accounts.create_user(repository, name, "ada@example.com", Role.USER, NOW)


async def test_an_unknown_user_is_not_found(repository: JobRepository) -> None:
    with pytest.raises(NotFound, match=r"nobody@example\.com"):
        await accounts.find_user(repository, "nobody@example.com")


async def test_of_a_key_only_the_hash_is_kept(repository: JobRepository) -> None:
    owner = await _ada(repository)
    issued = await accounts.issue_key(repository, owner, "laptop", DEFAULT_SCOPES, None, NOW)

    assert is_well_formed(issued.secret)
    assert await repository.find_api_key(key_prefix(issued.secret)) == (issued.key, owner)
    assert issued.key.key_hash == hash_api_key(issued.secret)
    assert issued.secret not in str(await repository.list_api_keys())
    assert issued.secret not in str(await repository.list_audit())


async def test_a_key_keeps_scopes_and_expiry(repository: JobRepository) -> None:
    owner = await _ada(repository)
    tomorrow = NOW + timedelta(days=1)
    await accounts.issue_key(repository, owner, "reader", frozenset({Scope.READ}), tomorrow, NOW)

    (key,) = await repository.list_api_keys(owner.id)
    assert (key.scopes, key.expires_at) == (frozenset({Scope.READ}), tomorrow)


async def test_a_deactivated_user_gets_no_key(repository: JobRepository) -> None:
    owner = await _ada(repository)
    result = await accounts.deactivate_user(repository, owner.email, NOW)

    with pytest.raises(Conflict, match="deactivated"):
        await accounts.issue_key(repository, result.user, "laptop", DEFAULT_SCOPES, None, NOW)


async def test_deactivating_cancels_and_counts_unfinished_jobs(repository: JobRepository) -> None:
    owner = await _ada(repository)
    jobs = [await repository.create_job(Job(new_id(), owner.id, NOW, archive_ref=f"a{n}")) for n in range(2)]

    result = await accounts.deactivate_user(repository, owner.id, NOW)

    assert (result.jobs, result.user.is_active) == (2, False)
    states = [await repository.get_job(job.id) for job in jobs]
    assert [job.status for job in states if job] == [JobStatus.CANCELLED] * 2


async def test_an_activated_user_works_again(repository: JobRepository) -> None:
    owner = await _ada(repository)
    await accounts.deactivate_user(repository, owner.id, NOW)

    assert (await accounts.activate_user(repository, owner.email, NOW)).is_active


@pytest.mark.parametrize("named_by", ["id", "prefix"])
async def test_a_key_is_revoked_by_its_id_or_its_prefix(repository: JobRepository, named_by: str) -> None:
    owner = await _ada(repository)
    issued = await accounts.issue_key(repository, owner, "laptop", DEFAULT_SCOPES, None, NOW)

    revoked = await accounts.revoke_key(repository, getattr(issued.key, named_by), NOW)

    assert revoked.id == issued.key.id
    found = await repository.find_api_key(issued.key.prefix)
    assert found is not None
    assert not found[0].is_usable(NOW)


@pytest.mark.parametrize("named", ["", "ci_", "no-such-id"])
async def test_revoking_what_is_no_key_is_not_found(repository: JobRepository, named: str) -> None:
    owner = await _ada(repository)
    await accounts.issue_key(repository, owner, "laptop", DEFAULT_SCOPES, None, NOW)

    with pytest.raises(NotFound, match="API key"):
        await accounts.revoke_key(repository, named, NOW)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("12h", NOW + timedelta(hours=12)),
        ("90d", NOW + timedelta(days=90)),
        ("2W", NOW + timedelta(weeks=2)),
        ("1y", NOW + timedelta(days=365)),
        ("2030-01-31", datetime(2030, 1, 31, tzinfo=UTC)),
        ("2030-01-31T12:00+02:00", datetime(2030, 1, 31, 10, tzinfo=UTC)),
    ],
)
def test_an_expiry_is_a_duration_or_a_date(text: str, expected: datetime) -> None:
    assert accounts.parse_expiry(text, NOW) == expected


@pytest.mark.parametrize("text", ["", "soon", "90", "-1d", "999999y", "2030-13-01"])
def test_what_is_no_expiry_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest, match="is no expiry"):
        accounts.parse_expiry(text, NOW)


@pytest.mark.parametrize("text", ["0d", "2026-03-01", "2020-01-01T00:00:00Z"])
def test_an_expiry_in_the_past_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest, match="not in the future"):
        accounts.parse_expiry(text, NOW)

"""The cast and the usual steps of the repository contract, so that a test says only what it is about."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from ci_common.job_terms import JobStatus, Reason, new_id
from ci_common.models import (
    Agent,
    AgentProfile,
    APIKey,
    Attempt,
    ControllerLease,
    Fence,
    Job,
    LogSeal,
    Scope,
    User,
)
from ci_common.repository import JobRepository
from ci_common.verdict import verdict

START = datetime(2026, 1, 2, 3, 4, 5, 678, tzinfo=UTC)
SEAL = LogSeal(42, "ab" * 32)


def at(seconds: float) -> datetime:
    """Return the time that many seconds after the start of the test's story."""
    return START + timedelta(seconds=seconds)


@dataclass(frozen=True)
class Backend:
    """One database of one test: `open` gives another client of it, in this process or in another one."""

    open: Callable[[str], JobRepository]  # importable by name, so that other processes can call it
    location: str
    lock_out: Callable[[str], bool]  # is somebody holding a write transaction open?


def make_user(name: str = "ada", **fields: Any) -> User:
    return replace(User(f"id-{name}", name, f"{name}@example.org", START), **fields)


def make_job(user: User, created_at: datetime = START, **fields: Any) -> Job:
    return replace(Job(new_id(), user.id, created_at, archive_ref="ref"), **fields)


def make_key(user: User, **fields: Any) -> APIKey:
    key = APIKey(new_id(), user.id, "laptop", key_hash=new_id(), created_at=START, prefix=new_id())
    return replace(key, **fields)


async def _claim_all(
    open_: Callable[[str], JobRepository], location: str, lease: ControllerLease
) -> list[str]:
    repository = open_(location)
    claimed: list[str] = []
    try:
        while found := await repository.claim_jobs(lease, 1, at(1)):
            claimed += [attempt.fence.job_id for attempt in found]
    finally:
        await repository.close()
    return claimed


def claim_all(open_: Callable[[str], JobRepository], location: str, lease: ControllerLease) -> list[str]:
    """Claim one by one until nothing is queued; runs in a process of its own."""
    return asyncio.run(_claim_all(open_, location, lease))


PROFILE = AgentProfile("rack-1", "gpu", slots=2, labels=("cuda", "big"), version="1.0")


class Story:
    """The usual cast and the usual steps, so that a test says only what it is about."""

    def __init__(self, repository: JobRepository) -> None:
        self.repository = repository
        self.user = make_user()
        self.lease = ControllerLease(0, "nobody")

    async def begin(self) -> None:
        await self.repository.create_user(self.user)
        self.lease = await self.repository.take_over("controller", START)

    async def queue(self, seconds: float = 0, **fields: Any) -> Job:
        return await self.repository.create_job(make_job(self.user, at(seconds), **fields))

    async def claim(self, seconds: float = 1) -> Attempt:
        (attempt,) = await self.repository.claim_jobs(self.lease, 1, at(seconds))
        return attempt

    async def agent(self, name: str = "rack-1", seconds: float = 1, **fields: Any) -> Agent:
        """An agent with a key of its own is registered."""
        known = {"id": f"key-{name}", "name": name, "key_hash": f"hash-{name}", "prefix": f"prefix-{name}"}
        key = make_key(self.user, **known, scopes=frozenset({Scope.AGENT}))
        await self.repository.create_api_key(key)
        profile = replace(PROFILE, name=name, **fields)
        return await self.repository.register_agent(key.id, profile, at(seconds))

    async def run(self, container_id: str = "container", seconds: float = 2) -> Attempt:
        """A queued job is claimed, started and begun."""
        attempt = await self.claim(seconds)
        assert await self.repository.mark_started(attempt.fence, container_id, "image", at(seconds))
        assert await self.repository.mark_begun(attempt.fence, at(seconds))
        return attempt

    async def release(
        self,
        fence: Fence,
        seconds: float = 3,
        *,
        max_attempts: int = 3,
        not_before: datetime | None = None,
        log: LogSeal | None = None,
    ) -> JobStatus | None:
        """The engine lost the attempt."""
        return await self.repository.release_attempt(
            fence,
            reason=Reason.INFRA,
            message="The engine lost it.",
            max_attempts=max_attempts,
            not_before=not_before,
            now=at(seconds),
            log=log,
        )

    async def job(self, job_id: str) -> Job:
        job = await self.repository.get_job(job_id)
        assert job is not None
        return job

    async def timeline(self, job_id: str) -> list[str]:
        return [event.type for event in await self.repository.get_events(job_id)]


def all_fenced_writes(story: Story, fence: Fence) -> list[Callable[[], Awaitable[object]]]:
    """Return every write that names a fence."""
    repository = story.repository
    return [
        lambda: repository.mark_started(fence, "a container", "image", at(10)),
        lambda: repository.mark_begun(fence, at(10)),
        lambda: repository.record_stop(fence, Reason.TIMEOUT, None, at(10)),
        lambda: repository.finish_attempt(fence, verdict(None), SEAL, at(10)),
        lambda: story.release(fence, seconds=10),
    ]

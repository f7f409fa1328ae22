"""What every JobRepository must do, whatever its database: subclass it and provide the `backend` fixture.

Another database is one more entry of that fixture. Nothing in this package knows SQL.
"""

import asyncio
from collections.abc import AsyncIterator

import pytest

from ci_common.repository import JobRepository
from tests.support.repository_contract.accounts import AccountsContract
from tests.support.repository_contract.agents import AgentsContract
from tests.support.repository_contract.attempts import AttemptsContract
from tests.support.repository_contract.audit import AuditContract
from tests.support.repository_contract.blobs import BlobsContract
from tests.support.repository_contract.cancellation import CancellationContract
from tests.support.repository_contract.control import ControlContract
from tests.support.repository_contract.dead_letters import DeadLettersContract
from tests.support.repository_contract.jobs import JobsContract
from tests.support.repository_contract.pausing import PausingContract
from tests.support.repository_contract.pools import PoolsContract
from tests.support.repository_contract.priorities import PrioritiesContract
from tests.support.repository_contract.queue_stats import QueueStatsContract
from tests.support.repository_contract.repeats import RepeatsContract
from tests.support.repository_contract.retention import RetentionContract
from tests.support.repository_contract.story import Backend, Story, make_user


class RepositoryContract(
    AccountsContract,
    AuditContract,
    JobsContract,
    ControlContract,
    PrioritiesContract,
    PausingContract,
    QueueStatsContract,
    DeadLettersContract,
    RepeatsContract,
    AttemptsContract,
    AgentsContract,
    PoolsContract,
    CancellationContract,
    RetentionContract,
    BlobsContract,
):
    """The suite."""

    @pytest.fixture
    async def repository(self, backend: Backend) -> AsyncIterator[JobRepository]:
        repository = backend.open(backend.location)
        yield repository
        await repository.close()

    @pytest.fixture
    async def other(self, backend: Backend) -> AsyncIterator[JobRepository]:
        """A second client of the same database, as another replica has."""
        other = backend.open(backend.location)
        yield other
        await other.close()

    @pytest.fixture
    async def story(self, repository: JobRepository) -> Story:
        story = Story(repository)
        await story.begin()
        return story

    async def test_initialising_again_changes_nothing(
        self, repository: JobRepository, other: JobRepository
    ) -> None:
        await repository.create_user(make_user())
        identity = await repository.instance_id()
        await asyncio.gather(repository.initialize(), other.initialize())
        await other.check()
        assert await other.instance_id() == identity
        assert await other.list_users() == [make_user()]

    async def test_closing_twice_is_harmless_and_use_reopens(self, repository: JobRepository) -> None:
        await repository.check()
        await repository.close()
        await repository.close()
        await repository.check()

    async def test_housekeeping_loses_nothing(self, repository: JobRepository) -> None:
        await repository.create_user(make_user())
        await repository.maintain()
        assert await repository.get_user("id-ada") == make_user()

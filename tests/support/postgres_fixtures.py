"""A PostgreSQL database of a test's own, its repository, and users with jobs in it."""

from collections.abc import AsyncIterator, Generator

import pytest

from ci_persistence.postgres_repository import PostgresJobRepository
from tests.support.postgres import drop_postgres, new_postgres
from tests.support.repository_contract.story import Story


@pytest.fixture
def url() -> Generator[str]:
    url = new_postgres()
    yield url
    drop_postgres(url)


@pytest.fixture
async def repository(url: str) -> AsyncIterator[PostgresJobRepository]:
    repository = PostgresJobRepository(url)
    yield repository
    await repository.close()


@pytest.fixture
async def story(repository: PostgresJobRepository) -> Story:
    story = Story(repository)
    await story.begin()
    return story

"""Fixtures of every test: a CI system of one's own, and one shared by the tests of a worker that break nothing."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.docker_cli import require_engine
from tests.support.installation import Daemon, Installation
from tests.support.secrets import assert_no_secrets


def assert_ended_well(system: Installation) -> None:
    """Every process is gone, no container was left over, and no log holds a key."""
    assert system.stop() == [], "containers were left over"
    assert_no_secrets(system)


@pytest.fixture(scope="session")
def engine() -> None:
    """A Docker engine answers and has the runner image."""
    require_engine()


@pytest.fixture
def installation(engine: None, tmp_path: Path, worker_id: str) -> Iterator[Installation]:
    """A CI system of this test's own, with nothing started yet."""
    system = Installation(tmp_path, prefix=f"test-{worker_id}-")
    yield system
    assert_ended_well(system)


@pytest.fixture(scope="session")
def shared(
    engine: None, tmp_path_factory: pytest.TempPathFactory, worker_id: str
) -> Iterator[tuple[Installation, Daemon]]:
    """A running CI system that the tests of one worker share; they must not disturb its processes."""
    system = Installation(tmp_path_factory.mktemp("shared"), prefix=f"test-{worker_id}-shared-")
    server = system.start()
    yield system, server
    assert_ended_well(system)

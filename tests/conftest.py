"""Fixtures of every test: a CI system of one's own, and one shared by the tests of a worker that break nothing."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.support.docker_cli import require_engine
from tests.support.installation import Daemon, Installation
from tests.support.prepared_image import prepared_image
from tests.support.secrets import assert_no_secrets
from tests.support.soak import SOAKING

# The same examples in each run of `make test`, others in each of `make soak`; how long one takes says nothing here.
settings.register_profile("ours", deadline=None, derandomize=not SOAKING)
settings.load_profile("ours")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """`-n auto` is two workers more than there are cores: tests of real processes spend part of their time waiting."""
    return len(os.sched_getaffinity(0)) + 2


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The long tests come first: workers that have nothing left to do find short ones to take over."""
    items.sort(key=_length, reverse=True)


def _length(item: pytest.Item) -> tuple[bool, float]:
    """Return how long the test may take, as its marks tell."""
    limit = item.get_closest_marker("timeout")
    return item.get_closest_marker("docker") is not None, float(limit.args[0]) if limit else 0.0


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """What `ci` learns of the projects of tests is not kept among the person's own."""
    with pytest.MonkeyPatch.context() as patch:
        directory = tmp_path_factory.mktemp("cache")
        patch.setenv("XDG_CACHE_HOME", str(directory))
        yield directory


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
    system = Installation(tmp_path, prefix=f"test-{worker_id}-", image=prepared_image())
    yield system
    assert_ended_well(system)


@pytest.fixture(scope="session")
def shared(
    engine: None, tmp_path_factory: pytest.TempPathFactory, worker_id: str
) -> Iterator[tuple[Installation, Daemon]]:
    """A running CI system that the tests of one worker share; they must not disturb its processes."""
    root = tmp_path_factory.mktemp("shared")
    system = Installation(
        root, prefix=f"test-{worker_id}-shared-", image=prepared_image(), keeps_environments=True
    )
    server = system.start()
    yield system, server
    assert_ended_well(system)

"""A server that the tests of a worker share, each with controllers of its own: those are what they kill, or set up."""

from collections.abc import Iterator

import pytest

from tests.conftest import assert_ended_well
from tests.support.eventually import eventually
from tests.support.installation import Daemon, Installation
from tests.support.prepared_image import prepared_image

Served = tuple[Installation, Daemon]


@pytest.fixture(scope="session")
def installations_with_a_server(
    engine: None, tmp_path_factory: pytest.TempPathFactory, worker_id: str
) -> Iterator[list[Served]]:
    """The last one is in use; after a test that failed another one follows it."""
    made: list[Served] = []
    yield made
    for system, _ in made:
        assert_ended_well(system)


@pytest.fixture
def served(
    installations_with_a_server: list[Served], tmp_path_factory: pytest.TempPathFactory, worker_id: str
) -> Iterator[Served]:
    """An installation with a server, no controller, and no job under way."""
    made = installations_with_a_server
    if not made or not made[-1][1].running:
        root = tmp_path_factory.mktemp("served")
        system = Installation(root, prefix=f"test-{worker_id}-served{len(made)}-", image=prepared_image())
        system.key()
        made.append((system, system.start_server()))
    system, server = made[-1]
    yield system, server
    try:
        end_controllers(system)
    except BaseException:
        server.kill()
        raise


def end_controllers(system: Installation) -> None:
    """No controller runs, no container is left, no job is under way."""
    controllers = [one for one in system.daemons if one.log.name.startswith("controller") and one.running]
    if controllers:
        eventually(lambda: not system.containers(), what="the removal of every container")
    for controller in controllers:
        # A job may be over before the last controller has begun; before that, a signal just kills it.
        eventually(lambda one=controller: "serving" in one.log.read_text(), what="the controller")
        assert controller.terminate() == 0, controller.tail()
    assert system.containers() == []
    assert system.query("SELECT id FROM jobs WHERE status IN ('queued', 'claimed', 'running')") == []

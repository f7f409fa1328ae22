"""Containers that wait ahead of need, on a real engine: the next job is assigned one, and none is left behind."""

from pathlib import Path

import pytest

from ci_controller.labels import INSTANCE
from tests.e2e.conftest import Served
from tests.support.eventually import eventually
from tests.support.handing_in import hand_in
from tests.support.installation import Daemon, Installation, make_project

pytestmark = [pytest.mark.docker, pytest.mark.timeout(180)]

ONE = {"CI_WARM_CONTAINERS": "1", "CI_MAX_RUNNING_JOBS": "1", "CI_ENVIRONMENT_BYTES": "10GiB"}


def the_one_that_waits(system: Installation) -> str:
    """Return the id of the container that waits, once there is one."""
    ours = ("--filter", f"label={INSTANCE}={system.instance_id()}", "--filter", "name=waiting-")

    def found() -> str | None:
        running = system.docker("ps", "--no-trunc", "--quiet", *ours)
        return running.split()[0] if running.strip() else None

    return eventually(found, what="a container that waits", seconds=30)


def a_job(system: Installation, server: Daemon, project: Path) -> str:
    """A job ran and passed; returns the id of its container."""
    job_id = hand_in(system, server, project, "-s")
    job = system.wait(server, job_id)
    assert (job["status"], job["success"], job["attempt"]) == ("completed", True, 1), job
    assert system.log(server, job_id).count(b"it ran") == 1
    [(container,)] = system.query("SELECT container_id FROM attempts WHERE job_id = ?", job_id)
    return container


def test_the_next_job_is_assigned_a_container_that_was_there_before_it(
    served: Served, tmp_path: Path
) -> None:
    """One that was killed while it waited costs no job anything; what waited for a killed controller is removed by the
    next one, and who is asked to end takes along what waits."""
    system, server = served
    project = make_project(tmp_path / "project", {"test_x.py": "def test_x():\n    print('it ran')\n"})
    first_controller = system.start_controller(**ONE)
    first = a_job(system, server, project)
    waiting = the_one_that_waits(system)
    assert waiting != first
    assert a_job(system, server, project) == waiting

    killed = the_one_that_waits(system)
    assert killed not in (first, waiting)
    system.docker("kill", killed)
    assert a_job(system, server, project) != killed

    left = the_one_that_waits(system)
    first_controller.kill()
    assert left in system.containers()
    successor = system.start_controller(**ONE)
    eventually(lambda: left not in system.containers(), what="the removal of what waited")
    assert a_job(system, server, project) != left
    the_one_that_waits(system)  # none is just being made, which may last longer than the grace for it
    assert successor.terminate() == 0, successor.tail()
    assert system.containers() == [], "nothing is left behind"

"""Containers that wait ahead of need, on a real engine: the next job is assigned one, and none is left behind."""

import re
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ci_controller.probes import report
from tests.sandbox import project as hostile
from tests.support.eventually import eventually
from tests.support.installation import Daemon, Installation, make_project

pytestmark = [pytest.mark.docker, pytest.mark.timeout(180)]

ONE = {"CI_WARM_CONTAINERS": "1", "CI_MAX_RUNNING_JOBS": "1"}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return make_project(tmp_path / "project", {"test_x.py": "def test_x():\n    print('it ran')\n"})


@contextmanager
def started(system: Installation) -> Generator[tuple[Daemon, Daemon]]:
    """A controller and a server; what waits at the end goes with the controller."""
    system.keeps_environments = True
    controller = system.start_controller(**ONE)
    server = system.start_server()
    system.wait_ready(server)
    yield controller, server
    the_one_that_waits(system)  # none is just being made, which may last longer than the grace for it
    assert controller.terminate() == 0, controller.tail()
    assert system.containers() == [], "nothing is left behind"


def the_one_that_waits(system: Installation) -> str:
    """Return the id of the container that waits, once there is one."""

    def found() -> str | None:
        running = system.docker(
            "ps", "--no-trunc", "--format", "{{.ID}} {{.Names}}", "--filter", f"name={system.prefix}waiting-"
        )
        return running.split()[0] if running.strip() else None

    return eventually(found, what="a container that waits", seconds=30)


def a_job(system: Installation, server: Daemon, project: Path) -> tuple[str, str]:
    """A job ran and passed; returns its id, and that of its container."""
    job_id = system.submit(server, project, "--", "-s")
    job = system.wait(server, job_id)
    assert (job["status"], job["success"], job["attempt"]) == ("completed", True, 1), job
    assert system.log(server, job_id).count(b"it ran") == 1
    [(container,)] = system.query("SELECT container_id FROM attempts WHERE job_id = ?", job_id)
    return job_id, container


def test_the_second_job_is_assigned_a_container_that_was_there_before_it(
    installation: Installation, project: Path
) -> None:
    with started(installation) as (_, server):
        _, first = a_job(installation, server, project)
        waiting = the_one_that_waits(installation)
        assert waiting != first
        _, second = a_job(installation, server, project)
        assert second == waiting
        assert the_one_that_waits(installation) not in (first, second)


def test_what_waited_for_a_killed_controller_is_removed_by_the_next(
    installation: Installation, project: Path
) -> None:
    installation.keeps_environments = True
    controller = installation.start_controller(**ONE)
    server = installation.start_server()
    installation.wait_ready(server)
    a_job(installation, server, project)
    waiting = the_one_that_waits(installation)
    controller.kill()
    assert waiting in installation.containers()
    installation.start_controller()
    eventually(lambda: not installation.containers(), what="the removal of what waited")
    a_job(installation, server, project)


def test_one_that_was_killed_while_it_waited_costs_no_job_anything(
    installation: Installation, project: Path
) -> None:
    with started(installation) as (_, server):
        a_job(installation, server, project)
        waiting = the_one_that_waits(installation)
        installation.docker("kill", waiting)
        _, container = a_job(installation, server, project)
        assert container != waiting


def test_nothing_hostile_succeeds_in_a_container_that_waited(
    installation: Installation, project: Path, tmp_path: Path
) -> None:
    """The probes that need nobody else, as a job that is assigned a waiting container."""
    with started(installation) as (_, server):
        a_job(installation, server, project)
        waiting = the_one_that_waits(installation)
        done = installation.ci(
            server, "submit", "test", "--", "-s", project=hostile.hostile(tmp_path / "hostile", {})
        )
        [(container,)] = installation.query(
            "SELECT container_id FROM attempts ORDER BY started_at DESC LIMIT 1"
        )
        assert container == waiting
        results = list(report.results(done.text))
        assert len(results) > 10, done.text[-3000:] + done.err
        assert [result for result in results if result.succeeded] == []
        assert re.search("passed", done.text)

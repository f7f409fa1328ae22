"""A runtime that the operator named and the engine does not have: said at once, nobody is charged, jobs wait."""

import pytest

from tests.support.eventually import eventually
from tests.support.installation import FIXTURES, Installation

pytestmark = [pytest.mark.docker, pytest.mark.timeout(180)]


def test_jobs_wait_for_the_runtime_that_was_asked_for(installation: Installation) -> None:
    system = installation
    misled = system.start_controller(CI_JOB_RUNTIME="runsc-missing")
    server = system.start_server()
    job_id = system.submit(server, FIXTURES / "passing")
    eventually(lambda: "the engine has no such runtime" in misled.tail(), what="the word at the start")
    eventually(lambda: "CI_JOB_RUNTIME" in (_note(system) or ""), what="the controller's note")
    assert system.job(server, job_id)["success"] is None
    misled.terminate()
    system.start_controller()
    job = system.wait(server, job_id)
    assert job["success"] is True
    eventually(lambda: not system.containers(), what="the container's removal")


def _note(system: Installation) -> str | None:
    [[note]] = system.query("SELECT note FROM controller")
    return note

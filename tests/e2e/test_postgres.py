"""The main job over PostgreSQL: real daemons and commands, a real engine, a server that is started again meanwhile."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import assert_ended_well
from tests.support.eventually import eventually
from tests.support.handing_in import hand_in
from tests.support.installation import FIXTURES, Daemon, Installation, make_project
from tests.support.postgres import cluster, drop_postgres, new_postgres
from tests.support.prepared_image import prepared_image

pytestmark = pytest.mark.docker

PASSWORD = "s3cr3t-p4ss"  # which no test needs: the socket lets everybody in
WAITING = """
import os, time

def test_waits():
    while not os.path.exists("/tmp/enough"):
        time.sleep(0.02)
"""


@pytest.fixture
def installation(engine: None, tmp_path: Path, worker_id: str) -> Iterator[Installation]:
    url = new_postgres(migrated=False).replace("postgres@", f"postgres:{PASSWORD}@")
    system = Installation(
        tmp_path, prefix=f"test-{worker_id}-postgres-", image=prepared_image(), database_url=url
    )
    yield system
    assert_ended_well(system)
    drop_postgres(url)


def test_jobs_run_over_postgresql_and_through_a_restart_of_it(
    installation: Installation, tmp_path: Path
) -> None:
    server = installation.start()
    passed = installation.ci(server, "submit", "test", project=FIXTURES / "passing")
    assert passed.code == 0, passed.err
    assert "4 passed" in passed.text
    failed = installation.submit(server, FIXTURES / "failing")
    assert installation.ci(server, "wait", failed, "--all").code == 1

    waiting = make_project(tmp_path / "waiting", {"requirements.txt": "pytest\n", "test_it.py": WAITING})
    running = hand_in(installation, server, waiting)
    eventually(lambda: installation.job(server, running)["status"] == "running", what="the start")
    cluster().stop()
    cluster().start()
    later = hand_in(installation, server, FIXTURES / "passing")
    [container] = [one for one in installation.containers() if _is_of(installation, one, running)]
    installation.tell(container)
    assert installation.wait(server, running)["success"] is True
    assert installation.wait(server, later)["success"] is True
    _is_told_of_nothing_secret(installation, server)


def test_a_controller_that_waits_goes_on_with_the_job_of_a_leader_that_was_killed(
    installation: Installation, tmp_path: Path
) -> None:
    leader = installation.start_controller()
    server = installation.start_server()
    installation.wait_ready(server)
    heir = installation.start_controller()
    eventually(lambda: "another controller leads" in heir.log.read_text(), what="the one that waits")
    assert _controller(installation, server)["waiting"] == 1

    waiting = make_project(tmp_path / "waiting", {"requirements.txt": "pytest\n", "test_it.py": WAITING})
    job_id = hand_in(installation, server, waiting)
    eventually(lambda: _has_begun(installation, job_id), seconds=90, what="the tests")
    leader.kill()
    eventually(lambda: "serving" in heir.log.read_text(), seconds=90, what="the take-over")
    [container] = installation.containers()
    installation.tell(container)
    job = installation.wait(server, job_id)
    assert (job["success"], job["attempt"]) == (True, 1), "it was adopted, not run again"
    assert _controller(installation, server)["holder"].endswith(f":{heir.process.pid}")
    assert _controller(installation, server)["waiting"] == 0


def _has_begun(installation: Installation, job_id: str) -> bool:
    begun = "SELECT 1 FROM attempts WHERE job_id = ? AND begun_at IS NOT NULL"
    return installation.query(begun, job_id) != []


def _controller(installation: Installation, server: Daemon) -> dict[str, Any]:
    with installation.http(server) as http:
        return http.get("/ready").json()["checks"]["controller"]


def _is_of(installation: Installation, container: str, job_id: str) -> bool:
    return job_id in installation.docker("inspect", "--format", "{{.Name}}", container)


def _is_told_of_nothing_secret(installation: Installation, server: Daemon) -> None:
    doctor = installation.admin("doctor", "--json")
    [database] = [one for one in json.loads(doctor.out)["checks"] if one["name"] == "database"]
    assert (database["status"], PASSWORD in doctor.text + doctor.err) == ("ok", False)
    refused = installation.admin("backup", str(installation.root / "backup"))
    assert (refused.code, "pg_dump" in refused.err) == (64, True)
    assert installation.admin("stats").code == 0
    for daemon in installation.daemons:
        assert PASSWORD not in daemon.log.read_text()
    with installation.http(server) as http:
        assert PASSWORD not in http.get("/ready").text

"""Living on a box, everything real: pruned logs, a backup while jobs run, a restore while containers run."""

import json
from pathlib import Path

import httpx
import pytest

from tests.support.eventually import eventually
from tests.support.installation import Installation, make_project

pytestmark = pytest.mark.docker

SHORT = "def test_short(): pass\n"
# Runs until the file appears that the test puts into its container.
WAITING = """
import os, time

def test_waits():
    while not os.path.exists("/tmp/enough"):
        time.sleep(0.02)
"""


def project(root: Path, code: str) -> Path:
    return make_project(root, {"requirements.txt": "pytest\n", "test_it.py": code})


def test_a_pruned_log_is_said_to_be_gone_by_the_command_and_the_verdict_stays(
    installation: Installation, tmp_path: Path
) -> None:
    controller = installation.start_controller(
        CI_KEEP_ARCHIVES_MAX="0", CI_KEEP_LOGS_MAX="0", CI_KEEP_LOGS_MIN="0"
    )
    server = installation.start_server()
    installation.wait_ready(server)
    job = installation.submit(server, project(tmp_path / "project", SHORT))
    assert installation.wait(server, job)["success"] is True
    assert controller.terminate() == 0
    installation.start_controller(
        CI_KEEP_ARCHIVES_MAX="0", CI_KEEP_LOGS_MAX="0", CI_KEEP_LOGS_MIN="0"
    )  # prunes at once
    with installation.http(server) as http:
        eventually(lambda: http.get(f"/jobs/{job}/log").status_code == 410, what="the prune")
    assert not list(installation.root.glob("*.data/archives/*.zip"))
    logs = installation.ci(server, "logs", job)
    assert logs.code == 66
    assert "was pruned on" in logs.err
    waited = installation.ci(server, "wait", job)
    assert waited.code == 0, waited.err
    [day] = json.loads(installation.admin("stats", "--json").out)
    assert (day["jobs"], day["passed"]) == (1, 1)


def test_a_backup_taken_while_jobs_run_and_restored_while_containers_run(
    installation: Installation, tmp_path: Path
) -> None:
    """Rows 50 and 51: the job of the backup has one verdict, the one since is 404, no container is left."""
    installation.start_controller(CI_MAX_RUNNING_JOBS="2")
    server = installation.start_server()
    installation.wait_ready(server)
    running = installation.submit(server, project(tmp_path / "project", WAITING))
    eventually(lambda: installation.job(server, running)["status"] == "running", what="the start")
    backup = tmp_path / "backup"
    taken = installation.admin("backup", str(backup), "--json")
    assert taken.code == 0, taken.err
    assert json.loads(taken.out)["unfinished_jobs"] == 1
    late = installation.submit(server, project(tmp_path / "quick", SHORT))
    assert installation.wait(server, late)["success"] is True
    assert installation.job(server, running)["success"] is None

    busy = installation.admin("restore", str(backup), "--force")
    assert (busy.code, "stop it" in busy.err) == (75, True)
    controller = next(daemon for daemon in installation.daemons if daemon is not server)
    assert controller.terminate() == 0
    busy = installation.admin("restore", str(backup), "--force")
    assert (busy.code, "stop controller, servers" in busy.err) == (75, True)
    server.terminate()

    restored = installation.admin("restore", str(backup), "--force", "--json")
    assert restored.code == 0, restored.err
    report = json.loads(restored.out)
    assert report["unknown_jobs"] == [late]
    assert report["lost_verdicts"] == [f"{late}: completed"]
    installation.start_controller()
    successor = installation.start_server()
    installation.wait_ready(successor)
    [(container,)] = installation.query("SELECT container_id FROM attempts WHERE job_id = ?", running)
    installation.docker("exec", container, "touch", "/tmp/enough")
    job = installation.wait(successor, running)
    assert job["success"] is True
    [(attempts,)] = installation.query("SELECT count(*) FROM attempts WHERE job_id = ?", running)
    assert attempts == 1  # its container was adopted
    with installation.http(successor) as http:
        assert http.get(f"/jobs/{late}").status_code == httpx.codes.NOT_FOUND
        assert b"1 passed" in http.get(f"/jobs/{running}/log").content

"""Living on a box, everything real: pruned logs, a backup while jobs run, a restore while containers run."""

import json
from pathlib import Path

import httpx
import pytest

from tests.support.eventually import eventually
from tests.support.handing_in import hand_in
from tests.support.installation import Daemon, Installation, make_project

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


def test_a_backup_taken_while_jobs_run_and_restored_while_containers_run(
    installation: Installation, tmp_path: Path
) -> None:
    """Rows 50 and 51: the job of the backup has one verdict, the one since is 404, no container is left.

    And of one that had ended before, what the successor does not keep: its log is said to be gone, its verdict stays.
    """
    installation.start_controller(CI_MAX_RUNNING_JOBS="2")
    server = installation.start_server()
    installation.wait_ready(server)
    running = hand_in(installation, server, project(tmp_path / "project", WAITING))
    short = project(tmp_path / "quick", SHORT)
    early = hand_in(installation, server, short)
    eventually(lambda: installation.job(server, running)["status"] == "running", what="the start")
    assert installation.wait(server, early)["success"] is True
    backup = tmp_path / "backup"
    taken = installation.admin("backup", str(backup), "--json")
    assert taken.code == 0, taken.err
    assert json.loads(taken.out)["unfinished_jobs"] == 1
    late = installation.submit(server, short)
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
    installation.start_controller(CI_KEEP_ARCHIVES_MAX="0", CI_KEEP_LOGS_MAX="0", CI_KEEP_LOGS_MIN="0")
    successor = installation.start_server()
    installation.wait_ready(successor)
    its_log_was_pruned(installation, successor, early)
    [(container,)] = installation.query("SELECT container_id FROM attempts WHERE job_id = ?", running)
    installation.tell(container)
    job = installation.wait(successor, running)
    assert job["success"] is True
    [(attempts,)] = installation.query("SELECT count(*) FROM attempts WHERE job_id = ?", running)
    assert attempts == 1  # its container was adopted
    with installation.http(successor) as http:
        assert http.get(f"/jobs/{late}").status_code == httpx.codes.NOT_FOUND
        assert b"1 passed" in http.get(f"/jobs/{running}/log").content
    [day] = json.loads(installation.admin("stats", "--json").out)
    assert (day["jobs"], day["passed"]) == (2, 2)


def its_log_was_pruned(system: Installation, server: Daemon, job: str) -> None:
    """Controllers prune when they begin; the archive of the job that still runs stays."""
    with system.http(server) as http:
        eventually(lambda: http.get(f"/jobs/{job}/log").status_code == 410, what="the prune")
    assert len(list(system.root.glob("*.data/archives/*.zip"))) == 1
    logs = system.ci(server, "logs", job)
    assert logs.code == 66
    assert "was pruned on" in logs.err
    waited = system.ci(server, "wait", job)
    assert waited.code == 0, waited.err

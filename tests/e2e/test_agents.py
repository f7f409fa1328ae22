"""Agents, everything real: a server, a controller that runs no jobs, `ci-agent`, and faults between them."""

import hashlib
import signal
from pathlib import Path

import pytest

from tests.support.eventually import eventually
from tests.support.installation import Daemon, Installation, make_project

pytestmark = [pytest.mark.docker, pytest.mark.timeout(300)]

POOL = {"CI_AGENT_POOL": "gpu", "CI_MAX_RUNNING_JOBS": "2"}
CHATTY = """
def test_talks(capfd):
    with capfd.disabled():
        for n in range(2000):
            print("line", n, "\\u00e4" * 20)
"""
# Runs until the file appears that the test puts into its container, and says something all the time.
WAITING = """
import os, time

def test_waits(capfd):
    with capfd.disabled():
        n = 0
        while not os.path.exists("/tmp/enough"):
            print("still here", n, flush=True)
            n += 1
            time.sleep(0.02)
"""


@pytest.fixture
def lease() -> str:
    """Seconds: longer than a busy machine keeps an agent or a server away by itself."""
    return "60"


@pytest.fixture
def control(installation: Installation, lease: str) -> tuple[Installation, Daemon]:
    """A control plane alone: no job runs where it is."""
    installation.start_controller(CI_LOCAL_RUNNER="0", CI_AGENT_LEASE=lease)
    server = installation.start_server(CI_AGENT_LEASE=lease)
    installation.wait_ready(server)
    return installation, server


def project(root: Path, code: str) -> Path:
    return make_project(root, {"requirements.txt": "pytest\n", "test_it.py": code})


def submitted(system: Installation, server: Daemon, root: Path, code: str) -> str:
    return system.submit(server, project(root, code), "--pool", "gpu")


def container_of(system: Installation, job_id: str) -> str:
    """Return the container of the job's attempt that runs."""

    def found() -> str | None:
        rows = system.query(
            "SELECT container_id FROM attempts WHERE job_id = ? AND begun_at IS NOT NULL AND ended_at IS NULL",
            job_id,
        )
        return rows[0][0] if rows else None

    return eventually(found, seconds=60, what="a container in which the tests run")


def assert_whole(system: Installation, server: Daemon, job: dict[str, object]) -> bytes:
    """The log is what its seal says, byte for byte."""
    log = system.log(server, str(job["job_id"]))
    assert (len(log), hashlib.sha256(log).hexdigest()) == (job["log_size"], job["log_sha256"])
    assert job["log_truncated"] is False
    return log


def test_a_job_of_a_pool_runs_on_its_agent_and_nowhere_else(
    control: tuple[Installation, Daemon], tmp_path: Path
) -> None:
    """Submit, wait for an agent, verdict, log; then a cancel; then a drain."""
    system, server = control
    job_id = submitted(system, server, tmp_path / "chatty", CHATTY)
    assert "no healthy agent in pool gpu" in system.ci(server, "queue").text
    agent = system.start_agent(server, **POOL)
    job = system.wait(server, job_id)
    assert (job["status"], job["success"]) == ("completed", True), job
    log = assert_whole(system, server, job)
    assert b"line 1999 " + "ä".encode() * 20 in log

    waiting = submitted(system, server, tmp_path / "waiting", WAITING)
    container_of(system, waiting)
    assert system.ci(server, "cancel", waiting).code == 0
    assert system.wait(server, waiting)["status"] == "cancelled"

    last = submitted(system, server, tmp_path / "waiting", WAITING)
    container = container_of(system, last)
    agent.process.send_signal(signal.SIGTERM)
    eventually(lambda: "draining" in agent.log.read_text(), what="the drain")
    system.tell(container)
    assert system.wait(server, last)["success"] is True
    assert agent.process.wait(timeout=30) == 0, agent.tail()
    assert system.query("SELECT state, jobs_completed FROM agents") == [("removed", 3)]


def test_a_job_goes_on_while_agent_and_server_are_killed_and_come_back(
    control: tuple[Installation, Daemon], tmp_path: Path
) -> None:
    """Within its lease: the container is adopted, the log is whole, the attempt is the first. Then it is removed."""
    system, server = control
    agent = system.start_agent(server, **POOL)
    job_id = submitted(system, server, tmp_path / "waiting", WAITING)
    container = container_of(system, job_id)
    agent.kill()
    successor = system.start_agent(server, **POOL)
    eventually(lambda: "adopt" in successor.log.read_text().lower(), what="the adoption", seconds=60)
    server.kill()
    server = system.restart_server(server)
    system.tell(container)
    job = system.wait(server, job_id)
    assert (job["success"], job["attempt"]) == (True, 1), successor.tail()
    assert b"still here 0" in assert_whole(system, server, job)

    last = submitted(system, server, tmp_path / "waiting", WAITING)
    container_of(system, last)
    assert system.admin("agent", "remove", "rack").code == 0
    assert successor.process.wait(timeout=60) == 0, successor.tail()
    assert system.containers() == []
    eventually(lambda: system.job(server, last)["status"] == "queued", what="its loss", seconds=60)


@pytest.mark.parametrize("lease", ["10"])
def test_what_a_lost_agent_held_runs_elsewhere_and_is_recorded_once(
    control: tuple[Installation, Daemon], tmp_path: Path
) -> None:
    """One that stands still past its lease comes back: its claim is stale, and it removes its container."""
    system, server = control
    stopped = system.start_agent(server, "stopped", **POOL)
    job_id = submitted(system, server, tmp_path / "waiting", WAITING)
    zombie = container_of(system, job_id)
    stopped.process.send_signal(signal.SIGSTOP)
    eventually(lambda: system.job(server, job_id)["status"] == "queued", what="its loss", seconds=60)
    assert system.job(server, job_id)["message"] == "Agent stopped was lost."
    system.start_agent(server, "other", **POOL)
    container = container_of(system, job_id)
    assert container != zombie
    stopped.process.send_signal(signal.SIGCONT)
    eventually(lambda: zombie not in system.containers(), what="the removal of the zombie", seconds=60)
    system.tell(container)
    job = system.wait(server, job_id)
    assert (job["success"], job["attempt"]) == (True, 2)
    assert_whole(system, server, job)
    reasons = system.query("SELECT number, reason FROM attempts WHERE job_id = ? ORDER BY number", job_id)
    assert reasons == [(1, "agent_lost"), (2, None)]

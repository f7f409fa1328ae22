"""What people do to containers, images and networks while jobs wait and run: rows 28 to 31, and the jobs' network.

None of it is ever a failure of somebody's tests.
"""

from pathlib import Path

import pytest

from ci_controller import labels
from tests.support import plain_http
from tests.support.docker_cli import RUNNER_IMAGE, docker
from tests.support.eventually import eventually
from tests.support.installation import Daemon, Installation, make_project
from tests.support.outcomes import begun, check_all_removed, check_one_end, until_ended

pytestmark = [pytest.mark.docker, pytest.mark.timeout(180)]

# Runs until the file appears that the test puts into its container, and fails without a network.
WAITING = """
import os, time

def test_waits():
    os.write(1, b"attempt begins\\n")
    while not os.path.exists("/tmp/enough"):
        time.sleep(0.02)
    NEEDS
"""
SHORT = "def test_short(): pass\n"


def waiting(root: Path, needs: str = "pass") -> Path:
    return make_project(root, {"test_it.py": WAITING.replace("NEEDS", needs)})


def container_of(system: Installation, job_id: str, attempt: int) -> str:
    """The test of that attempt waits; returns its container."""
    path = f"*.data/logs/{job_id}/{attempt}.log"
    eventually(
        lambda: any(b"attempt begins" in log.read_bytes() for log in system.root.glob(path)),
        seconds=60,
        what=f"the test in attempt {attempt}",
    )
    query = "SELECT container_id FROM attempts WHERE job_id = ? AND number = ?"
    [(container,)] = system.query(query, job_id, str(attempt))
    return container


def test_fault_29_containers_are_removed_stopped_and_paused(
    installation: Installation, tmp_path: Path
) -> None:
    """Run again, at most `max_attempts` times, then given up with the reason; what was only paused goes on, or is
    cancelled."""
    system = installation
    system.start_controller(CI_MAX_ATTEMPTS="2", CI_MAX_RUNNING_JOBS="4")
    server = system.start_server()
    system.wait_ready(server)
    project = waiting(tmp_path / "project")
    removed_again, stopped, paused, unwanted = (system.submit(server, project, "--", "-s") for _ in range(4))
    frozen, cancelled = container_of(system, paused, 1), container_of(system, unwanted, 1)
    system.docker("pause", frozen, cancelled)
    assert system.ci(server, "cancel", unwanted).code == 0
    system.docker("rm", "-f", container_of(system, removed_again, 1))
    system.docker("stop", container_of(system, stopped, 1))
    system.docker("rm", "-f", container_of(system, removed_again, 2))
    system.tell(container_of(system, stopped, 2))
    until_ended(system, unwanted)
    assert system.job(server, unwanted)["status"] == "cancelled"
    system.docker("unpause", frozen)
    system.tell(frozen)
    until_ended(system, removed_again, stopped, paused)
    assert begun(system, stopped) == ["infra", None]
    assert begun(system, paused) == [None]
    for job_id in (stopped, paused):
        assert system.job(server, job_id)["success"] is True
    assert begun(system, removed_again) == ["infra", "infra"]
    lost = system.job(server, removed_again)
    assert (lost["status"], lost["reason"], lost["success"]) == ("dead_lettered", "infra", False)
    assert "vanished" in lost["message"] or "ended from outside" in lost["message"], lost
    assert system.ci(server, "wait", removed_again).code == 125
    for job_id in (removed_again, stopped, paused, unwanted):
        check_one_end(system, job_id)
    check_all_removed(system)


def test_fault_28_the_image_is_gone_while_jobs_are_queued(installation: Installation, tmp_path: Path) -> None:
    """They stay queued, the reason is said, and they run once it is back."""
    system = installation
    image = f"ci-runner:{system.prefix}fault-28"
    docker("tag", system.image, image)
    try:
        system.start_controller(CI_RUNNER_IMAGE=image, CI_MAX_RUNNING_JOBS="1")
        server = system.start_server()
        system.wait_ready(server)
        first = system.submit(server, waiting(tmp_path / "first"), "--", "-s")
        container = container_of(system, first, 1)
        queued = system.submit(server, make_project(tmp_path / "short", {"test_it.py": SHORT}))
        docker("rmi", image)
        system.tell(container)
        until_ended(system, first)
        eventually(lambda: f"{image} is missing" in reasons(server), what="/ready naming the image")
        assert f"{image} is missing" in what_is_said(system, server, queued)
        assert system.job(server, queued)["status"] == "queued"
        assert [system.job(server, first)["success"], begun(system, queued)] == [True, []]
        docker("tag", system.image, image)
        until_ended(system, queued)
        job = system.job(server, queued)
        assert (job["success"], job["attempt"]) == (True, 1), job
    finally:
        docker("rmi", image, check=False)


def what_is_said(system: Installation, server: Daemon, job_id: str) -> str:
    """Return the first thing that whoever follows the job is told."""
    with system.http(server) as http, http.stream("GET", f"/jobs/{job_id}/stream") as stream:
        return next(line for line in stream.iter_lines() if line.startswith("data:"))


def reasons(server: Daemon) -> str:
    return str(plain_http.get(f"{server.url}/ready").json()["reasons"])


def test_faults_30_and_31_containers_of_others_and_orphans(
    installation: Installation, tmp_path: Path
) -> None:
    """Somebody else's container under our name is never touched, and costs an attempt, not the job; nor is an orphan
    within its grace (its removal after it, with a clock of its own: `tests/unit/test_controller.py`)."""
    system = installation
    project = make_project(tmp_path / "project", {"test_it.py": SHORT})
    controller = system.start_controller()
    server = system.start_server()
    system.wait_ready(server)
    assert controller.terminate() == 0
    job_id = system.submit(server, project)
    instance = system.instance_id()
    assert instance
    orphan = create(f"{system.prefix}orphan", labels.run_labels(instance, 1))
    foreign = create(labels.job_name(system.prefix, job_id, 1), {})
    other = create(f"{system.prefix}other", labels.run_labels("another", 1))
    try:
        system.start_controller()
        until_ended(system, job_id)
        job = system.job(server, job_id)
        assert (job["success"], job["attempt"]) == (True, 2), job
        [(message,)] = system.query("SELECT message FROM attempts WHERE job_id = ? AND number = 1", job_id)
        assert "is taken by another container" in message
        assert begun(system, job_id) == [None], "it cost its owner nothing"
        eventually(lambda: system.containers() == [orphan], what="the removal of the job's own container")
        assert docker("inspect", "--format", "{{.State.Status}}", foreign, other).split() == ["created"] * 2
    finally:
        docker("rm", "-f", orphan, foreign, other)


def create(name: str, labelled: dict[str, str]) -> str:
    """A container of that name exists and was never started; returns its id."""
    words = [word for key, value in labelled.items() for word in ("--label", f"{key}={value}")]
    return docker("create", "--name", name, *words, RUNNER_IMAGE, "sleep", "600")


def test_the_jobs_network_is_removed_and_taken_from_a_running_job(
    installation: Installation, tmp_path: Path
) -> None:
    """On a bridge of this installation's own: it is made anew, and tests that failed without it run again."""
    system = installation
    controller = system.start_controller(CI_JOB_NETWORK_ALLOW=own_address(system), CI_MAX_ATTEMPTS="2")
    server = system.start_server()
    system.wait_ready(server)
    short = make_project(tmp_path / "short", {"test_it.py": SHORT})
    needs = waiting(tmp_path / "needs", "assert os.path.exists('/sys/class/net/eth0')")
    first = system.submit(server, needs, "--", "-s")
    container = container_of(system, first, 1)
    bridge = system.docker("inspect", "--format", "{{.HostConfig.NetworkMode}}", container)
    assert bridge != "ci-jobs"
    try:
        system.docker("network", "disconnect", bridge, container)
        system.tell(container)
        system.tell(container_of(system, first, 2))
        until_ended(system, first)
        assert begun(system, first) == ["infra", None]
        assert system.job(server, first)["success"] is True
        check_all_removed(system)
        system.docker("network", "rm", bridge)
        second = system.submit(server, short)
        until_ended(system, second)
        job = system.job(server, second)
        assert (job["success"], begun(system, second)) == (True, [None]), job
        check_all_removed(system)
    finally:
        controller.terminate()
        assert system.admin("network", "remove", "--name", bridge).code == 0


def own_address(system: Installation) -> str:
    """Return a destination that no other installation allows: a bridge of one's own follows."""
    return f"198.51.100.{sum(system.prefix.encode()) % 250 + 1}:9"

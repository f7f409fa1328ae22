"""Jobs that do not end by themselves: rows 34, 36 and 37."""

import socket
from pathlib import Path

import pytest

from tests.support.eventually import eventually
from tests.support.installation import Installation, make_project
from tests.support.outcomes import begun, check_all_removed, check_one_end, until_ended, until_printed

pytestmark = [pytest.mark.docker, pytest.mark.timeout(180)]

STUBBORN = """
import os, signal, time

def test_stays():
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    os.write(1, b"stays\\n")
    while True:
        time.sleep(1)
"""
HANGS = "import os, time\ndef test_hangs():\n    os.write(1, b'hangs\\n')\n    time.sleep(600)\n"


def test_faults_34_and_37_a_job_that_ignores_signals_and_a_time_out_without_a_controller(
    installation: Installation, tmp_path: Path
) -> None:
    """One is asked, asked again and killed inside its container; the other ends in time although nobody watches."""
    system = installation
    controller = system.start_controller(CI_MAX_RUNNING_JOBS="2")
    server = system.start_server()
    system.wait_ready(server)
    stubborn = system.submit(
        server, make_project(tmp_path / "stubborn", {"test_it.py": STUBBORN}), "--", "-s"
    )
    until_printed(system, stubborn, b"stays\n")
    assert system.ci(server, "cancel", stubborn).code == 0
    late = system.submit(
        server, make_project(tmp_path / "late", {"test_it.py": HANGS}), "--timeout", "15", "--", "-s"
    )
    eventually(lambda: begun(system, late), seconds=60, what="the run")
    controller.kill()
    assert system.job(server, late)["success"] is None
    eventually(lambda: not running(system), seconds=60, what="the end of both containers")
    successor = system.start_controller()
    until_ended(system, stubborn, late)
    job = system.job(server, stubborn)
    assert (job["status"], job["message"]) == ("cancelled", "Cancelled by ada@example.org."), job
    job = system.job(server, late)
    assert (job["status"], job["reason"], job["attempt"]) == ("failed", "timeout", 1), job
    assert job["message"].startswith("The time-out of 15 s passed"), job
    assert "SIGKILL" not in controller.tail() + successor.tail(), "the second line was not needed"
    for job_id in (stubborn, late):
        check_one_end(system, job_id)
    check_all_removed(system)


def running(system: Installation) -> list[str]:
    return system.docker(
        "ps", "-q", "--filter", f"label=ci.instance={system.instance_id()}", "--filter", "status=running"
    ).split()


def test_fault_36_an_index_that_never_answers(installation: Installation, tmp_path: Path) -> None:
    """The job's message says that it was installing, and what."""
    system = installation
    with socket.create_server(("0.0.0.0", 0), backlog=64) as silent:
        address = f"{host_address()}:{silent.getsockname()[1]}"
        controller = system.start_controller(CI_JOB_NETWORK_ALLOW=address)
        server = system.start_server()
        system.wait_ready(server)
        requirements = f"--index-url http://{address}/simple\nno-such-package-of-ours\n"
        files: dict[str, str | bytes] = {
            "requirements.txt": requirements,
            "test_it.py": "def test_a(): pass\n",
        }
        job_id = system.submit(server, make_project(tmp_path / "project", files), "--timeout", "4")
        eventually(lambda: system.containers(), what="the container")
        bridge = system.docker("inspect", "--format", "{{.HostConfig.NetworkMode}}", system.containers()[0])
        until_ended(system, job_id)
        check_all_removed(system)
        controller.terminate()
        assert system.admin("network", "remove", "--name", bridge).code == 0
    job = system.job(server, job_id)
    assert (job["status"], job["reason"]) == ("failed", "timeout"), job
    assert job["message"] == "The time-out of 4 s passed while installing requirements.txt.", job


def host_address() -> str:
    """Return this host's own address on the way out."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as looking:
        looking.connect(("198.51.100.1", 9))  # sends nothing
        return looking.getsockname()[0]

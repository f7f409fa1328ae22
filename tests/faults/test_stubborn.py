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


def test_faults_34_36_and_37_jobs_that_ignore_signals_wait_for_an_index_or_lose_their_controller(
    installation: Installation, tmp_path: Path
) -> None:
    """One is asked, asked again and killed inside its container. The message of the next says that it was installing,
    and what. The last ends in time although nobody watches."""
    system = installation
    with socket.create_server(("0.0.0.0", 0), backlog=64) as silent:
        index = f"{host_address()}:{silent.getsockname()[1]}"
        settings = {"CI_MAX_RUNNING_JOBS": "3", "CI_JOB_NETWORK_ALLOW": index}
        controller = system.start_controller(**settings)
        server = system.start_server()
        system.wait_ready(server)
        stubborn = system.submit(
            server, make_project(tmp_path / "stubborn", {"test_it.py": STUBBORN}), "--", "-s"
        )
        installing = system.submit(server, needy(tmp_path / "needy", index), "--timeout", "4")
        until_printed(system, stubborn, b"stays\n")
        bridge = system.docker("inspect", "--format", "{{.HostConfig.NetworkMode}}", system.containers()[0])
        assert system.ci(server, "cancel", stubborn).code == 0
        late = system.submit(
            server, make_project(tmp_path / "late", {"test_it.py": HANGS}), "--timeout", "15", "--", "-s"
        )
        until_ended(system, installing)
        eventually(lambda: begun(system, late), seconds=60, what="the run")
        controller.kill()
        assert system.job(server, late)["success"] is None
        eventually(lambda: not running(system), seconds=60, what="the end of every container")
        successor = system.start_controller(**settings)
        until_ended(system, stubborn, late)
        check_all_removed(system)
        successor.terminate()
        assert system.admin("network", "remove", "--name", bridge).code == 0
    job = system.job(server, stubborn)
    assert (job["status"], job["message"]) == ("cancelled", "Cancelled by ada@example.org."), job
    job = system.job(server, installing)
    assert (job["status"], job["reason"]) == ("failed", "timeout"), job
    assert job["message"] == "The time-out of 4 s passed while installing requirements.txt.", job
    job = system.job(server, late)
    assert (job["status"], job["reason"], job["attempt"]) == ("failed", "timeout", 1), job
    assert job["message"].startswith("The time-out of 15 s passed"), job
    assert "SIGKILL" not in controller.tail() + successor.tail(), "the second line was not needed"
    for job_id in (stubborn, installing, late):
        check_one_end(system, job_id)


def needy(root: Path, index: str) -> Path:
    """A project that needs a package which no index but that one could have."""
    files: dict[str, str | bytes] = {
        "requirements.txt": f"--index-url http://{index}/simple\nno-such-package-of-ours\n",
        "test_it.py": "def test_a(): pass\n",
    }
    return make_project(root, files)


def running(system: Installation) -> list[str]:
    return system.docker(
        "ps", "-q", "--filter", f"label=ci.instance={system.instance_id()}", "--filter", "status=running"
    ).split()


def host_address() -> str:
    """Return this host's own address on the way out."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as looking:
        looking.connect(("198.51.100.1", 9))  # sends nothing
        return looking.getsockname()[0]

"""What an engine can do to a job: end, be killed, hang, lose its host or its bridge. Never a false verdict."""

import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.support import plain_http
from tests.support.eventually import eventually
from tests.support.installation import Daemon, Installation, make_project
from tests.support.private_engine import PrivateEngine

pytestmark = [pytest.mark.docker, pytest.mark.timeout(240)]

# Counts until it is told to end, by a file that the test puts into its container.
COUNTING = """
import itertools, os, time

def test_counts():
    for number in itertools.count():
        os.write(1, f"line {number}\\n".encode())
        if os.path.exists("/tmp/enough"):
            break
        time.sleep(0.05)
    os.write(1, b"enough\\n")
"""


def own_engine(system: Installation) -> PrivateEngine:
    assert system.engine is not None
    return system.engine


def begin(system: Installation, tmp_path: Path) -> tuple[Daemon, str, str]:
    """A job is under way and has written something; returns the server, the job and its container."""
    project = make_project(tmp_path / "project", {"requirements.txt": "pytest\n", "test_it.py": COUNTING})
    server = system.start()
    job_id = system.submit(server, project, "--", "-s")
    return server, job_id, under_way(system, server, job_id)


def under_way(system: Installation, server: Daemon, job_id: str) -> str:
    """The job's test writes, in an attempt that has not ended; returns its container."""

    def container() -> str | None:
        sql = "SELECT number, container_id FROM attempts WHERE job_id = ? AND ended_at IS NULL"
        for number, container in system.query(sql, job_id):
            if container and b"line 3\n" in system.log(server, job_id, attempt=number):
                return container
        return None

    return eventually(container, seconds=90, what="the job's output")


def pid_of(system: Installation, container: str) -> int:
    pid = own_engine(system).inspect(container)["Pid"]
    assert isinstance(pid, int)
    return pid


def tell_enough(pid: int) -> None:
    Path(f"/proc/{pid}/root/tmp/enough").touch()


def check_counted(log: bytes) -> None:
    """The log has every line that the test wrote, in order, and nothing between them."""
    start, end = log.index(b"line 0\n"), log.index(b"enough\n")
    lines = log[start:end].splitlines(keepends=True)
    assert lines == [f"line {number}\n".encode() for number in range(len(lines))]


def check_run_again(system: Installation, server: Daemon, job_id: str) -> None:
    """One attempt was lost to infrastructure, a later one gives the verdict, and its log is whole."""
    eventually(lambda: charged(system, job_id)[:1] == ["infra"], seconds=90, what="the loss of the attempt")
    tell_enough(pid_of(system, under_way(system, server, job_id)))
    job = system.wait(server, job_id)
    assert (job["status"], job["success"]) == ("completed", True), job
    check_counted(system.log(server, job_id))
    assert charged(system, job_id) == ["infra", None]
    check_all_removed(system)


def check_all_removed(system: Installation) -> None:
    eventually(lambda: not system.containers(), what="the removal of every container")


def charged(system: Installation, job_id: str) -> list[str | None]:
    """Return how the attempts ended whose tests had begun; the others cost their owner nothing."""
    sql = "SELECT reason FROM attempts WHERE job_id = ? AND begun_at IS NOT NULL ORDER BY number"
    return [reason for (reason,) in system.query(sql, job_id)]


def lost(system: Installation, job_id: str) -> list[tuple[Any, ...]]:
    return system.query("SELECT number FROM attempts WHERE job_id = ? AND reason = 'infra'", job_id)


def ready(server: Daemon) -> dict[str, Any]:
    return plain_http.get(f"{server.url}/ready").json()


def test_fault_21_the_engine_is_stopped(private: Installation, tmp_path: Path) -> None:
    server, job_id, _ = begin(private, tmp_path)
    own_engine(private).stop(signal.SIGTERM)
    eventually(lambda: "docker engine" in str(ready(server)), what="/ready naming the engine")
    own_engine(private).start()
    check_run_again(private, server, job_id)


def test_fault_22_the_engine_is_killed(private: Installation, tmp_path: Path) -> None:
    server, job_id, _ = begin(private, tmp_path)
    own_engine(private).stop(signal.SIGKILL)
    own_engine(private).start()
    check_run_again(private, server, job_id)


def test_fault_23_the_engine_is_killed_and_its_containers_live_on(
    live_restore: Installation, tmp_path: Path
) -> None:
    server, job_id, container = begin(live_restore, tmp_path)
    own_engine(live_restore).stop(signal.SIGKILL)
    own_engine(live_restore).start()
    assert live_restore.containers() == [container]
    tell_enough(pid_of(live_restore, container))
    job = live_restore.wait(server, job_id)
    assert (job["status"], job["success"], job["attempt"]) == ("completed", True, 1), job
    check_counted(live_restore.log(server, job_id))
    check_all_removed(live_restore)


def test_fault_24_a_container_ends_while_the_engine_is_down(
    live_restore: Installation, tmp_path: Path
) -> None:
    """What the engine did not read of the output is gone, the last word with it: no verdict is made of the rest."""
    server, job_id, container = begin(live_restore, tmp_path)
    pid = pid_of(live_restore, container)
    own_engine(live_restore).stop(signal.SIGKILL)
    tell_enough(pid)
    eventually(lambda: not Path(f"/proc/{pid}").exists(), what="the end of the container")
    own_engine(live_restore).start()
    check_run_again(live_restore, server, job_id)


def test_fault_25_the_engine_hangs(private: Installation, tmp_path: Path) -> None:
    server, job_id, container = begin(private, tmp_path)
    pid = pid_of(private, container)
    own_engine(private).send(signal.SIGSTOP)
    eventually(lambda: "docker engine" in str(ready(server)), seconds=60, what="/ready naming the engine")
    controller = ready(server)["checks"]["controller"]
    assert controller["heartbeat_age_seconds"] < 15, "the controller's heart beats on"
    assert private.job(server, job_id)["status"] == "running", "no verdict is invented"
    own_engine(private).send(signal.SIGCONT)
    tell_enough(pid)
    job = private.wait(server, job_id)
    assert (job["status"], job["success"], job["attempt"]) == ("completed", True, 1), job
    check_counted(private.log(server, job_id))
    check_all_removed(private)


def test_fault_26_the_host_goes_down_hard(private: Installation, tmp_path: Path) -> None:
    """After a power cut nothing runs and /run is empty; the engine finds containers that it thinks are running."""
    server, job_id, _ = begin(private, tmp_path)
    own_engine(private).power_cut()  # of what runs in its network: the controller, too
    own_engine(private).start()
    private.start_controller()
    check_run_again(private, server, job_id)


def test_fault_27_the_bridge_is_missing(private: Installation, tmp_path: Path) -> None:
    """The engine cannot start containers: no test failure, nothing left over, and it goes on afterwards."""
    project = make_project(
        tmp_path / "project", {"requirements.txt": "pytest\n", "test_it.py": "def test_ok(): pass\n"}
    )
    server = private.start()
    first = private.submit(server, project)
    assert private.wait(server, first)["success"] is True
    subprocess.run([*own_engine(private).inside, "ip", "link", "delete", "ci-jobs"], check=True)
    second = private.submit(server, project)
    eventually(lambda: lost(private, second), seconds=60, what="an attempt without a bridge")
    assert private.job(server, second)["success"] is None
    own_engine(private).stop(signal.SIGTERM)
    own_engine(private).start()
    job = private.wait(server, second, seconds=150)
    assert (job["status"], job["success"]) == ("completed", True), job
    assert charged(private, second) == [None], "what could not start is not charged"
    check_all_removed(private)

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
from tests.support.soak import soak_only

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


def begin(system: Installation, tmp_path: Path, **settings: str) -> tuple[Daemon, Path]:
    """The system serves; returns its server, and a project that counts."""
    system.start_controller(**settings)
    server = system.start_server()
    system.wait_ready(server)
    files: dict[str, str | bytes] = {"requirements.txt": "pytest\n", "test_it.py": COUNTING}
    return server, make_project(tmp_path / "project", files)


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


def check_run_again(system: Installation, server: Daemon, job_id: str, lost: int = 1) -> None:
    """So many attempts were lost to infrastructure, a later one gives the verdict, and its log is whole."""
    until_lost(system, job_id, lost)
    tell_enough(pid_of(system, under_way(system, server, job_id)))
    job = system.wait(server, job_id)
    assert (job["status"], job["success"]) == ("completed", True), job
    check_counted(system.log(server, job_id))
    assert charged(system, job_id) == ["infra"] * lost + [None]


def until_lost(system: Installation, job_id: str, times: int) -> None:
    """So many attempts were lost to infrastructure, whose tests had begun."""
    eventually(
        lambda: charged(system, job_id)[:times] == ["infra"] * times,
        seconds=90,
        what="the loss of the attempt",
    )


def check_finishes(system: Installation, server: Daemon, job_id: str, pid: int) -> None:
    """Told to end, the job's first attempt gives the verdict, and its log is whole."""
    tell_enough(pid)
    job = system.wait(server, job_id)
    assert (job["status"], job["success"], job["attempt"]) == ("completed", True, 1), job
    check_counted(system.log(server, job_id))


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


def test_faults_21_22_and_26_the_engine_is_stopped_is_killed_and_its_host_goes_down_hard(
    private: Installation, tmp_path: Path
) -> None:
    """Each of them costs one job an attempt and nothing else.

    After a power cut nothing runs and /run is empty; the engine finds containers that it thinks are running.
    """
    engine, settings = own_engine(private), {"CI_MAX_ATTEMPTS": "4"}
    server, project = begin(private, tmp_path, **settings)
    job_id = private.submit(server, project, "--", "-s")
    under_way(private, server, job_id)
    engine.stop(signal.SIGTERM)
    eventually(lambda: "docker engine" in str(ready(server)), what="/ready naming the engine")
    engine.start()
    until_lost(private, job_id, 1)
    under_way(private, server, job_id)
    engine.stop(signal.SIGKILL)
    engine.start()
    until_lost(private, job_id, 2)
    under_way(private, server, job_id)
    engine.power_cut()  # of what runs in its network: the controller, too
    engine.start()
    private.start_controller(**settings)
    check_run_again(private, server, job_id, lost=3)
    check_all_removed(private)


def test_faults_23_and_24_the_engine_is_killed_and_its_containers_live_on_or_end_meanwhile(
    live_restore: Installation, tmp_path: Path
) -> None:
    """What lives on gives the verdict. Of what ended, the engine did not read the rest of the output, the last word
    with it: no verdict is made of what it did read."""
    system, engine = live_restore, own_engine(live_restore)
    server, project = begin(system, tmp_path, CI_MAX_RUNNING_JOBS="2")
    living, ending = (system.submit(server, project, "--", "-s") for _ in range(2))
    container, other = (under_way(system, server, job_id) for job_id in (living, ending))
    pid = pid_of(system, other)
    engine.stop(signal.SIGKILL)
    tell_enough(pid)
    eventually(lambda: not Path(f"/proc/{pid}").exists(), what="the end of the container")
    engine.start()
    assert container in system.containers()
    check_finishes(system, server, living, pid_of(system, container))
    check_run_again(system, server, ending)
    check_all_removed(system)


@soak_only
def test_faults_25_and_27_the_engine_hangs_and_the_bridge_is_missing(
    private: Installation, tmp_path: Path
) -> None:
    """Who hangs invents no verdict. Without the bridge no container starts: no test failure, nothing left over, and it
    goes on afterwards."""
    engine = own_engine(private)
    server, project = begin(private, tmp_path)
    first = private.submit(server, project, "--", "-s")
    pid = pid_of(private, under_way(private, server, first))
    engine.send(signal.SIGSTOP)
    eventually(lambda: "docker engine" in str(ready(server)), seconds=60, what="/ready naming the engine")
    controller = ready(server)["checks"]["controller"]
    assert controller["heartbeat_age_seconds"] < 15, "the controller's heart beats on"
    assert private.job(server, first)["status"] == "running", "no verdict is invented"
    engine.send(signal.SIGCONT)
    check_finishes(private, server, first, pid)
    check_all_removed(private)

    subprocess.run([*engine.inside, "ip", "link", "delete", "ci-jobs"], check=True)
    (project / "test_it.py").write_text("def test_ok(): pass\n")
    second = private.submit(server, project)
    eventually(lambda: lost(private, second), seconds=60, what="an attempt without a bridge")
    assert private.job(server, second)["success"] is None
    engine.stop(signal.SIGTERM)
    engine.start()
    job = private.wait(server, second, seconds=150)
    assert (job["status"], job["success"]) == ("completed", True), job
    assert charged(private, second) == [None], "what could not start is not charged"
    check_all_removed(private)

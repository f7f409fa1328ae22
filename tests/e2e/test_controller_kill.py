"""`kill -9` of the controller between every two durable effects of a job, then a successor: one verdict,
the same log, no second run once the container was fed."""

import hashlib
import os
from pathlib import Path
from typing import Any

import httpx
import pytest

from ci_common.crash_points import CRASH_POINTS
from tests.support.eventually import eventually
from tests.support.installation import Daemon, Installation, make_project

pytestmark = pytest.mark.docker

# What the test writes is the same in every run; only what pytest says around it has the clock in it.
CODE = """
import os, sys, time

def test_writes():
    for number in range(40):
        os.write(1, f"line {number} é\\n".encode())
        time.sleep(0.02)
    os.write(1, bytes(range(256)) * 100)
"""
EXPECTED = b"".join(f"line {number} é\n".encode() for number in range(40)) + bytes(range(256)) * 100

# The attempt that gives the verdict: a container that no row has is removed and another one made; one that was
# recorded but not fed has run nothing of the user's, and the attempt is given back uncharged; one that was fed is
# adopted, whatever happened to the controller.
ATTEMPT: dict[str, set[int]] = {
    "after_take_over": {1},
    "after_claim": {1},
    "before_create": {1},
    "after_create": {1},
    "after_start": {1},
    "after_mark_started": {2},
    "after_rename": {2},
    "during_feed": {1},  # the first bytes say nothing of a job, and it has none yet
    "during_feed:4": {2},
    "after_feed": {1},
    "after_mark_begun": {1},
    "during_pump": {1},
    "during_pump:5": {1},
    "after_exit": {1},
    "after_seal": {1},
    "after_finish": {1},
    "before_remove": {1},
    "after_remove": {1},
}
# Those at which what the engine has matters most, in every run; the others with CI_SOAK=1. The in-process
# tests of `tests/unit/test_crash_points.py` take them all, every time.
ALWAYS = (
    "after_create",
    "after_start",
    "after_mark_started",
    "during_feed:4",
    "after_mark_begun",
    "during_pump:5",
    "after_exit",
    "after_finish",
)
POINTS = tuple(ATTEMPT) if os.environ.get("CI_SOAK") == "1" else ALWAYS
STOPPING = {"after_record_stop", "after_stop_signal"}
SERVER = {"after_archive_saved", "after_job_created"}


def test_what_is_tested_are_crash_points() -> None:
    tested = {name.partition(":")[0] for name in ATTEMPT} | STOPPING | SERVER
    assert tested < set(CRASH_POINTS)
    assert set(ALWAYS) < set(ATTEMPT)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return make_project(tmp_path / "project", {"requirements.txt": "pytest\n", "test_writes.py": CODE})


def dies(controller: Daemon) -> None:
    """The controller reaches its crash point and is gone as if killed."""
    assert controller.process.wait(timeout=60) == 137, controller.tail()


def written_by_the_test(log: bytes) -> bytes:
    """Return what the test itself wrote: from its first line to the last byte it can have written."""
    start = log.index(b"line 0 ")
    return log[start : start + len(EXPECTED)]


def check_one_verdict(system: Installation, server: Daemon, job: dict[str, Any]) -> None:
    finals = system.query(
        "SELECT type FROM job_events WHERE job_id = ?"
        " AND type IN ('completed', 'failed', 'cancelled', 'dead_lettered')",
        job["job_id"],
    )
    assert len(finals) == 1, finals
    log = system.log(server, job["job_id"])
    [(size, digest)] = system.query("SELECT log_size, log_sha256 FROM jobs WHERE id = ?", job["job_id"])
    assert (size, digest) == (len(log), hashlib.sha256(log).hexdigest())
    eventually(lambda: not system.containers(), what="the removal of every container")


@pytest.mark.parametrize("point", POINTS)
def test_kill_and_restart(installation: Installation, project: Path, point: str) -> None:
    system = installation
    crashing = system.start_controller(CI_CRASH_AT=point)
    server = system.start_server()
    system.wait_ready(server)
    job_id = system.submit(server, project, "--", "-s")
    dies(crashing)
    system.start_controller()
    job = system.wait(server, job_id)
    assert (job["status"], job["success"]) == ("completed", True), job
    assert job["attempt"] in ATTEMPT[point]
    log = system.log(server, job_id)
    assert written_by_the_test(log) == EXPECTED
    assert log.count(b"line 0 ") == 1, "the tests ran once in this log"
    check_one_verdict(system, server, job)


@pytest.mark.parametrize("point", sorted(STOPPING))
def test_kill_while_cancelling(installation: Installation, tmp_path: Path, point: str) -> None:
    system = installation
    code = "import time\ndef test_x():\n    print('hanging', flush=True)\n    time.sleep(600)\n"
    project = make_project(tmp_path / "project", {"test_x.py": code})
    crashing = system.start_controller(CI_CRASH_AT=point)
    server = system.start_server()
    system.wait_ready(server)
    job_id = system.submit(server, project, "--", "-s")
    eventually(lambda: b"hanging" in system.log(server, job_id), what="the test")
    assert system.ci(server, "cancel", job_id).code == 0
    dies(crashing)
    system.start_controller()
    job = system.wait(server, job_id)
    assert (job["status"], job["reason"]) == ("cancelled", "cancelled"), job
    check_one_verdict(system, server, job)


def test_kill_the_server_while_submitting(installation: Installation, project: Path) -> None:
    """The client submits again with its idempotency key, to whoever answers: one job."""
    system = installation
    system.start_controller()
    second = system.start_server()
    system.wait_ready(second)
    zipped = _zip(project)
    jobs = {killed_while_submitting(system, second, zipped, point) for point in sorted(SERVER)}
    with system.http(second) as http:
        assert {job["job_id"] for job in http.get("/jobs").json()} == jobs
    for job_id in jobs:
        assert system.wait(second, job_id)["success"] is True


def killed_while_submitting(system: Installation, second: Daemon, zipped: bytes, point: str) -> str:
    """A server died at that point of a submission, and the second one took the same again; returns the job."""
    crashing = system.start_server(CI_CRASH_AT=point)
    headers = {"Idempotency-Key": f"killed-{point}"}
    with system.http(crashing) as http, pytest.raises(httpx.TransportError):
        http.post("/submit-async", files={"file": zipped}, headers=headers).raise_for_status()
    assert crashing.process.wait(timeout=30) == 137
    with system.http(second) as http:
        return http.post("/submit-async", files={"file": zipped}, headers=headers).json()["job_id"]


def test_sigterm_leaves_the_job_running_and_the_successor_adopts_it(
    installation: Installation, project: Path
) -> None:
    system = installation
    first = system.start_controller()
    server = system.start_server()
    system.wait_ready(server)
    job_id = system.submit(server, project, "--", "-s")
    eventually(lambda: b"line 3" in system.log(server, job_id), what="some output")
    [container] = system.containers()
    assert first.terminate() == 0, first.tail()
    assert system.containers() == [container]
    system.start_controller()
    job = system.wait(server, job_id)
    assert (job["success"], job["attempt"]) == (True, 1)
    assert written_by_the_test(system.log(server, job_id)) == EXPECTED
    check_one_verdict(system, server, job)


def test_a_second_controller_is_refused_with_75(installation: Installation) -> None:
    system = installation
    system.start_controller()
    server = system.start_server()
    system.wait_ready(server)
    second = system.start_controller()
    assert second.process.wait(timeout=30) == 75
    assert "another controller" in second.tail().lower()


def _zip(project: Path) -> bytes:
    import io
    import zipfile

    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for path in sorted(project.rglob("*.*")):
            archive.write(path, path.relative_to(project).as_posix())
    return packed.getvalue()

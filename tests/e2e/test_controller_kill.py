"""`kill -9` of the controller between every two durable effects of a job, then a successor: one verdict,
the same log, no second run once the container was fed."""

import hashlib
from pathlib import Path
from typing import Any

import httpx
import pytest

from ci_common.crash_points import CRASH_POINTS
from tests.e2e.conftest import Served
from tests.support.eventually import eventually
from tests.support.handing_in import cancel, hand_in, zip_of_project
from tests.support.installation import Daemon, Installation, make_project
from tests.support.soak import soak_only

pytestmark = pytest.mark.docker

# What the test writes is the same in every run; only what pytest says around it has the clock in it.
CODE = """
import os, time

def test_writes():
    for number in range(40):
        os.write(1, f"line {number} é\\n".encode())
        time.sleep(0.02)
    os.write(1, bytes(range(256)) * 100)
"""
EXPECTED = b"".join(f"line {number} é\n".encode() for number in range(40)) + bytes(range(256)) * 100
ONCE_TOLD = """
import os, time

while not os.path.exists("/tmp/told"):
    time.sleep(0.02)
"""

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
# Those at which what the engine has matters most, as one job passes them. The tests of
# `tests/unit/test_crash_points.py` take them all, every time, in one process.
IN_A_ROW = (
    "after_create",
    "after_start",
    "after_mark_started",
    "during_feed:4",
    "after_mark_begun",
    "during_pump:5",
    "after_seal",
    "after_finish",
)
STOPPING = ("after_record_stop", "after_stop_signal")
SERVER = {"after_archive_saved", "after_job_created"}


def test_what_is_tested_are_crash_points() -> None:
    tested = {name.partition(":")[0] for name in ATTEMPT} | {*STOPPING} | SERVER
    assert tested < set(CRASH_POINTS)
    assert [name for name in ATTEMPT if name in IN_A_ROW] == list(IN_A_ROW)


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


def check_one_run(system: Installation, server: Daemon, job: dict[str, Any]) -> None:
    """The job passed, and its tests ran once in its log."""
    assert (job["status"], job["success"]) == ("completed", True), job
    log = system.log(server, job["job_id"])
    assert written_by_the_test(log) == EXPECTED
    assert log.count(b"line 0 ") == 1
    check_one_verdict(system, server, job)


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


@pytest.mark.timeout(300)
def test_kill_and_restart(served: Served, tmp_path: Path) -> None:
    """One job: each controller dies at a point of it, and the next one at the next."""
    system, server = served
    project = make_project(tmp_path / "project", {"test_writes.py": ONCE_TOLD + CODE})
    job_id = hand_in(system, server, project, "-s")
    for point in IN_A_ROW:
        crashing = system.start_controller(CI_CRASH_AT=point)
        if point == "during_pump:5":
            eventually(lambda daemon=crashing: "adopt" in daemon.tail(), what="the adoption")
            system.tell(container_of(system, job_id), "/tmp/told")
        dies(crashing)
    system.start_controller()
    job = system.wait(server, job_id)
    assert job["attempt"] == 1 + sum(2 in ATTEMPT[point] for point in IN_A_ROW)
    check_one_run(system, server, job)


def container_of(system: Installation, job_id: str) -> str:
    """Return the container of the job's last attempt."""
    latest = "SELECT container_id FROM attempts WHERE job_id = ? ORDER BY started_at DESC LIMIT 1"
    return system.query(latest, job_id)[0][0]


@soak_only
@pytest.mark.parametrize("point", ATTEMPT)
def test_kill_and_restart_at_any_point(served: Served, project: Path, point: str) -> None:
    """A job whose controller dies there, and a successor that lives."""
    system, server = served
    job_id = hand_in(system, server, project, "-s")
    dies(system.start_controller(CI_CRASH_AT=point))
    system.start_controller()
    job = system.wait(server, job_id)
    assert job["attempt"] in ATTEMPT[point]
    check_one_run(system, server, job)


def test_kill_while_cancelling(served: Served, tmp_path: Path) -> None:
    """The first controller dies before it could send a signal, the second one behind that."""
    system, server = served
    code = "import time\ndef test_x():\n    print('hanging', flush=True)\n    time.sleep(600)\n"
    job_id = hand_in(system, server, make_project(tmp_path / "project", {"test_x.py": code}), "-s")
    before, behind = STOPPING
    crashing = system.start_controller(CI_CRASH_AT=before)
    eventually(lambda: b"hanging" in system.log(server, job_id), what="the test")
    cancel(system, server, job_id)
    dies(crashing)
    dies(system.start_controller(CI_CRASH_AT=behind))
    system.start_controller()
    job = system.wait(server, job_id)
    assert (job["status"], job["reason"], job["attempt"]) == ("cancelled", "cancelled", 1), job
    check_one_verdict(system, server, job)


def test_kill_the_server_while_submitting(shared: Served, project: Path) -> None:
    """The client submits again with its idempotency key, to whoever answers: one job."""
    system, second = shared
    zipped = zip_of_project(project)
    jobs = {killed_while_submitting(system, second, zipped, point) for point in sorted(SERVER)}
    with system.http(second, "hasty") as http:
        assert {job["job_id"] for job in http.get("/jobs").json()} == jobs
    for job_id in jobs:
        assert system.wait(second, job_id, user="hasty")["success"] is True


def killed_while_submitting(system: Installation, second: Daemon, zipped: bytes, point: str) -> str:
    """A server died at that point of a submission, and the second one took the same again; returns the job."""
    crashing = system.start_server(CI_CRASH_AT=point)
    headers = {"Idempotency-Key": f"killed-{point}"}
    with system.http(crashing, "hasty") as http, pytest.raises(httpx.TransportError):
        http.post("/submit-async", files={"file": zipped}, headers=headers).raise_for_status()
    assert crashing.process.wait(timeout=30) == 137
    with system.http(second, "hasty") as http:
        return http.post("/submit-async", files={"file": zipped}, headers=headers).json()["job_id"]


def test_sigterm_leaves_the_job_running_and_the_successor_adopts_it(served: Served, project: Path) -> None:
    system, server = served
    first = system.start_controller()
    job_id = hand_in(system, server, project, "-s")
    eventually(lambda: b"line 3" in system.log(server, job_id), what="some output")
    [container] = system.containers()
    assert first.terminate() == 0, first.tail()
    assert system.containers() == [container]
    system.start_controller()
    job = system.wait(server, job_id)
    assert job["attempt"] == 1
    check_one_run(system, server, job)


def test_a_second_controller_is_refused_with_75(shared: Served) -> None:
    system, _ = shared
    second = system.start_controller()
    assert second.process.wait(timeout=30) == 75
    assert "another controller" in second.tail().lower()

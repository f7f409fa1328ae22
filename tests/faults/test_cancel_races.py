"""Row 63: cancels that race with claim, start, exit and an engine that goes away: one end each, and the right one."""

import random
import secrets
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest

from tests.support.engine_proxy import engine_in_between
from tests.support.installation import Daemon, Installation
from tests.support.kill_loop import zipped
from tests.support.outcomes import begun, check_all_removed, check_log, check_one_end, snapshot, until_ended

pytestmark = [pytest.mark.docker, pytest.mark.timeout(240)]

TEST = "import time\ndef test_short():\n    print('begins', flush=True)\n    time.sleep(0.3)\n"
JOBS = 10


@dataclass(frozen=True)
class Cancelled:
    """What `ci cancel` said of a job."""

    job_id: str
    code: int
    said: str


def test_fault_63_cancels_at_any_moment(installation: Installation) -> None:
    seed = secrets.randbelow(10**6)
    sys.stdout.write(f"cancels: seed {seed}\n")
    chance = random.Random(seed)
    system = installation
    with engine_in_between() as between:
        system.start_controller(DOCKER_HOST=between.url, CI_MAX_RUNNING_JOBS="3", CI_MAX_ATTEMPTS="1")
        server = system.start_server()
        system.wait_ready(server)
        system.key()

        def submit_and_cancel(moment: float) -> Cancelled:
            with system.http(server) as http:
                files = {"file": zipped({"test_it.py": TEST})}
                job_id = http.post("/submit-async", files=files).raise_for_status().json()["job_id"]
            time.sleep(moment)  # not a wait for anything: when the cancel comes is the fault
            done = system.ci(server, "cancel", job_id)
            return Cancelled(job_id, done.code, done.text + done.err)

        with ThreadPoolExecutor(4) as threads:
            asked = [threads.submit(submit_and_cancel, chance.uniform(0, 2)) for _ in range(JOBS)]
            for _ in range(2):
                time.sleep(chance.uniform(0.5, 2))
                between.down()
                time.sleep(chance.uniform(0, 0.5))
                between.up()
            told = [one.result() for one in asked]
        until_ended(system, *(one.job_id for one in told))
        check_all_removed(system)
    for one in told:
        check(system, server, one)
    check_too_late(system, server, [one.job_id for one in told])


def check(system: Installation, server: Daemon, cancelled: Cancelled) -> None:
    """Its end is one that fits what was said to whoever cancelled it, and never a loss."""
    job = system.job(server, cancelled.job_id)
    check_one_end(system, cancelled.job_id)
    assert len(begun(system, cancelled.job_id)) <= 1
    end = (job["status"], job["success"])
    if cancelled.code != 0:
        assert "already" in cancelled.said, cancelled
        assert end == ("completed", True), (cancelled, job)
    elif "is cancelled" in cancelled.said:
        assert end == ("cancelled", False), (cancelled, job)
    else:  # it may have had its verdict before the stop reached it
        assert end in {("cancelled", False), ("completed", True)}, (cancelled, job)
    if begun(system, cancelled.job_id):
        check_log(system, server, cancelled.job_id)


def check_too_late(system: Installation, server: Daemon, jobs: list[str]) -> None:
    """A cancel after the verdict is refused and changes nothing."""
    before = snapshot(system)
    with system.http(server) as http:
        answers = [http.delete(f"/jobs/{job_id}") for job_id in jobs]
    assert {answer.status_code for answer in answers} == {409}
    assert {answer.json()["code"] for answer in answers} == {"job_finished"}
    refused = system.ci(server, "cancel", jobs[0])
    assert (refused.code != 0, "already" in refused.err) == (True, True), refused
    assert snapshot(system) == before

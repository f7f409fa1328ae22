"""An engine that is away for the controller, or keeps its answers to itself: rows 8 and 25, whole system.

The engine of the host goes on; a socket in front of it is cut. `CI_SOAK=1` makes the absence ten minutes long.
"""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import plain_http
from tests.support.engine_proxy import EngineInBetween, engine_in_between
from tests.support.eventually import eventually
from tests.support.installation import Daemon, Installation, make_project
from tests.support.outcomes import (
    begun,
    check_all_removed,
    check_log,
    check_no_container_restarted,
    check_one_end,
    ran,
    recorded_starts,
    until_ended,
    until_printed,
)
from tests.support.soak import SOAKING, soak_only

ABSENCE = 600.0 if SOAKING else 0.0  # seconds

pytestmark = [pytest.mark.docker, pytest.mark.timeout(180 + ABSENCE)]

TEST = """
import os, time

def test_writes():
    for number in range(20):
        os.write(1, f"line {number}\\n".encode())
        time.sleep(0.05)
"""
WRITTEN = b"".join(f"line {number}\n".encode() for number in range(20))


@pytest.fixture
def between(engine: None) -> Iterator[EngineInBetween]:
    with engine_in_between() as found:
        yield found


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return make_project(tmp_path / "project", {"test_it.py": TEST})


def start(system: Installation, between: EngineInBetween, **settings: str) -> Daemon:
    system.start_controller(DOCKER_HOST=between.url, CI_RECONCILE_INTERVAL="0.5", **settings)
    server = system.start_server()
    system.wait_ready(server)
    return server


def names_the_engine(server: Daemon) -> bool:
    return "docker engine" in str(plain_http.get(f"{server.url}/ready").json()["reasons"])


def check_ran_once(system: Installation, server: Daemon, job_id: str) -> None:
    until_ended(system, job_id)
    job = system.job(server, job_id)
    assert (job["status"], job["success"]) == ("completed", True), job
    assert begun(system, job_id) == [None], "no attempt was lost"
    assert ran(system, job_id, b"line 0\n") == 1
    log = check_log(system, server, job_id)
    start = log.index(b"line 0\n")
    assert log[start : start + len(WRITTEN)] == WRITTEN
    check_one_end(system, job_id)


def test_the_engine_is_gone_and_nothing_is_charged(
    installation: Installation, between: EngineInBetween, project: Path
) -> None:
    """One runs, one waits, one is submitted meanwhile: all of them run once, whatever the time in between."""
    system = installation
    server = start(system, between, CI_MAX_RUNNING_JOBS="1", CI_MAX_ATTEMPTS="1")
    with recorded_starts(system, system.root / "starts") as starts:
        jobs = [system.submit(server, project, "--", "-s") for _ in range(2)]
        until_printed(system, jobs[0], b"line 3\n")
        between.down()
        eventually(lambda: names_the_engine(server), what="/ready naming the engine")
        jobs.append(system.submit(server, project, "--", "-s"))
        check_nothing_is_lost_for(system, ABSENCE)
        between.up()
        for job_id in jobs:
            check_ran_once(system, server, job_id)
        eventually(lambda: not names_the_engine(server), what="/ready taking it back")
        check_all_removed(system)
    check_no_container_restarted(starts)


def check_nothing_is_lost_for(system: Installation, seconds: float) -> None:
    until = time.monotonic() + seconds
    while True:
        assert system.query("SELECT id FROM jobs WHERE success = 0 OR status = 'dead_lettered'") == []
        assert (
            system.query("SELECT job_id FROM attempts WHERE reason IS NOT NULL AND begun_at IS NOT NULL")
            == []
        )
        if time.monotonic() >= until:
            return
        time.sleep(1)


def test_fault_8_the_answer_is_lost(
    installation: Installation, between: EngineInBetween, project: Path
) -> None:
    """The engine did it and nobody was told: it is found by its labels, and the job runs exactly once."""
    system = installation
    server = start(system, between, CI_MAX_ATTEMPTS="1")
    with recorded_starts(system, system.root / "starts") as starts:
        for lost, request_line in enumerate([b"/containers/create", b"/start"], start=1):
            between.lose_answer_to(b"POST ", request_line)
            job_id = system.submit(server, project, "--", "-s")
            check_ran_once(system, server, job_id)
            assert between.lost == lost
            check_all_removed(system)
    check_no_container_restarted(starts)


@soak_only
def test_the_engine_hangs_while_a_job_runs_and_another_waits(
    installation: Installation, between: EngineInBetween, project: Path
) -> None:
    """Calls time out, the heart beats on, no verdict is invented; afterwards both have run once."""
    system = installation
    server = start(system, between, CI_MAX_RUNNING_JOBS="1", CI_MAX_ATTEMPTS="1")
    jobs = [system.submit(server, project, "--", "-s") for _ in range(2)]
    until_printed(system, jobs[0], b"line 3\n")
    between.hang()
    eventually(lambda: names_the_engine(server), seconds=60, what="/ready naming the engine")
    checks = plain_http.get(f"{server.url}/ready").json()["checks"]
    assert checks["controller"]["heartbeat_age_seconds"] < 15
    assert [system.job(server, job_id)["success"] for job_id in jobs] == [None, None]
    between.flow()
    for job_id in jobs:
        check_ran_once(system, server, job_id)
    check_all_removed(system)

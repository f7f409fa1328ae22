"""Rows 10 and 11: who leads by the database leads; the one before it can do nothing any more, and leaves with 75."""

import os
import signal
from pathlib import Path

import pytest

from tests.support import plain_http
from tests.support.eventually import eventually
from tests.support.installation import Daemon, Installation, make_project
from tests.support.kill_loop import zipped
from tests.support.outcomes import (
    begun,
    check_all_removed,
    check_log,
    check_no_container_restarted,
    check_one_end,
    ran,
    recorded_starts,
    snapshot,
    until_ended,
    until_printed,
)

pytestmark = [pytest.mark.docker, pytest.mark.timeout(180)]

# Counts until the file appears that the test puts into its container.
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
SHORT = "def test_short(): print('short')\n"


def under_way(system: Installation, job_id: str) -> str:
    """The job's test writes; returns its container."""
    until_printed(system, job_id, b"line 3\n")
    [(container,)] = system.query("SELECT container_id FROM attempts WHERE job_id = ?", job_id)
    return container


def check_ran_once(system: Installation, server: Daemon, job_id: str) -> None:
    until_ended(system, job_id)
    job = system.job(server, job_id)
    assert (job["status"], job["success"]) == ("completed", True), job
    assert begun(system, job_id) == [None]
    check_one_end(system, job_id)
    check_log(system, server, job_id)


def check_counted(system: Installation, server: Daemon, job_id: str) -> None:
    """It ran once, and its log has every line in order and nothing between them."""
    check_ran_once(system, server, job_id)
    assert ran(system, job_id, b"line 0\n") == 1
    log = system.log(server, job_id)
    lines = log[log.index(b"line 0\n") : log.index(b"enough\n")].splitlines(keepends=True)
    assert lines == [f"line {number}\n".encode() for number in range(len(lines))]


def test_faults_10_and_11_a_stopped_controller_wakes_and_a_lock_file_is_deleted(
    installation: Installation, tmp_path: Path
) -> None:
    """The successor finishes what the first had claimed; awake again, the first changes nothing and leaves. Without
    its file the lock alone would then give two leaders: the epoch of the third refuses the second."""
    system = installation
    counting = make_project(tmp_path / "counting", {"test_it.py": COUNTING})
    first = system.start_controller(CI_MAX_RUNNING_JOBS="3")
    server = system.start_server()
    system.wait_ready(server)
    with recorded_starts(system, tmp_path / "starts") as starts:
        job_id = system.submit(server, counting, "--", "-s")
        container = under_way(system, job_id)
        cancelled = system.submit(server, counting, "--", "-s")
        under_way(system, cancelled)
        claimed = stop_as_it_claims(system, server, first)
        assert system.ci(server, "cancel", cancelled).code == 0
        eventually(
            lambda: heartbeat_age(server) > 15, seconds=30, what="the silence that lets others take over"
        )
        second = system.start_controller(CI_MAX_RUNNING_JOBS="3")
        until_ended(system, cancelled, claimed)
        assert system.job(server, cancelled)["status"] == "cancelled"
        check_ran_once(system, server, claimed)
        eventually(lambda: len(system.containers()) == 1, what="the removal of what has ended")

        before = snapshot(system)
        os.kill(first.process.pid, signal.SIGCONT)
        assert first.process.wait(timeout=30) == 75, first.tail()
        assert "another controller took over" in first.tail().lower()
        assert snapshot(system) == before, "nothing that it tried had an effect"
        assert system.containers() == [container]

        [lock] = system.root.glob("*.lock")
        lock.unlink()
        system.start_controller()
        assert second.process.wait(timeout=30) == 75, second.tail()
        assert system.containers() == [container]

        system.tell(container)
        check_counted(system, server, job_id)
        check_all_removed(system)
    check_no_container_restarted(starts)


def stop_as_it_claims(system: Installation, server: Daemon, controller: Daemon) -> str:
    """The controller was stopped between claim and verdict of a job; returns that job."""
    with system.http(server) as http:
        files = {"file": zipped({"test_short.py": SHORT})}
        job_id = http.post("/submit-async", files=files).raise_for_status().json()["job_id"]
    claimed = "SELECT 1 FROM attempts WHERE job_id = ?"
    eventually(lambda: system.query(claimed, job_id), what="the claim")
    os.kill(controller.process.pid, signal.SIGSTOP)
    assert system.query("SELECT success FROM jobs WHERE id = ?", job_id) == [(None,)]
    return job_id


def heartbeat_age(server: Daemon) -> float:
    return plain_http.get(f"{server.url}/ready").json()["checks"]["controller"]["heartbeat_age_seconds"]

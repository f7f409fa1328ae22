"""The jobs' network through the whole system: a job whose tests have none, rules that a reload drops, removal."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.e2e.conftest import Served
from tests.support.docker_cli import RUNNER_IMAGE
from tests.support.eventually import eventually
from tests.support.handing_in import hand_in
from tests.support.installation import Daemon, Installation, make_project

pytestmark = [
    pytest.mark.docker,
    pytest.mark.skipif(os.geteuid() != 0, reason="looks at the host's packet filter"),
]

INTERFACES = """
import os, socket
import iniconfig  # was installed, over the network

def test_there_is_no_network():
    assert os.listdir("/sys/class/net") == ["lo"]
    try:
        socket.create_connection(("pypi.org", 443), timeout=3)
    except OSError:
        return
    raise AssertionError("reached")
"""
METADATA = """
import socket

def test_the_metadata_address_is_refused_and_the_index_is_not():
    socket.create_connection(("pypi.org", 443), timeout=10).close()
    try:
        socket.create_connection(("169.254.169.254", 80), timeout=10)
    except OSError as error:
        assert "No route to host" in str(error), error
        return
    raise AssertionError("reached")
"""


def test_by_default_metadata_is_refused_and_the_index_is_reached(
    shared: tuple[Installation, Daemon], tmp_path: Path
) -> None:
    system, server = shared
    job_id = hand_in(system, server, make_project(tmp_path / "project", {"test_x.py": METADATA}))
    assert system.wait(server, job_id)["success"] is True, system.log(server, job_id)


def test_without_network_a_job_installs_and_its_tests_have_none(served: Served, tmp_path: Path) -> None:
    """Behind rules on a bridge of this test's own, because nobody else allows what it allows."""
    system, server = served
    allowed = f"203.0.113.{os.getpid() % 250}"
    controller = system.start_controller(
        CI_JOB_NETWORK="none",
        CI_JOB_NETWORK_ALLOW=f"{allowed}:9",
        CI_RUNNER_IMAGE=RUNNER_IMAGE,  # pytest is to come over the network
    )
    files: dict[str, str | bytes] = {"test_x.py": INTERFACES, "requirements.txt": "iniconfig\npytest\n"}
    job_id = hand_in(system, server, make_project(tmp_path / "project", files))
    job = system.wait(server, job_id)
    assert (job["success"], job["message"]) == (True, "1 passed."), system.log(server, job_id)
    _rules_that_a_reload_dropped_are_back_and_ci_admin_takes_them_away(system, controller, allowed)


def _rules_that_a_reload_dropped_are_back_and_ci_admin_takes_them_away(
    system: Installation, controller: Daemon, allowed: str
) -> None:
    bridge = eventually(lambda: _bridge_that_allows(allowed), what="the rules")
    subprocess.run(["iptables", "-w", "5", "-F", f"CI-FWD-{bridge}"], check=True)
    eventually(lambda: f"-A CI-FWD-{bridge} -j RETURN" in _saved(), what="the rules again")
    eventually(lambda: "was set again" in controller.log.read_text(), what="the line in the log")
    eventually(lambda: not system.containers(), what="the removal of every container")
    assert controller.terminate() == 0
    removed = system.admin("network", "remove", "--name", bridge, "--json")
    assert json.loads(removed.out) == {"removed": [bridge]}, removed.err
    assert bridge not in _saved()
    assert system.admin("network", "remove", "--name", bridge).text.strip() == "Nothing to remove."


def _bridge_that_allows(address: str) -> str | None:
    wanted = f"-d {address}/32 -p tcp -m tcp --dport 9 -j ACCEPT"
    ours = [line for line in _saved().splitlines() if line.startswith("-A CI-IN-") and wanted in line]
    return ours[0].split()[1].removeprefix("CI-IN-") if ours else None


def _saved() -> str:
    return subprocess.run(
        ["iptables-save", "-t", "filter"], capture_output=True, text=True, check=True
    ).stdout

"""The jobs' network through the whole system: a job whose tests have none, rules that a reload drops, removal."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.support.docker_cli import RUNNER_IMAGE
from tests.support.eventually import eventually
from tests.support.installation import Installation, make_project

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


def test_without_network_a_job_installs_and_its_tests_have_none(
    installation: Installation, tmp_path: Path
) -> None:
    installation.image = RUNNER_IMAGE  # pytest is to come over the network
    installation.start_controller(CI_JOB_NETWORK="none")
    server = installation.start_server()
    installation.wait_ready(server)
    project = make_project(
        tmp_path / "project", {"test_x.py": INTERFACES, "requirements.txt": "iniconfig\npytest\n"}
    )
    done = installation.ci(server, "submit", "test", project=project)
    assert done.code == 0, done.text + done.err
    assert "1 passed" in done.text


def test_by_default_metadata_is_refused_and_the_index_is_reached(
    installation: Installation, tmp_path: Path
) -> None:
    server = installation.start()
    done = installation.ci(
        server, "submit", "test", project=make_project(tmp_path / "project", {"test_x.py": METADATA})
    )
    assert done.code == 0, done.text + done.err


def test_rules_that_a_reload_dropped_are_back_and_ci_admin_takes_them_away(
    installation: Installation,
) -> None:
    """On a bridge of this installation's own: what it allows, nobody else does."""
    allowed = f"203.0.113.{os.getpid() % 250}"
    controller = installation.start_controller(CI_JOB_NETWORK_ALLOW=f"{allowed}:9")
    installation.wait_ready(installation.start_server())
    bridge = eventually(lambda: _bridge_that_allows(allowed), what="the rules")
    subprocess.run(["iptables", "-w", "5", "-F", f"CI-FWD-{bridge}"], check=True)
    eventually(lambda: f"-A CI-FWD-{bridge} -j RETURN" in _saved(), what="the rules again")
    eventually(lambda: "was set again" in controller.log.read_text(), what="the line in the log")
    controller.terminate()
    removed = installation.admin("network", "remove", "--name", bridge, "--json")
    assert json.loads(removed.out) == {"removed": [bridge]}, removed.err
    assert bridge not in _saved()
    assert installation.admin("network", "remove", "--name", bridge).text.strip() == "Nothing to remove."


def _bridge_that_allows(address: str) -> str | None:
    wanted = f"-d {address}/32 -p tcp -m tcp --dport 9 -j ACCEPT"
    ours = [line for line in _saved().splitlines() if line.startswith("-A CI-IN-") and wanted in line]
    return ours[0].split()[1].removeprefix("CI-IN-") if ours else None


def _saved() -> str:
    return subprocess.run(
        ["iptables-save", "-t", "filter"], capture_output=True, text=True, check=True
    ).stdout

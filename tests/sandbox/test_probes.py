"""Hostile code as a submitted job: no probe succeeds, no forgery is believed, and the controls show why that counts."""

import json
import re
import socket
import subprocess
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from ci_controller.probes import report
from ci_controller.probes.all import PROBES
from ci_controller.probes.attempt import Result
from tests.sandbox import project
from tests.sandbox.controls import CONTROLS, Without
from tests.sandbox.metadata import answers, metadata_service
from tests.support.docker_cli import RUNNER_IMAGE, docker
from tests.support.eventually import eventually
from tests.support.installation import Daemon, Done, Installation

pytestmark = [pytest.mark.docker, pytest.mark.timeout(180)]

PEER_PORT = 8000
MIB = 1024**2


@contextmanager
def listening(address: str) -> Generator[str]:
    """Something of the host listens there; gives where."""
    with socket.create_server((address, 0)) as listener:
        yield f"{address}:{listener.getsockname()[1]}"


def gateway_of(network: str) -> str:
    """Return the host's own address in a Docker network."""
    return docker("network", "inspect", "--format", "{{(index .IPAM.Config 0).Gateway}}", network)


def host_address() -> str:
    """Return the address of the host's way out."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))  # sends nothing
        return probe.getsockname()[0]


# -- in a job ------------------------------------------------------------------------------------------------------


@contextmanager
def peer_job(system: Installation, server: Daemon, folder: Path) -> Generator[str]:
    """Another job listens at a port; gives where."""
    job_id = system.submit(server, project.peer(folder), "--", "-s")
    try:
        found = eventually(
            lambda: re.search(rb"listening at ([\d.]+)", system.log(server, job_id)),
            what="the peer",
            seconds=60,
        )
        yield f"{found[1].decode()}:{PEER_PORT}"
    finally:
        system.ci(server, "cancel", job_id)
        system.wait(server, job_id)
        eventually(lambda: not system.containers(), what="the containers' end")


@pytest.fixture
def system(installation: Installation) -> tuple[Installation, Daemon]:
    """A CI system whose jobs' limits are small enough to be reached soon."""
    installation.start_controller(CI_JOB_MEMORY="512MiB", CI_JOB_PIDS="256", CI_MAX_RUNNING_JOBS="2")
    server = installation.start_server()
    installation.wait_ready(server)
    return installation, server


def test_nothing_hostile_succeeds_in_a_job(system: tuple[Installation, Daemon], tmp_path: Path) -> None:
    installation, server = system
    with ExitStack() as stack:
        stack.enter_context(metadata_service())
        peer = stack.enter_context(peer_job(installation, server, tmp_path / "peer"))
        targets = {
            "peer": peer,
            "gateway": stack.enter_context(listening(_gateway_of_jobs(installation))),
            "host": stack.enter_context(listening(host_address())),
        }
        done = installation.ci(
            server, "submit", "test", "--", "-s", project=project.hostile(tmp_path / "hostile", targets)
        )
    results = {result.probe: result for result in report.results(done.text)}
    assert set(results) == set(PROBES), done.text[-3000:] + done.err
    assert [result for result in results.values() if result.succeeded] == []
    assert [name for name, result in results.items() if not result.tried] == ["fill_disk"]  # see below
    _forgeries_are_text(installation, server, done)


def _gateway_of_jobs(installation: Installation) -> str:
    """Return the gateway that this installation's jobs see: that of the network the peer is on."""
    [container] = installation.containers()
    return docker("inspect", "--format", "{{range .NetworkSettings.Networks}}{{.Gateway}}{{end}}", container)


def _forgeries_are_text(installation: Installation, server: Daemon, done: Done) -> None:
    jobs = json.loads(installation.ci(server, "list", "--json").text)
    job = next(job for job in jobs if job["status"] != "cancelled")
    log = installation.log(server, job["job_id"])
    assert (done.code, job["success"], job["reason"]) == (0, True, None), done.text[-3000:]
    assert project.FORGED not in (job["message"] or "")
    assert log.count(b'"outcome":"tests_ran"') == 2  # as text, on both streams
    assert b'data: {"type":"complete","success":true}' in log
    assert b"\x1b]52;c;" in log  # the log keeps every byte
    assert done.text.count('"outcome":"tests_ran"') == 2  # and the client's stream did not end there


def test_a_job_that_fills_the_disk_is_stopped(installation: Installation, tmp_path: Path) -> None:
    """The probe that needs a job of its own: the controller ends all of it, and whoever waits in it."""
    installation.start_controller(CI_JOB_DISK="32MiB")
    server = installation.start_server()
    job_id = installation.submit(server, project.filler(tmp_path / "filler", f"{64 * MIB}:14"), "--", "-s")
    job = installation.wait(server, job_id)
    assert (job["status"], job["reason"]) == ("failed", "disk_limit"), job
    log = installation.log(server, job_id)
    assert (b"filling" in log, b"nobody minded" in log) == (True, False), log
    eventually(lambda: not installation.containers(), what="the container's removal")


def test_a_forged_success_hides_neither_a_failure_nor_an_early_end(
    shared: tuple[Installation, Daemon], tmp_path: Path
) -> None:
    system, server = shared
    lying = system.submit(server, project.liar(tmp_path / "liar"), "--", "-s")
    leaving = system.submit(server, project.leaver(tmp_path / "leaver"), "--", "-s")  # they run side by side
    job, log = system.wait(server, lying), system.log(server, lying)
    assert (job["success"], job["reason"]) == (False, "tests_failed"), log
    assert b"the truth" in log
    job = system.wait(server, leaving)
    assert (job["success"], job["reason"]) == (False, "crashed"), system.log(server, leaving)
    eventually(lambda: not system.containers(), what="the containers' removal")


# -- controls ------------------------------------------------------------------------------------------------------


def unprotected(without: Without, names: list[str], targets: dict[str, str]) -> list[Result]:
    """Return what those probes said in a container that lacks that protection."""
    command = ["docker", "run", "-i", "--rm", *without.options, RUNNER_IMAGE, *report.BARE_COMMAND]
    done = subprocess.run(
        [*command, *names], input=report.program(targets), capture_output=True, check=False, timeout=100
    )
    assert done.returncode == 0, done.stderr.decode()
    return list(report.results(done.stdout.decode()))


@contextmanager
def neighbour() -> Generator[str]:
    """A container listens in the engine's default network; gives where."""
    program = "import socket\nwith socket.create_server(('', 8000)) as s:\n    while True: s.accept()"
    container = docker("run", "-d", "--rm", RUNNER_IMAGE, "python3", "-c", program)
    try:
        yield docker("inspect", "--format", "{{.NetworkSettings.IPAddress}}", container) + f":{PEER_PORT}"
    finally:
        docker("rm", "-f", container)


def test_every_control_succeeds_without_our_protection(engine: None) -> None:
    with ExitStack() as stack:
        stack.enter_context(metadata_service())
        targets = {
            "peer": stack.enter_context(neighbour()),
            "gateway": stack.enter_context(listening(gateway_of("bridge"))),
            "host": stack.enter_context(listening(host_address())),
            "disk": f"{64 * MIB}:0",
        }
        wanted = {kind: [name for name, control in CONTROLS.items() if control is kind] for kind in Without}
        with ThreadPoolExecutor(len(wanted)) as pool:
            running = [pool.submit(unprotected, kind, names, targets) for kind, names in wanted.items()]
            results = {result.probe: result for one in running for result in one.result()}
    assert set(results) == {name for names in wanted.values() for name in names}
    assert [result for result in results.values() if not result.succeeded] == []


def test_a_metadata_service_of_ours_leaves_no_address_behind() -> None:
    """Where the machine has a real one, the tests above use that: here nobody else has the address."""
    address = "169.254.77.77"
    with metadata_service(address):
        assert answers(address)
    assert not interfaces_with(address)


def interfaces_with(address: str) -> str:
    """Return the host's interfaces that have the address."""
    command = ["ip", "-o", "address", "show", "to", address]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout

"""Hostile code as a submitted job: no probe succeeds, no forgery is believed, and the controls show why that counts."""

import re
import socket
import subprocess
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from ci_controller.labels import INSTANCE
from ci_controller.probes import report
from ci_controller.probes.all import PROBES
from ci_controller.probes.attempt import Result
from tests.sandbox import project
from tests.sandbox.controls import CONTROLS, Without
from tests.sandbox.metadata import answers, metadata_service
from tests.support.docker_cli import RUNNER_IMAGE, docker
from tests.support.eventually import eventually
from tests.support.handing_in import cancel, hand_in
from tests.support.installation import Daemon, Done, Installation
from tests.support.soak import soak_only

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
    job_id = hand_in(system, server, project.peer(folder), "-s")
    try:
        found = eventually(
            lambda: re.search(rb"listening at ([\d.]+)", system.log(server, job_id)),
            what="the peer",
            seconds=60,
        )
        yield f"{found[1].decode()}:{PEER_PORT}"
    finally:
        cancel(system, server, job_id)
        system.wait(server, job_id)


# Small enough to be reached soon.
LIMITS = {
    "CI_JOB_MEMORY": "512MiB",
    "CI_JOB_PIDS": "256",
    "CI_JOB_DISK": "32MiB",
    "CI_MAX_RUNNING_JOBS": "2",
}


@pytest.mark.parametrize("waited", [True, pytest.param(False, marks=soak_only)], ids=["waited", "just made"])
def test_nothing_hostile_succeeds_in_a_job(installation: Installation, tmp_path: Path, waited: bool) -> None:
    """In a container that waited for it, and with CI_SOAK=1 in one that was made for it."""
    controller = installation.start_controller(**LIMITS, CI_WARM_CONTAINERS="1" if waited else "0")
    server = installation.start_server()
    installation.wait_ready(server)
    with ExitStack() as stack:
        stack.enter_context(metadata_service())
        peer = stack.enter_context(peer_job(installation, server, tmp_path / "peer"))
        waiting = [_the_one_that_waits(installation)] if waited else []
        targets = {
            "peer": peer,
            "gateway": stack.enter_context(listening(_gateway_of(installation.containers()[0]))),
            "host": stack.enter_context(listening(host_address())),
        }
        hostile = project.hostile(tmp_path / "hostile", targets)
        done = installation.ci(server, "submit", "test", "--", "-s", project=hostile)
    results = {result.probe: result for result in report.results(done.text)}
    assert set(results) == set(PROBES), done.text[-3000:] + done.err
    assert [result for result in results.values() if result.succeeded] == []
    assert [name for name, result in results.items() if not result.tried] == ["fill_disk"]  # see below
    assert (_container_of_the_last_job(installation) in waiting) == waited
    _forgeries_are_text(installation, server, done)
    _who_fills_the_disk_is_stopped(installation, server, tmp_path / "filler")
    if waited:  # none is just being made, which may last longer than the grace for it
        _the_one_that_waits(installation)
        assert controller.terminate() == 0, controller.tail()


def _the_one_that_waits(installation: Installation) -> str:
    """Return the container that waits, once there is one."""
    ours = ("--filter", f"label={INSTANCE}={installation.instance_id()}", "--filter", "name=waiting-")
    return eventually(lambda: docker("ps", "--no-trunc", "-q", *ours).strip(), what="a container that waits")


def _gateway_of(container: str) -> str:
    """Return the gateway that a job in this container sees."""
    return docker("inspect", "--format", "{{range .NetworkSettings.Networks}}{{.Gateway}}{{end}}", container)


def _container_of_the_last_job(installation: Installation) -> str:
    return installation.query("SELECT container_id FROM attempts ORDER BY started_at DESC LIMIT 1")[0][0]


def _forgeries_are_text(installation: Installation, server: Daemon, done: Done) -> None:
    with installation.http(server) as http:
        job = next(job for job in http.get("/jobs").json() if job["status"] != "cancelled")
    log = installation.log(server, job["job_id"])
    assert (done.code, job["success"], job["reason"]) == (0, True, None), done.text[-3000:]
    assert project.FORGED not in (job["message"] or "")
    assert log.count(b'"outcome":"tests_ran"') == 2  # as text, on both streams
    assert b'data: {"type":"complete","success":true}' in log
    assert b"\x1b]52;c;" in log  # the log keeps every byte
    assert done.text.count('"outcome":"tests_ran"') == 2  # and the client's stream did not end there


def _who_fills_the_disk_is_stopped(installation: Installation, server: Daemon, folder: Path) -> None:
    """The probe that needs a job of its own: the controller ends all of it, and whoever waits in it."""
    job_id = hand_in(installation, server, project.filler(folder, f"{64 * MIB}:14"), "-s")
    job = installation.wait(server, job_id)
    assert (job["status"], job["reason"]) == ("failed", "disk_limit"), job
    log = installation.log(server, job_id)
    assert (b"filling" in log, b"nobody minded" in log) == (True, False), log


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

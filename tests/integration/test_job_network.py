"""What a job reaches of the network, tried from inside a container, each time with a control without the fence.

Every test has a bridge of its own with its own chains, and a "LAN host" in a network namespace behind a veth pair.
"""

import asyncio
import fcntl
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import uuid
from collections.abc import AsyncIterator, Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest

from ci_admin.operator_name import operator
from ci_controller.container_manager import ContainerManager
from ci_controller.container_runtime import ContainerError, NetworkState, start_and_feed
from ci_controller.firewall import HostFirewall
from ci_controller.job_network import NetworkOptions
from ci_controller.network_rules import Destination, bridges
from tests.support.admin_crashes import Admin
from tests.support.docker_cli import RUNNER_IMAGE, docker, require_engine
from tests.support.runtime_contract import UNTIL_KILLED, Engine

pytestmark = [
    pytest.mark.docker,
    pytest.mark.skipif(
        os.geteuid() != 0, reason="needs to set packet filter rules and make network namespaces"
    ),
]

# Each line of the input is one attempt: "tcp HOST PORT", "resolve NAME", "ask SERVER NAME" or "ptr SERVER ADDRESS".
PROBE = """
import json, socket, struct, sys

def tcp(host, port):
    socket.create_connection((host, int(port)), timeout=3).close()
    return "reached"

def resolve(name):
    return socket.gethostbyname(name)

def query(server, name, kind):
    labels = b"".join(bytes([len(one)]) + one.encode() for one in name.split(".")) + b"\\0"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        asking.settimeout(3)
        asking.connect((server, 53))
        asking.send(struct.pack(">6H", 7, 0x100, 1, 0, 0, 0) + labels + struct.pack(">2H", kind, 1))
        answers = struct.unpack(">6H", asking.recv(4096)[:12])[3]
    return "answered" if answers else "no answers"

def ask(server, name):
    return query(server, name, 1)

def ptr(server, address):
    return query(server, ".".join(reversed(address.split("."))) + ".in-addr.arpa", 12)

found = []
for line in sys.stdin.read().splitlines():
    what, *arguments = line.split()
    try:
        found.append(globals()[what](*arguments))
    except OSError as error:
        found.append(f"failed: {error}")
print(json.dumps(found))
"""
LISTEN = "import socket; s = socket.create_server(('', 8000)); print('listening', flush=True)\nwhile True: s.accept()"
LAN_LISTEN = """
import socket
listening = socket.create_server(("::", 8000), family=socket.AF_INET6, dualstack_ipv6=True)
print("listening", flush=True)
while True: listening.accept()[0].close()
"""
SET_FENCE = """
from ci_controller.firewall import HostFirewall, NetworkGuard
from ci_controller.network_rules import Fence
guard = NetworkGuard(HostFirewall(), lambda _: Fence("jobs0"))
assert guard.inspect()
assert not guard.inspect()
"""
LAN_LOCK = Path(tempfile.gettempdir()) / "ci-tests-lan.lock"
METADATA, LAN = "169.254.169.254", "10.203.77.2"


def sh(*command: str, check: bool = True) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    assert not check or done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout


@pytest.fixture(scope="module", autouse=True)
def _engine_is_there() -> None:
    require_engine()


@dataclass
class Site:
    """A manager with a bridge of its own, and what its containers find out."""

    manager: ContainerManager
    engine: Engine
    bridge: str

    async def run(self, program: str, feed: bytes = b"") -> str:
        spec = replace(self.engine.spec(program), network="internet")
        container = await self.manager.create(spec)
        await start_and_feed(self.manager, container, [feed])
        return container

    async def probe(self, *attempts: str) -> list[str]:
        container = await self.run(PROBE, "\n".join(attempts).encode())
        return json.loads(await self.engine.output(container))

    async def listener(self) -> str:
        """A container of another job listens; returns its address."""
        container = await self.run(LISTEN)
        await self.engine.until(container, b"listening\n")
        return self.address_of(container)

    def address_of(self, container: str) -> str:
        networks: dict[str, Any] = json.loads(
            docker("inspect", "--format", "{{json .NetworkSettings.Networks}}", container)
        )
        return networks[self.bridge]["IPAddress"]

    @property
    def gateway(self) -> str:
        return docker("network", "inspect", "--format", "{{(index .IPAM.Config 0).Gateway}}", self.bridge)

    async def fenced(self) -> None:
        """The fence stands and was found whole; others on this host change their own rules meanwhile."""
        async with asyncio.timeout(20):
            while not (await self.manager.guard_network()).holds:
                pass


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    bridge = f"ci-n{uuid.uuid4().hex[:8]}"
    manager = ContainerManager("network-", network=NetworkOptions(bridge))
    engine = Engine(manager, docker("image", "inspect", "--format", "{{.Id}}", RUNNER_IMAGE))
    try:
        yield Site(manager, engine, bridge)
    finally:
        await engine.remove_all()
        await manager.close()
        clean_up(bridge)


def clean_up(bridge: str) -> None:
    """Nothing of the bridge is left; by other means than the code under test."""
    docker("network", "rm", bridge, check=False)
    for prefix in ("", "6"):
        saved = sh(f"ip{prefix}tables-save", "-t", "filter")
        for rule in saved.splitlines():
            if rule.startswith("-A ") and f"-{bridge}" in rule.rpartition(" -j ")[2]:
                sh(f"ip{prefix}tables", "-w", "5", "-D", *rule.split()[1:], check=False)
        for chain in (f"CI-IN-{bridge}", f"CI-FWD-{bridge}"):
            if f":{chain} " in saved:
                sh(f"ip{prefix}tables", "-w", "5", "-F", chain)
                sh(f"ip{prefix}tables", "-w", "5", "-X", chain)


@contextmanager
def host_listener() -> Generator[int]:
    """A service of this host, at every address of it; yields its port."""
    with socket.create_server(("", 0)) as listening:
        stopped = threading.Event()
        listening.settimeout(0.1)

        def serve() -> None:
            while not stopped.is_set():
                with suppress(TimeoutError):
                    listening.accept()[0].close()

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield listening.getsockname()[1]
        finally:
            stopped.set()
            thread.join()


@contextmanager
def lan_host() -> Generator[None]:
    """A host at 10.203.77.2, which also is 169.254.169.254, listens at port 8000; this host has a foot in its LAN."""
    name = f"cin{uuid.uuid4().hex[:6]}"
    with LAN_LOCK.open(
        "w"
    ) as lock:  # there is one such address on the machine, and several testing processes
        fcntl.flock(lock, fcntl.LOCK_EX)
        with _lan(name):
            yield


@contextmanager
def _lan(name: str) -> Generator[None]:
    sh("ip", "netns", "add", name)
    try:
        sh("ip", "link", "add", f"{name}h", "type", "veth", "peer", "name", "eth0", "netns", name)
        sh("ip", "addr", "add", "10.203.77.1/24", "dev", f"{name}h")
        sh("ip", "link", "set", f"{name}h", "up")
        for command in (
            "addr add 10.203.77.2/24 dev eth0",
            f"addr add {METADATA}/32 dev eth0",
            "link set eth0 up",
            "link set lo up",
            "route add default via 10.203.77.1",
        ):
            sh("ip", "-n", name, *command.split())
        sh("ip", "route", "add", f"{METADATA}/32", "via", LAN, "dev", f"{name}h")
        with _listening_in(name):
            yield
    finally:
        sh("ip", "link", "del", f"{name}h", check=False)
        sh("ip", "netns", "del", name, check=False)


@contextmanager
def _listening_in(namespace: str) -> Generator[None]:
    command = ["ip", "netns", "exec", namespace, "python3", "-c", LAN_LISTEN]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as listening:
        assert listening.stdout is not None
        try:
            assert listening.stdout.readline() == b"listening\n"
            yield
        finally:
            listening.kill()


def host_address() -> str:
    """Return the address from which this host speaks to the outside."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        asking.connect(("192.0.2.254", 9))
        return asking.getsockname()[0]


# -- addresses ---------------------------------------------------------------------------------------------


async def test_host_lan_and_metadata_are_out_of_reach(site: Site) -> None:
    """Faults §2.3: gateway and host address, a LAN host, the metadata address; reachable without the fence."""
    await site.run(UNTIL_KILLED)  # makes the network
    with host_listener() as port, lan_host():
        attempts = (
            f"tcp {site.gateway} {port}",
            f"tcp {host_address()} {port}",
            f"tcp {LAN} 8000",
            f"tcp {METADATA} 8000",
        )
        assert await site.probe(*attempts) == ["reached"] * 4  # the control
        await site.fenced()
        blocked = await site.probe(*attempts)
    assert all("failed" in one for one in blocked), blocked


async def test_a_destination_that_is_allowed_is_reached_at_its_port_only(site: Site) -> None:
    allowing = NetworkOptions(site.bridge, allowed=(Destination.parse(f"{LAN}:8000"),))
    manager = ContainerManager("network-", network=allowing)
    open_site = Site(manager, Engine(manager, site.engine.image_id), site.bridge)
    try:
        with lan_host(), host_listener() as port:
            await open_site.run(UNTIL_KILLED)  # makes the network
            await open_site.fenced()
            found = await open_site.probe(
                f"tcp {LAN} 8000", f"tcp {METADATA} 8000", f"tcp {open_site.gateway} {port}"
            )
        assert [one.partition(":")[0] for one in found] == ["reached", "failed", "failed"]
    finally:
        await open_site.engine.remove_all()
        await manager.close()


async def test_another_jobs_port_is_out_of_reach_by_the_fence_alone(site: Site) -> None:
    """The bridge's own icc=false is overruled by hand, so that only our rule is left."""
    address = await site.listener()
    attempt = f"tcp {address} 8000"
    assert "failed" in (await site.probe(attempt))[0]
    overruling = ("FORWARD", "-i", site.bridge, "-o", site.bridge, "-j", "ACCEPT")
    sh("iptables", "-w", "5", "-I", *overruling)
    try:
        assert await site.probe(attempt) == ["reached"]  # the control
        await site.fenced()
        assert "failed" in (await site.probe(attempt))[0]
    finally:
        sh("iptables", "-w", "5", "-D", *overruling)


async def test_there_is_no_ipv6_in_a_container(site: Site) -> None:
    with socket.create_server(("::", 0), family=socket.AF_INET6) as listening:
        port = listening.getsockname()[1]
        found = await site.probe(f"tcp fd00::2 {port}", f"tcp fe80::1 {port}")
    assert all("failed" in one for one in found)
    assert docker("network", "inspect", "--format", "{{.EnableIPv6}}", site.bridge) == "false"


def test_over_ipv6_host_and_lan_are_out_of_reach_too() -> None:
    """The jobs' bridge has no IPv6; so three namespaces stand for a host that gives its jobs some, a job and a LAN."""
    host, job, lan = (f"cin{uuid.uuid4().hex[:6]}{role}" for role in ("host", "job", "lan"))
    try:
        _lay_ipv6(host, job, lan)
        with _listening_in(host), _listening_in(lan):
            assert [_reaches(job, one) for one in ("fd77:1::1", "fd77:2::2")] == [True, True]  # the control
            sh("ip", "netns", "exec", host, sys.executable, "-c", SET_FENCE)
            assert [_reaches(job, one) for one in ("fd77:1::1", "fd77:2::2")] == [False, False]
    finally:
        for name in (host, job, lan):
            sh("ip", "netns", "del", name, check=False)


def _lay_ipv6(host: str, job: str, lan: str) -> None:
    for name in (host, job, lan):
        sh("ip", "netns", "add", name)
        sh("ip", "-n", name, "link", "set", "lo", "up")
    sh("ip", "netns", "exec", host, "sysctl", "-q", "-w", "net.ipv6.conf.all.forwarding=1")
    for number, there, here in ((1, job, "jobs0"), (2, lan, "lan0")):
        sh("ip", "-n", host, "link", "add", here, "type", "veth", "peer", "name", "eth0", "netns", there)
        for namespace, device, host_part in ((host, here, 1), (there, "eth0", 2)):
            address = f"fd77:{number}::{host_part}/64"
            sh("ip", "-n", namespace, "addr", "add", address, "dev", device, "nodad")
            sh("ip", "-n", namespace, "link", "set", device, "up")
        sh("ip", "-n", there, "-6", "route", "add", "default", "via", f"fd77:{number}::1")


def _reaches(namespace: str, address: str) -> bool:
    program = f"import socket; socket.create_connection(({address!r}, 8000), timeout=3)"
    command = ["ip", "netns", "exec", namespace, "python3", "-c", program]
    return subprocess.run(command, capture_output=True, check=False, timeout=30).returncode == 0


async def test_the_package_index_and_the_resolver_answer_through_the_fence(site: Site) -> None:
    await site.fenced()
    resolved, reached = await site.probe("resolve pypi.org", "tcp pypi.org 443")
    assert str(IPv4Address(resolved)) == resolved
    assert reached == "reached"


# -- names -------------------------------------------------------------------------------------------------


async def test_dockers_name_server_tells_nothing_of_other_containers(site: Site) -> None:
    other = await site.run(UNTIL_KILLED)
    name = docker("inspect", "--format", "{{.Name}}", other).removeprefix("/")
    attempts = (
        f"resolve {name}",
        f"ask 127.0.0.11 {name}",
        f"ptr 127.0.0.11 {site.address_of(other)}",
        "ask 127.0.0.11 pypi.org",
    )
    found = await site.probe(*attempts)
    assert all("failed" in one for one in found), found
    assert await _without_our_care(site, attempts) == "answered"


async def _without_our_care(site: Site, attempts: tuple[str, ...]) -> str:
    """Return what Docker's server says of the other container's address in one that nobody guarded: the control."""
    done = await asyncio.to_thread(
        subprocess.run,
        ["docker", "run", "--rm", "-i", "--network", site.bridge, RUNNER_IMAGE, "python3", "-c", PROBE],
        input="\n".join(attempts),
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    by_name, asked, pointer, _ = json.loads(done.stdout)
    assert str(IPv4Address(by_name)) == by_name
    assert asked == "answered"
    return pointer


async def test_a_container_whose_network_cannot_be_guarded_gets_nothing(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = replace(site.engine.spec("import sys; print(len(sys.stdin.read()))"), network="internet")
    container = await site.manager.create(spec)
    monkeypatch.setattr("ci_controller.firewall.GUARD_NAMESPACE", ("-I", "NO-SUCH-CHAIN"))
    with pytest.raises(ContainerError, match="could not be guarded"):
        await start_and_feed(site.manager, container, [b"secret"])
    assert await site.engine.output(container) == b"0\n"


# -- isolation ---------------------------------------------------------------------------------------------

WAIT_ISOLATED = """
import os, sys, time
sys.stdin.read(); print("ready", flush=True)
while os.listdir("/sys/class/net") != ["lo"]: time.sleep(0.02)
print("isolated")
"""


async def test_a_running_container_is_taken_off_the_network_once_and_again(site: Site) -> None:
    container = await site.run(WAIT_ISOLATED)
    await site.engine.until(container, b"ready\n")
    await site.manager.isolate(container)
    await site.manager.isolate(container)
    assert await site.engine.output(container) == b"ready\nisolated\n"
    await site.engine.remove_all()
    await site.manager.isolate(container)  # gone


# -- the rules themselves ----------------------------------------------------------------------------------


async def test_rules_that_were_flushed_by_hand_are_back_after_the_next_look(site: Site) -> None:
    await site.fenced()
    sh("iptables", "-w", "5", "-F", f"CI-FWD-{site.bridge}")
    sh("ip6tables", "-w", "5", "-D", "INPUT", "-i", site.bridge, "-j", f"CI-IN-{site.bridge}")
    found = await site.manager.guard_network()
    assert f"IPv4: the chain CI-FWD-{site.bridge} is not as it should be" in found.broken
    assert "IPv6: INPUT does not lead to our rules first" in found.broken
    assert not found.holds
    await site.fenced()


async def test_an_accept_before_our_rules_is_found_and_overtaken(site: Site) -> None:
    await site.fenced()
    opening = ("INPUT", "-i", site.bridge, "-j", "ACCEPT")
    sh("iptables", "-w", "5", "-I", *opening)
    try:
        found = await site.manager.guard_network()
        assert "IPv4: INPUT does not lead to our rules first" in found.broken
        await site.fenced()
    finally:
        sh("iptables", "-w", "5", "-D", *opening)


async def test_several_controllers_share_a_bridge_without_a_fight(site: Site) -> None:
    others = [ContainerManager(network=NetworkOptions(site.bridge)) for _ in range(3)]
    try:
        await asyncio.gather(*(other.guard_network() for other in others))
        await site.fenced()
        saved = HostFirewall().look().saved[4]
        for other in others:
            await Site(other, site.engine, site.bridge).fenced()
        ours = [line for line in HostFirewall().look().saved[4].splitlines() if site.bridge in line]
        assert ours == [line for line in saved.splitlines() if site.bridge in line]
    finally:
        for other in others:
            await other.close()


def _it_may_not(_engine: str | None) -> bool:
    return False


async def test_a_controller_that_may_not_does_it_all_through_containers(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same rules, read and written by the runner image's iptables, on the host's network and in a job's."""
    other = await site.run(UNTIL_KILLED)
    name = docker("inspect", "--format", "{{.Name}}", other).removeprefix("/")
    monkeypatch.setattr("ci_controller.job_network.host_firewall_works", _it_may_not)
    with host_listener() as port:
        await site.fenced()
        attempts = (f"tcp {site.gateway} {port}", f"ask 127.0.0.11 {name}", "tcp pypi.org 443")
        gateway, asked, index = await site.probe(*attempts)
    assert ("failed" in gateway, "failed" in asked, index) == (True, True, "reached")
    monkeypatch.undo()
    assert (
        await site.manager.guard_network()
    ).broken == ()  # what stands is what the host's own would have set
    assert docker("ps", "-aq", "--filter", f"name={site.bridge}-guard") == ""


async def test_without_iptables_anywhere_no_job_may_run_unless_the_operator_says_so(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ci_controller.job_network.host_firewall_works", _it_may_not)
    states: list[NetworkState] = []
    for unguarded in (False, True):
        options = NetworkOptions(site.bridge, guard_image="ci-no-such-image:latest", unguarded=unguarded)
        manager = ContainerManager(network=options)
        states.append(await manager.guard_network())
        await manager.close()
    refused, accepted = states
    assert not refused.holds
    assert "CI_JOB_NETWORK_UNGUARDED=1" in (refused.trouble or "")
    assert accepted.holds
    assert "UNGUARDED" in (accepted.trouble or "")


async def test_removing_leaves_nothing_once_no_container_is_on_the_network(
    site: Site, tmp_path: Path
) -> None:
    admin = Admin(tmp_path / "ci_jobs.db")
    await admin.json("user", "list")  # there is a database
    await site.run(UNTIL_KILLED)
    await site.fenced()
    other_networks = {*docker("network", "ls", "--format", "{{.Name}}").split()} - {site.bridge}
    assert await _remove_only(site, admin) == []
    await site.engine.remove_all()
    assert await _remove_only(site, admin) == [site.bridge]
    [event] = await admin.json("audit")
    assert (event["action"], event["subject"], event["actor"]) == ("network.remove", site.bridge, operator())
    assert {*docker("network", "ls", "--format", "{{.Name}}").split()} - {site.bridge} >= other_networks
    assert docker("network", "ls", "-q", "--filter", f"name={site.bridge}") == ""
    for text in HostFirewall().look().saved.values():
        assert site.bridge not in bridges(text)
        assert site.bridge not in text


async def _remove_only(site: Site, admin: Admin) -> list[str]:
    """Remove by the command, but only this test's own: the engine's other networks are other tests'."""
    return (await admin.json("network", "remove", "--name", site.bridge))["removed"]

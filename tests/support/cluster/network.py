"""The hosts of a cluster: network namespaces on one bridge, each with an address, a name and a cable that can be cut.

This machine is one more host of that network, at SUBNET.1, and the way out of it. The bridge is in a namespace of
its own, so that no firewall of this machine has a say in what the hosts tell each other.
"""

import fcntl
import os
import signal
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

from tests.support.eventually import eventually
from tests.support.namespaces import (
    children_of,
    inner_interface,
    inside,
    namespace_with_a_way_out,
    processes_in,
    remove_namespace,
    run,
)
from tests.support.private_engine import remove_files_of_killed

_MOST: Final = 10  # clusters at the same time
_BRIDGE: Final = "bridge"
_CABLE: Final = "eth0"  # what each host calls its end


class NotRoot(Exception):
    """Whoever asked may not make networks."""


@dataclass(frozen=True)
class Host:
    """One host; its processes are those that were started behind `inside`."""

    namespace: str
    address: str

    @property
    def inside(self) -> list[str]:
        return inside(self.namespace)

    def cut_off(self) -> None:
        """Nothing goes out of the host, nothing comes in, and nobody is told: packets are dropped on both ways."""
        # The raw table has no rules of an agent's own, which compares those of the others with what they should be.
        for way in (("PREROUTING", "-i"), ("OUTPUT", "-o")):
            run(*self.inside, "iptables", "-w", "-t", "raw", "-I", *way, _CABLE, "-j", "DROP")

    def join(self) -> None:
        """The network is there, whether or not it was away."""
        run(*self.inside, "iptables", "-w", "-t", "raw", "-F")


@dataclass(frozen=True)
class Network:
    """The bridge, and who is on it."""

    name: str
    subnet: str  # the first three numbers of a /24

    def host(self, name: str, number: int) -> Host:
        """A host of that name is there, at SUBNET.NUMBER; it is gone with the network."""
        namespace, address = f"{self.name}-{name}", f"{self.subnet}.{number}"
        run("ip", "netns", "add", namespace)
        cable = ("type", "veth", "peer", "name", _CABLE, "netns", namespace)
        run("ip", "-n", self.name, "link", "add", name, *cable)
        run("ip", "-n", self.name, "link", "set", name, "master", _BRIDGE, "up")
        for words in (
            ["addr", "add", f"{address}/24", "dev", _CABLE],
            ["link", "set", _CABLE, "up"],
            ["link", "set", "lo", "up"],
            ["route", "add", "default", "via", f"{self.subnet}.1"],
        ):
            run("ip", "-n", namespace, *words)
        return Host(namespace, address)


@contextmanager
def network() -> Generator[Network]:
    """A network without hosts; nothing of it is left afterwards, nor of those that killed processes left behind."""
    if os.geteuid() != 0:
        raise NotRoot("A cluster is made of network namespaces, and only root may make those.")
    _remove_what_killed_ones_left()
    with _own_number() as number:
        made = _numbered(number)
        _remove_hosts(made)
        try:
            with namespace_with_a_way_out(made.name, made.subnet):
                _bridge(made)
                yield made
        finally:
            _remove_hosts(made)


def share(front: Host, port: int, hosts: Sequence[Host]) -> None:
    """Connections to that port of the front go to these hosts in turn, whether or not one of them answers."""
    run(*front.inside, "sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward")
    nat = (*front.inside, "iptables", "-w", "-t", "nat", "-A")
    to_port = ("-p", "tcp", "--dport", str(port))
    for left, host in zip(range(len(hosts), 0, -1), hosts, strict=True):
        turn = ("-m", "statistic", "--mode", "nth", "--every", str(left), "--packet", "0")
        run(*nat, "PREROUTING", *to_port, *turn, "-j", "DNAT", "--to-destination", f"{host.address}:{port}")
    run(*nat, "POSTROUTING", *to_port, "-j", "MASQUERADE")  # so that answers come back this way


@contextmanager
def _own_number() -> Generator[int]:
    """A number that no other process of this machine uses for a cluster meanwhile."""
    for number in range(_MOST):
        with _lock_file(number) as lock:
            if _is_locked_now(lock):
                yield number
                return
    raise AssertionError(f"{_MOST} clusters run on this machine")


def _remove_what_killed_ones_left() -> None:
    """Whatever their numbers were: nobody may ever come to have those again."""
    for number in range(_MOST):
        left = _numbered(number)
        if not any(Path("/run/netns").glob(f"{left.name}*")):
            continue
        with _lock_file(number) as lock:
            if _is_locked_now(lock):
                _remove_hosts(left)
                remove_namespace(left.name, left.subnet)


def _numbered(number: int) -> Network:
    return Network(f"ci-cl{number}", f"10.232.{number}")


def _lock_file(number: int) -> IO[str]:
    return Path(f"/run/ci-cluster-{number}.lock").open("w")  # where only root makes files


def _is_locked_now(lock: IO[str]) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _bridge(network: Network) -> None:
    inner = inner_interface(network.name)
    for words in (
        ["link", "add", _BRIDGE, "type", "bridge"],
        ["link", "set", _BRIDGE, "up"],
        ["addr", "flush", "dev", inner],
        ["link", "set", inner, "master", _BRIDGE],
    ):
        run("ip", "-n", network.name, *words)


def _remove_hosts(network: Network) -> None:
    """No host is left, no process on one, and no files of an engine there."""
    hosts = [path.name for path in Path("/run/netns").glob(f"{network.name}-*")]
    eventually(lambda: not _killed(hosts), what=f"the end of all processes of {hosts}")
    for host in hosts:
        run("ip", "netns", "delete", host)
    remove_files_of_killed(network.name)


def _killed(hosts: Iterable[str]) -> set[int]:
    """Return the processes that were found there, and killed; a container's are those that its shim started."""
    found = {pid for host in hosts for pid in processes_in(host)}
    found |= {child for pid in found for child in children_of(pid)}
    for pid in found:
        with suppress(ProcessLookupError):  # it ended with its parent, just now
            os.kill(pid, signal.SIGKILL)
    return found

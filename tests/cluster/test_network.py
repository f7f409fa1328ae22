"""The network that clusters are made of: addresses, a cable that is cut, and nothing left behind in any case."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.cluster.network import Host, Network, NotRoot, network, share
from tests.support.eventually import eventually
from tests.support.namespaces import processes_in

_PORT = 8000
_SAYS_WHERE = """
import socket, sys
here = sys.argv[1]
with socket.create_server((here, {port})) as listener:
    while True:
        with listener.accept()[0] as connection:
            connection.sendall(here.encode())
"""
_ASKS = """
import socket, sys
with socket.create_connection((sys.argv[1], int(sys.argv[2])), 2) as connection:
    print(connection.recv(99).decode())
"""


def serve(host: Host) -> subprocess.Popen[bytes]:
    """Something listens at the host that tells its address to everybody; killed with the network."""
    program = _SAYS_WHERE.format(port=_PORT)
    return subprocess.Popen([*host.inside, sys.executable, "-c", program, host.address])


def ask(host: Host, address: str) -> str:
    """Return what is said at that address to somebody on the host; nothing where nobody is reached."""
    asking = [*host.inside, sys.executable, "-c", _ASKS, address, str(_PORT)]
    return subprocess.run(asking, capture_output=True, text=True, check=False).stdout.strip()


def traces(made: Network) -> list[str]:
    """Return what is still there of a network: namespaces, interfaces, firewall rules."""
    listings = (
        ["ip", "netns"],
        ["ip", "-brief", "link"],
        ["iptables", "-S"],
        ["iptables", "-t", "nat", "-S"],
    )
    found = [subprocess.run(one, capture_output=True, text=True, check=True).stdout for one in listings]
    return [line for text in found for line in text.splitlines() if made.name in line or made.subnet in line]


def test_hosts_reach_each_other_until_a_cable_is_cut_and_an_exception_leaves_nothing_behind() -> None:
    serving: list[subprocess.Popen[bytes]] = []
    used: list[Network] = []
    with pytest.raises(ZeroDivisionError):
        use_and_fail(used, serving)
    assert traces(used[0]) == []
    assert [process.wait(timeout=30) for process in serving] == [-signal.SIGKILL, -signal.SIGKILL]


def use_and_fail(used: list[Network], serving: list[subprocess.Popen[bytes]]) -> None:
    with network() as made:
        used.append(made)
        front, one, other = (
            made.host(name, place) for place, name in enumerate(("front", "one", "other"), 2)
        )
        share(front, _PORT, [one, other])
        assert [rule for rule in traces(made) if "MASQUERADE" in rule], "its way out is this machine"
        serving += [serve(one), serve(other)]
        eventually(lambda: all(ask(host, host.address) for host in (one, other)), what="both to listen")
        assert {ask(one, front.address) for _ in range(2)} == {one.address, other.address}
        one.cut_off()
        assert (ask(one, other.address), ask(other, one.address)) == ("", "")
        one.join()
        assert ask(one, other.address) == other.address
        raise ZeroDivisionError


def test_what_a_killed_process_left_is_removed_by_the_next_whatever_its_number() -> None:
    program = (
        "import os, signal, subprocess\n"
        "from tests.support.cluster.network import network\n"
        "with network() as made:\n"
        "    host = made.host('killed', 2)\n"
        "    subprocess.Popen([*host.inside, 'sleep', 'infinity'], stdout=subprocess.DEVNULL)\n"
        "    print(made.name, made.subnet, host.namespace, flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    root = Path(__file__).parents[2]
    with network():  # so the next one, which comes after it, has another number than the one that is killed
        killed = subprocess.run(
            [sys.executable, "-c", program], cwd=root, stdout=subprocess.PIPE, text=True, check=False
        )
    assert killed.returncode == -signal.SIGKILL
    name, subnet, namespace = killed.stdout.split()
    eventually(lambda: processes_in(namespace), what="a process that outlived it")
    with network():
        assert not Path(f"/run/netns/{namespace}").exists()
        assert processes_in(namespace) == set()
    # The rules, too; a test beside this one may have that number by now, and gives it back.
    eventually(lambda: not traces(Network(name, subnet)), what="the end of everything of that number")


def test_two_at_a_time_have_names_and_addresses_of_their_own() -> None:
    with network() as first, network() as second:
        assert {first.name, first.subnet}.isdisjoint({second.name, second.subnet})


def test_whoever_is_not_root_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(NotRoot, match="only root"), network():
        pass

"""Network namespaces of tests: made, joined to the host's network, and removed with all that a killed test left there.

They need root. A command goes inside with `nsenter`, since `ip netns exec` would hide the control groups.
"""

import subprocess
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path


def inside(name: str) -> list[str]:
    """Return what to put before a command that is to run in that network namespace."""
    return ["nsenter", f"--net=/run/netns/{name}"]


def processes_in(name: str) -> set[int]:
    """Return the processes that run in the namespace; none if there is no such namespace."""
    command = ["ip", "netns", "pids", name]
    listed = subprocess.run(command, capture_output=True, text=True, check=False)
    return {int(pid) for pid in listed.stdout.split()}


def children_of(pid: int) -> set[int]:
    """Return the processes that this one started and that run."""
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except OSError:  # it has ended
        return set()
    return {int(child) for child in text.split()}


@contextmanager
def namespace_with_a_way_out(name: str, subnet: str) -> Generator[None]:
    """A namespace at SUBNET.2, whose way out is this host at SUBNET.1.

    `name` has at most 12 characters, because interfaces are named after it; `subnet` is three numbers of a /24.
    """
    outer, inner = outer_interface(name), inner_interface(name)
    remove_namespace(name, subnet)  # of a test that was killed
    try:
        run("ip", "netns", "add", name)
        run("ip", "link", "add", outer, "type", "veth", "peer", "name", inner, "netns", name)
        run("ip", "addr", "add", f"{subnet}.1/24", "dev", outer)
        run("ip", "link", "set", outer, "up")
        for words in (
            ["addr", "add", f"{subnet}.2/24", "dev", inner],
            ["link", "set", inner, "up"],
            ["link", "set", "lo", "up"],
            ["route", "add", "default", "via", f"{subnet}.1"],
        ):
            run("ip", "-n", name, *words)
        for rule in _rules(outer, subnet):
            run("iptables", "-w", *rule[:2], "-I", *rule[2:])
        yield
    finally:
        remove_namespace(name, subnet)


def outer_interface(name: str) -> str:
    """Return the host's end of the cable to that namespace."""
    return f"{name}-h"


def inner_interface(name: str) -> str:
    """Return the other end."""
    return f"{name}-c"


def _rules(outer: str, subnet: str) -> list[list[str]]:
    return [
        ["-t", "nat", "POSTROUTING", "-s", f"{subnet}.0/24", "!", "-o", outer, "-j", "MASQUERADE"],
        ["-t", "filter", "FORWARD", "-i", outer, "-j", "ACCEPT"],
        # Answers only: what is in there is nobody's from outside.
        [
            "-t",
            "filter",
            "FORWARD",
            "-o",
            outer,
            "-m",
            "conntrack",
            "--ctstate",
            "ESTABLISHED,RELATED",
            "-j",
            "ACCEPT",
        ],
    ]


def remove_namespace(name: str, subnet: str) -> None:
    """Nothing is left of the namespace, its cable and the rules of its way out; it is no error if there was nothing."""
    outer = outer_interface(name)
    for rule in _rules(outer, subnet):
        run("iptables", "-w", *rule[:2], "-D", *rule[2:], check=False)
    run("ip", "link", "delete", outer, check=False)
    run("ip", "netns", "delete", name, check=False)


def run(*command: str, check: bool = True) -> None:
    """The command ended, well if it is checked."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert not check or done.returncode == 0, f"{command}: {done.stderr}"

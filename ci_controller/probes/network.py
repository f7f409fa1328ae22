"""Neighbours in the network: addresses that are known beforehand, and those that the caller names."""

from __future__ import annotations

import socket
from pathlib import Path

from ci_controller.probes.attempt import probe, target

_SECONDS = 1.0


def _reached(address: str, port: int) -> str | None:
    with socket.create_connection((address, port), timeout=_SECONDS):
        return f"{address}:{port}"


def _reached_target(name: str) -> str | None:
    address, _, port = target(name, f"nothing listens for it: no {name} was named").rpartition(":")
    return _reached(address, int(port))


@probe
def reach_metadata_service() -> str | None:
    """Reach the cloud's metadata service, which hands out keys."""
    return _reached("169.254.169.254", 80)


@probe
def reach_gateway() -> str | None:
    """Reach a service of the host at the gateway's address."""
    return _reached_target("gateway")


@probe
def reach_host() -> str | None:
    """Reach a service of the host at its own address."""
    return _reached_target("host")


@probe
def reach_peer() -> str | None:
    """Reach a port that another job listens at."""
    return _reached_target("peer")


@probe
def reach_host_by_name() -> str | None:
    """Reach the host by the names that engines give to it."""
    for name in ("host.docker.internal", "gateway.docker.internal", "host.containers.internal"):
        try:
            return f"{name} is {socket.gethostbyname(name)}"
        except OSError:
            continue
    return None


@probe
def reach_abstract_sockets() -> str | None:
    """Find a socket in the host's network namespace, such as containerd's (CVE-2020-15257)."""
    with Path("/proc/net/unix").open() as file:
        found = [line.split()[-1] for line in file if "containerd" in line or "docker" in line]
    return found[0] if found else None


@probe
def see_interfaces_of_host() -> str | None:
    """See interfaces beside the container's own two."""
    foreign = [name for _, name in socket.if_nameindex() if name.startswith(("docker", "br-", "veth", "ci"))]
    return ", ".join(foreign) or None

"""The fence of `network_rules` on a real host: set where it is missing, and looked at whole every time it is asked for.

Two ways to the same rules: `HostFirewall` runs the host's own iptables; `ContainerFirewall` runs those of the
runner image in a short-lived container on the host's network, for a controller that may not, or whose engine is
elsewhere. Everything here is synchronous, for worker threads.
"""

import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from ci_controller.network_rules import (
    FAMILIES,
    GUARD_NAMESPACE,
    Family,
    Fence,
    Network,
    bridges,
    connected_ipv4,
    connected_ipv6,
    flaws,
    removal,
    restoration,
)

_SECONDS: Final = 10.0  # for a command that takes milliseconds, and for others' turn at the tables
_SBIN: Final = "/usr/sbin:/sbin:/usr/local/sbin"  # where iptables is, and not every user's PATH
_PREFIX: Final[Mapping[Family, str]] = {4: "iptables", 6: "ip6tables"}
_SEEN_FOR_SECONDS: Final = 10.0  # a look through a container takes half a second: not in every pass
_ROUTES: Final = ("/proc/net/route", "/proc/net/ipv6_route")
_CAP_NET_ADMIN: Final = 12
_CAP_SYS_ADMIN: Final = 21  # to enter a container's network


class FirewallError(Exception):
    """The packet filter cannot be read or changed; the message says why."""


class Firewall(Protocol):
    """A way to the host's packet filter and into the containers' networks; every call raises FirewallError."""

    @property
    def seen_for(self) -> float:
        """Seconds for which what was seen may be believed, because looking is dear; 0: look every time."""
        ...

    def look(self) -> "View":
        """Return what stands now."""
        ...

    def restore(self, scripts: Mapping[Family, str]) -> None:
        """The scripts of `network_rules` have taken effect, each in one transaction."""
        ...

    def close_embedded_dns(self, container_id: str, process: int) -> None:
        """In the network of that running container Docker's own name server is out of reach."""
        ...


@dataclass(frozen=True, slots=True)
class View:
    """What a look at the engine's host shows."""

    saved: Mapping[Family, str]  # what `iptables-save` says of each family that the host has
    connected: tuple[Network, ...] = ()  # the subnets it has a foot in


# -- with the host's own commands ---------------------------------------------------------------------------


class HostFirewall:
    """iptables as they are on this host, which must be the engine's."""

    seen_for = 0.0

    def look(self) -> View:
        saved: dict[Family, str] = {
            family: _run([f"{_PREFIX[family]}-save", "-t", "filter"]) for family in _families()
        }
        return View(saved, _connected(*(_text(path) for path in _ROUTES)))

    def restore(self, scripts: Mapping[Family, str]) -> None:
        for family, script in scripts.items():
            _run([f"{_PREFIX[family]}-restore", "--noflush", "-w", "5"], script)

    def close_embedded_dns(self, container_id: str, process: int) -> None:  # noqa: ARG002 - the other way needs it
        namespace = f"/proc/{process}/ns/net"
        try:
            inside = os.open(namespace, os.O_RDONLY)
        except OSError as error:
            raise FirewallError(f"{namespace}: {error.strerror}") from error
        try:
            self._close_in(inside)
        finally:
            os.close(inside)

    def _close_in(self, namespace: int) -> None:
        # The process may be gone and its number another's: never a rule in our own network.
        if os.fstat(namespace).st_ino == os.stat("/proc/self/ns/net").st_ino:  # noqa: PTH116 - beside an fstat
            raise FirewallError("the container has no network of its own")
        command = ["nsenter", f"--net=/proc/self/fd/{namespace}", "iptables", "-w", "5", *GUARD_NAMESPACE]
        _run(command, pass_fds=(namespace,))


def _connected(ipv4: str, ipv6: str) -> tuple[Network, ...]:
    return (*connected_ipv4(ipv4), *connected_ipv6(ipv6))


def _text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="ascii")
    except FileNotFoundError:  # a kernel without IPv6
        return ""


def _families() -> tuple[Family, ...]:
    has_ipv6 = Path("/proc/net/if_inet6").exists() and _found("ip6tables-save")
    return FAMILIES if has_ipv6 else (4,)


def _found(command: str) -> str | None:
    return shutil.which(command, path=f"{os.environ.get('PATH', '')}:{_SBIN}")


def _run(command: Sequence[str], text: str = "", pass_fds: Sequence[int] = ()) -> str:
    environment = {**os.environ, "PATH": f"{os.environ.get('PATH', '')}:{_SBIN}", "LC_ALL": "C"}
    try:
        done = subprocess.run(
            list(command),
            input=text,
            capture_output=True,
            text=True,
            check=False,
            timeout=_SECONDS,
            env=environment,
            pass_fds=pass_fds,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise FirewallError(f"{command[0]}: {error}") from error
    if done.returncode:
        raise FirewallError(f"{command[0]}: {done.stderr.strip() or f'exit code {done.returncode}'}")
    return done.stdout


def host_firewall_works(docker_host: str | None) -> bool:
    """Tell whether this process may change the packet filter, and the engine uses the same one."""
    may = _has_capabilities(Path("/proc/self/status").read_text(encoding="ascii"))
    return (
        may and all(map(_found, ("iptables-save", "iptables-restore", "nsenter"))) and _is_here(docker_host)
    )


def _has_capabilities(status: str) -> bool:
    effective = next(int(line.split()[1], 16) for line in status.splitlines() if line.startswith("CapEff:"))
    return all(effective >> capability & 1 for capability in (_CAP_NET_ADMIN, _CAP_SYS_ADMIN))


def _is_here(docker_host: str | None) -> bool:
    """Tell whether the engine lives in our network: what listens at its socket does."""
    address = docker_host or "unix:///var/run/docker.sock"
    if not address.startswith("unix://"):
        return False
    try:
        with socket.socket(socket.AF_UNIX) as engine:
            engine.settimeout(_SECONDS)
            engine.connect(address.removeprefix("unix://"))
            peer = engine.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    except OSError:
        return True  # it does not answer: whoever asks it for something says so
    return _shares_our_network(int.from_bytes(peer[:4], sys.byteorder))


def _shares_our_network(process: int) -> bool:
    """Tell whether a process is on our network; one that we cannot see (0: we are in a container) is not."""
    try:
        return Path(f"/proc/{process}/ns/net").readlink() == Path("/proc/self/ns/net").readlink()
    except OSError:
        return False


# -- through a container ------------------------------------------------------------------------------------

RunInContainer = Callable[[str, Sequence[str]], str]  # the network it shares, the command; returns its output

_NEXT: Final = "# next\n"
_LOOK: Final = (
    "iptables-save -t filter && echo '# next' && cat /proc/net/route && echo '# next' && "
    "if [ -e /proc/net/if_inet6 ]; then ip6tables-save -t filter && echo '# next' && cat /proc/net/ipv6_route; fi"
)
_RESTORE: Final = (
    'printf %s "$1" | iptables-restore --noflush -w 5 && '
    'if [ -n "$2" ]; then printf %s "$2" | ip6tables-restore --noflush -w 5; fi'
)


class ContainerFirewall:
    """The same rules, set from containers that `run` makes: on the host's network, or on a job's."""

    seen_for = _SEEN_FOR_SECONDS

    def __init__(self, run: RunInContainer) -> None:
        self._run = run

    def look(self) -> View:
        ipv4, routes4, *ipv6 = self._run("host", ["sh", "-c", _LOOK]).split(_NEXT)
        if len(ipv6) < 2:
            return View({4: ipv4}, _connected(routes4, ""))
        return View({4: ipv4, 6: ipv6[0]}, _connected(routes4, ipv6[1]))

    def restore(self, scripts: Mapping[Family, str]) -> None:
        self._run("host", ["sh", "-c", _RESTORE, "sh", scripts.get(4, ""), scripts.get(6, "")])

    def close_embedded_dns(self, container_id: str, process: int) -> None:  # noqa: ARG002
        self._run(f"container:{container_id}", ["iptables", "-w", "5", *GUARD_NAMESPACE])


# -- the guard ----------------------------------------------------------------------------------------------


class NetworkGuard:
    """Sees to the fence of one bridge; `fence` tells what it is to be now, on a host with such subnets."""

    def __init__(self, firewall: Firewall, fence: Callable[[tuple[Network, ...]], Fence]) -> None:
        self._firewall = firewall
        self._fence = fence
        self._alone = threading.Lock()  # a script is made for the rules that were seen
        self._whole: tuple[View, Fence, float] | None = None  # when it was last seen so
        self.families: tuple[Family, ...] = ()  # that were looked at

    def inspect(self) -> tuple[str, ...]:
        """Return nothing when the fence stands whole, else what was wrong with it before it was set again.

        What was set has to be inspected once more before anybody relies on it. Raises FirewallError.
        """
        with self._alone:
            return () if self._was_seen_lately() else self._inspect()

    def _inspect(self) -> tuple[str, ...]:
        self._whole = None
        view = self._firewall.look()
        fence, saved = self._fence(view.connected), view.saved
        self.families = tuple(saved)
        broken: dict[Family, list[str]] = {
            family: found for family, text in saved.items() if (found := flaws(fence, family, text))
        }
        if not broken:
            self._whole = (view, fence, time.monotonic())
            return ()
        self._firewall.restore({family: restoration(fence, family, saved[family]) for family in broken})
        return tuple(flaw for found in broken.values() for flaw in found)

    def _was_seen_lately(self) -> bool:
        if self._whole is None:
            return False
        view, fence, at = self._whole
        return time.monotonic() - at < self._firewall.seen_for and self._fence(view.connected) == fence

    def close_embedded_dns(self, container_id: str, process: int) -> None:
        """In the network of that running container Docker's own name server is out of reach; raises FirewallError."""
        self._firewall.close_embedded_dns(container_id, process)


def remove_fences(firewall: Firewall, keep: Callable[[str], bool]) -> list[str]:
    """No bridge but those to keep has rules of ours; returns the others; raises FirewallError."""
    saved = firewall.look().saved
    gone = sorted({one for text in saved.values() for one in bridges(text) if not keep(one)})
    for bridge in gone:
        scripts: dict[Family, str] = {
            family: script for family, text in saved.items() if (script := removal(bridge, text))
        }
        firewall.restore(scripts)
    return gone

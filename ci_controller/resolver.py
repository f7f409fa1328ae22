"""The name servers that jobs ask, given to them by file: never Docker's own, which tells of other containers.

They are the host's real ones. A stub on a loopback address (systemd-resolved) cannot be reached from a container,
and its own list of upstream servers is read instead.
"""

import os
import threading
from collections.abc import Iterable, Sequence
from ipaddress import IPv4Address, ip_address
from pathlib import Path
from typing import Final

RESOLV_CONF: Final = Path("/etc/resolv.conf")
STUBS_OWN: Final = Path("/run/systemd/resolve/resolv.conf")
_MOST: Final = 3  # the C library reads no more


def name_servers(
    configured: Sequence[IPv4Address] = (), sources: Iterable[Path] | None = None
) -> tuple[IPv4Address, ...]:
    """Return the servers jobs may ask: the configured ones, else the first source's that has usable ones."""
    if configured:
        return tuple(configured)[:_MOST]
    for source in (RESOLV_CONF, STUBS_OWN) if sources is None else sources:
        if found := usable(_text(source)):
            return found
    return ()


def usable(text: str) -> tuple[IPv4Address, ...]:
    """Return the servers that a resolv.conf names and a job can reach: of IPv4, and not on a loopback address."""
    found: list[IPv4Address] = []
    for line in text.splitlines():
        match line.split():
            case ["nameserver", address, *_] if (server := _reachable(address)) and server not in found:
                found.append(server)
            case _:
                pass
    return tuple(found[:_MOST])


def resolv_conf(servers: Iterable[IPv4Address]) -> str:
    """Return the text of a job's /etc/resolv.conf."""
    return "".join(f"nameserver {server}\n" for server in servers)


def write_resolv_conf(path: Path, servers: Sequence[IPv4Address]) -> None:
    """The file has that text and everybody may read it; a container that has the old one keeps it whole."""
    text = resolv_conf(servers)
    if _text(path) == text:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(
        f"{path.name}.{os.getpid()}-{threading.get_ident()}"
    )  # several may find it missing at once
    new.write_text(text, encoding="ascii")
    new.chmod(0o644)
    new.replace(path)


def _reachable(address: str) -> IPv4Address | None:
    try:
        server = ip_address(address)
    except ValueError:  # with a zone, or no address at all
        return None
    return server if isinstance(server, IPv4Address) and not server.is_loopback else None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""

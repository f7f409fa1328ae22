"""The fence around the jobs' bridge as packet filter rules: what is wanted, what of it stands, how to set it. Pure.

Every bridge has two chains of its own, in IPv4 and in IPv6: one for what goes to the host itself, one for what
goes through it. The rules are written exactly as `iptables-save` prints them, so that "does it stand" is a
comparison of lines.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Network, ip_address, ip_network
from typing import Final, Literal

Family = Literal[4, 6]
Network = IPv4Network | IPv6Network
Table = dict[str, list[str]]  # chain -> its rules, in order

FAMILIES: Final[tuple[Family, ...]] = (4, 6)
DOCKER_USER: Final = "DOCKER-USER"  # what Docker runs before its own rules and never changes
# Private, shared, link-local (and the clouds' metadata), multicast, reserved, this host.
BLOCKED: Final[dict[Family, tuple[str, ...]]] = {
    4: (
        "10.0.0.0/8",
        "172.16.0.0/12",
        "192.168.0.0/16",
        "100.64.0.0/10",
        "169.254.0.0/16",
        "224.0.0.0/4",
        "240.0.0.0/4",
        "0.0.0.0/8",
        "127.0.0.0/8",
        "192.0.0.0/24",  # protocol assignments; an older cloud's metadata
        "168.63.129.16/32",  # Azure's wire server, which hands out a machine's secrets
    ),
    6: ("fc00::/7", "fe80::/10", "ff00::/8"),
}
EMBEDDED_DNS: Final = "127.0.0.11"  # Docker's own, which tells the names of other containers
GUARD_NAMESPACE: Final = ("-I", "OUTPUT", "1", "-d", EMBEDDED_DNS, "-j", "REJECT")  # inside a container's

# "Prohibited" and not "port unreachable": whoever is refused here is not told that nobody listens there.
_REFUSE: Final[dict[Family, str]] = {
    4: "-j REJECT --reject-with icmp-admin-prohibited",
    6: "-j REJECT --reject-with icmp6-adm-prohibited",
}
# As 10.0.0.0/8 and fd00::/8, the widest private ranges in use. A wider one is most of the Internet, with the private
# networks, this host and the clouds' metadata in it: 0.0.0.0/1 and 128.0.0.0/1 together are no fence at all.
_WIDEST_ALLOWED: Final = 8
_WIDEST_SUBNET: Final = 2  # a shorter prefix on a link is a default route in disguise (a VPN's 0/1 and 128/1)


@dataclass(frozen=True, slots=True)
class Destination:
    """Where jobs may connect although it lies in a blocked range; without a port: all of it."""

    network: Network
    port: int | None = None

    @classmethod
    def parse(cls, text: str) -> "Destination":
        """Return `10.1.2.3`, `10.1.0.0/16`, `10.1.2.3:443` or `[fd00::1]:443` as a value; raises ValueError."""
        if not text.isascii():  # digits of other scripts are numbers to Python, and look like something else
            raise ValueError(f"{text!r} has characters that are not ASCII")
        address, port = _split_port(text.strip())
        if port is not None and not (port.isdecimal() and 0 < int(port) < 2**16):
            raise ValueError(f"{text!r} has no proper port")
        if "%" in address:
            raise ValueError(f"{text!r} names a link of this host; a rule knows addresses only")
        network = ip_network(address)
        if network.prefixlen < _WIDEST_ALLOWED:
            raise ValueError(
                f"{text!r} is too wide: /{_WIDEST_ALLOWED} is the widest range that may be allowed,"
                " name the networks that jobs need one by one"
            )
        return cls(network, int(port) if port else None)


@dataclass(frozen=True, slots=True)
class Fence:
    """What decides the rules of one bridge."""

    bridge: str
    resolvers: tuple[IPv4Address, ...] = ()
    allowed: tuple[Destination, ...] = ()
    connected: tuple[Network, ...] = ()  # subnets this host has a foot in


def chain_to_host(bridge: str) -> str:
    """Return the name of the chain for packets from the bridge to the host itself."""
    return f"CI-IN-{bridge}"


def chain_through(bridge: str) -> str:
    """Return the name of the chain for packets from the bridge to somewhere else."""
    return f"CI-FWD-{bridge}"


def wanted(fence: Fence, family: Family) -> Table:
    """Return our two chains: the resolver first, then what is allowed, then what is not."""
    to_host, through = chain_to_host(fence.bridge), chain_through(fence.bridge)
    first = [*_resolving(fence, family), *_allowing(fence, family)]
    refused = [f"-d {network} {_REFUSE[family]}" for network in _blocked(fence, family)]
    other_jobs = f"-o {fence.bridge} {_REFUSE[family]}"
    return {
        to_host: [f"-A {to_host} {rule}" for rule in (*first, _REFUSE[family])],
        through: [f"-A {through} {rule}" for rule in (other_jobs, *first, *refused, "-j RETURN")],
    }


def parse(saved: str) -> Table:
    """Return the chains of the `filter` table in what `iptables-save` printed."""
    table: Table = {}
    for line in saved.splitlines():
        if line.startswith(":"):
            table[line[1:].split()[0]] = []
        elif line.startswith("-A "):
            table.setdefault(line.split()[1], []).append(line)
    return table


def flaws(fence: Fence, family: Family, saved: str) -> list[str]:
    """Return what is wrong with the rules that stand, in words; empty when the fence is whole."""
    table = parse(saved)
    found = [
        f"IPv{family}: the chain {chain} is not as it should be"
        for chain, rules in wanted(fence, family).items()
        if table.get(chain) != rules
    ]
    found += [
        f"IPv{family}: {rule.split()[1]} does not lead to our rules first"
        for rule in _jumps(fence.bridge, table)
        if not _comes_first(rule, table, fence.bridge)
    ]
    return found


def restoration(fence: Fence, family: Family, saved: str) -> str:
    """Return what `iptables-restore --noflush` makes of what stands the whole fence, in one transaction."""
    table, chains = parse(saved), wanted(fence, family)
    lines = [f":{chain} - [0:0]" for chain in chains]  # makes it, or empties it
    lines += [rule for rules in chains.values() for rule in rules]
    lines += _without_jumps(fence.bridge, table)
    for rule in _jumps(fence.bridge, table):
        if rule == _TO_DOCKER_USER:
            if _comes_first(rule, table, fence.bridge):
                continue
            lines += [_deleted(rule) for known in table.get("FORWARD", ()) if known == rule]
        _, chain, match = rule.split(" ", 2)
        lines.append(f"-I {chain} 1 {match}")
    return _transaction(lines)


def removal(bridge: str, saved: str) -> str | None:
    """Return what takes the bridge's chains and the ways to them away, None when there are none."""
    table = parse(saved)
    lines = [*_without_jumps(bridge, table)]
    ours = [chain for chain in (chain_to_host(bridge), chain_through(bridge)) if chain in table]
    lines += [f"-F {chain}" for chain in ours] + [f"-X {chain}" for chain in ours]
    return _transaction(lines) if lines else None


def bridges(saved: str) -> list[str]:
    """Return the bridges that have chains of ours, in order."""
    prefixes = (chain_to_host(""), chain_through(""))
    found = {
        chain.removeprefix(prefix)
        for chain in parse(saved)
        for prefix in prefixes
        if chain.startswith(prefix)
    }
    return sorted(found)


# -- parts -------------------------------------------------------------------------------------------------

_TO_DOCKER_USER: Final = f"-A FORWARD -j {DOCKER_USER}"


def _split_port(text: str) -> tuple[str, str | None]:
    """Return address and port as they stand, the port None where none is named; raises ValueError."""
    if text.startswith("["):
        address, _, rest = text[1:].partition("]")
        if rest[:1] not in {"", ":"}:
            raise ValueError(f"{text!r} has no proper port")
        return address, rest[1:] if rest else None
    if text.count(":") == 1:
        address, port = text.split(":")
        return address, port
    return text, None


def _resolving(fence: Fence, family: Family) -> Iterator[str]:
    for resolver in fence.resolvers if family == 4 else ():
        for protocol in ("udp", "tcp"):
            yield f"-d {resolver}/32 -p {protocol} -m {protocol} --dport 53 -j ACCEPT"


def _allowing(fence: Fence, family: Family) -> Iterator[str]:
    for one in fence.allowed:
        if one.network.version != family:
            continue
        if one.port is None:
            yield f"-d {one.network} -j ACCEPT"
        else:
            for protocol in ("tcp", "udp"):
                yield f"-d {one.network} -p {protocol} -m {protocol} --dport {one.port} -j ACCEPT"


def _blocked(fence: Fence, family: Family) -> list[Network]:
    """Return the list, then the host's own subnets that it does not cover."""
    listed = [ip_network(text) for text in BLOCKED[family]]
    own = sorted({one for one in fence.connected if one.version == family}, key=str)
    return [*listed, *(one for one in own if not _covered(one, listed))]


def _covered(network: Network, by: Sequence[Network]) -> bool:
    if isinstance(network, IPv4Network):
        return any(isinstance(one, IPv4Network) and network.subnet_of(one) for one in by)
    return any(isinstance(one, IPv6Network) and network.subnet_of(one) for one in by)


def _jumps(bridge: str, table: Table) -> list[str]:
    """Return the rules that must come first in their chains for ours to be asked at all.

    Where Docker's chain for users' rules is missing (IPv6 on many hosts) the way leads there directly.
    """
    to_host = f"-A INPUT -i {bridge} -j {chain_to_host(bridge)}"
    if DOCKER_USER not in table:
        return [to_host, f"-A FORWARD -i {bridge} -j {chain_through(bridge)}"]
    return [to_host, f"-A {DOCKER_USER} -i {bridge} -j {chain_through(bridge)}", _TO_DOCKER_USER]


def _comes_first(rule: str, table: Table, bridge: str) -> bool:
    """Tell whether no packet of the bridge is judged by its chain before it comes to the rule."""
    for known in table.get(rule.split()[1], ()):
        if known == rule:
            return True
        if not _harmless(known, bridge):
            return False
    return False


def _harmless(rule: str, bridge: str) -> bool:
    """Tell whether a rule lets no packet of the bridge past: another interface's, or one that refuses."""
    words = rule.split()
    if "-i" in words:
        at = words.index("-i")
        if words[at - 1] != "!" and not words[at + 1].endswith("+") and words[at + 1] != bridge:
            return True
    return words[words.index("-j") + 1] in {"DROP", "REJECT"} if "-j" in words else "-g" not in words


def _without_jumps(bridge: str, table: Table) -> list[str]:
    """Return the deletions of every way to our chains, wherever it is."""
    ours = {f"-j {chain_to_host(bridge)}", f"-j {chain_through(bridge)}"}
    return [_deleted(rule) for rules in table.values() for rule in rules if rule[rule.find("-j ") :] in ours]


def _deleted(rule: str) -> str:
    return f"-D{rule.removeprefix('-A')}"


def _transaction(lines: Iterable[str]) -> str:
    return "\n".join(("*filter", *lines, "COMMIT", ""))


# -- the host's subnets, as the kernel lists them -----------------------------------------------------------


def connected_ipv4(routes: str) -> list[IPv4Network]:
    """Return the subnets on a link of this host, from the text of /proc/net/route."""
    found: list[IPv4Network] = []
    for line in routes.splitlines()[1:]:
        _, destination, gateway, _, _, _, _, mask, *_ = line.split()
        prefix = int(mask, 16).bit_count()
        if int(gateway, 16) == 0 and prefix >= _WIDEST_SUBNET:
            address = ip_address(int.from_bytes(bytes.fromhex(destination), "little"))
            found.append(IPv4Network((str(address), prefix)))
    return found


def connected_ipv6(routes: str) -> list[IPv6Network]:
    """Return the same from the text of /proc/net/ipv6_route."""
    found: list[IPv6Network] = []
    for line in routes.splitlines():
        destination, length, _, _, gateway, *_, device = line.split()
        if int(gateway, 16) == 0 and int(length, 16) >= _WIDEST_SUBNET and device != "lo":
            found.append(IPv6Network((int(destination, 16), int(length, 16))))
    return found

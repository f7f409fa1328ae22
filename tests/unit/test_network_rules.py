"""The fence around the jobs' bridge: what is wanted, what counts as whole, and what is sent to the kernel."""

from collections.abc import Mapping
from dataclasses import replace
from ipaddress import IPv4Address, ip_network

import pytest

from ci_controller.firewall import FirewallError, NetworkGuard, View, remove_fences
from ci_controller.job_network import bridge_for
from ci_controller.network_rules import (
    Destination,
    Family,
    Fence,
    bridges,
    connected_ipv4,
    connected_ipv6,
    flaws,
    parse,
    removal,
    restoration,
    wanted,
)

FENCE = Fence("ci-jobs", (IPv4Address("10.255.255.53"),))
DOCKERS = """\
*filter
:INPUT ACCEPT [0:0]
:FORWARD DROP [0:0]
:OUTPUT ACCEPT [0:0]
:DOCKER-USER - [0:0]
-A FORWARD -j DOCKER-USER
-A FORWARD -i ci-jobs ! -o ci-jobs -j ACCEPT
-A DOCKER-USER -j RETURN
COMMIT
"""
BARE = "*filter\n:INPUT ACCEPT [0:0]\n:FORWARD ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\nCOMMIT\n"
REFUSE = "-j REJECT --reject-with icmp-admin-prohibited"


def applied(saved: str, script: str) -> str:
    """Return what `iptables-save` would print after `iptables-restore --noflush`; fails where that would."""
    table = parse(saved)
    for line in script.splitlines():
        if line.startswith(":"):
            table[line[1:].split()[0]] = []
            continue
        action, *rest = line.split(" ", 2)
        match action:
            case "-A":
                table[rest[0]].append(line)
            case "-D":
                table[rest[0]].remove(f"-A {rest[0]} {rest[1]}")
            case "-I":
                table[rest[0]].insert(0, f"-A {rest[0]} {rest[1].removeprefix('1 ')}")
            case "-F":
                table[rest[0]].clear()
            case "-X":
                assert not table.pop(rest[0])
            case _:
                assert line in {"*filter", "COMMIT"}
    chains = [f":{chain} - [0:0]" for chain in table]
    return "\n".join([*chains, *(rule for rules in table.values() for rule in rules)])


def fenced(saved: str = DOCKERS, family: Family = 4, fence: Fence = FENCE) -> str:
    return applied(saved, restoration(fence, family, saved))


# -- what is wanted ----------------------------------------------------------------------------------------


def test_the_whole_fence_of_ipv4_is_this() -> None:
    fence = replace(
        FENCE,
        allowed=(Destination.parse("10.1.2.3:443"), Destination.parse("fd00::1")),
        connected=(ip_network("192.0.2.0/24"), ip_network("172.18.0.0/16"), ip_network("fd00::/64")),
    )
    resolving = [
        "-d 10.255.255.53/32 -p udp -m udp --dport 53 -j ACCEPT",
        "-d 10.255.255.53/32 -p tcp -m tcp --dport 53 -j ACCEPT",
        "-d 10.1.2.3/32 -p tcp -m tcp --dport 443 -j ACCEPT",
        "-d 10.1.2.3/32 -p udp -m udp --dport 443 -j ACCEPT",
    ]
    blocked = (
        "10.0.0.0/8 172.16.0.0/12 192.168.0.0/16 100.64.0.0/10 169.254.0.0/16 224.0.0.0/4 240.0.0.0/4 "
        "0.0.0.0/8 127.0.0.0/8 192.0.0.0/24 168.63.129.16/32 192.0.2.0/24"
    )
    through = [
        f"-o ci-jobs {REFUSE}",
        *resolving,
        *(f"-d {network} {REFUSE}" for network in blocked.split()),
        "-j RETURN",
    ]
    assert wanted(fence, 4) == {
        "CI-IN-ci-jobs": [f"-A CI-IN-ci-jobs {rule}" for rule in (*resolving, REFUSE)],
        "CI-FWD-ci-jobs": [f"-A CI-FWD-ci-jobs {rule}" for rule in through],
    }


def test_the_whole_fence_of_ipv6_is_this() -> None:
    fence = replace(
        FENCE, allowed=(Destination.parse("[fd00::1]:443"),), connected=(ip_network("2001:db8::/64"),)
    )
    refuse = "-j REJECT --reject-with icmp6-adm-prohibited"
    allowed = [f"-d fd00::1/128 -p {p} -m {p} --dport 443 -j ACCEPT" for p in ("tcp", "udp")]
    blocked = [f"-d {network} {refuse}" for network in ("fc00::/7", "fe80::/10", "ff00::/8", "2001:db8::/64")]
    assert wanted(fence, 6) == {
        "CI-IN-ci-jobs": [f"-A CI-IN-ci-jobs {rule}" for rule in (*allowed, refuse)],
        "CI-FWD-ci-jobs": [
            f"-A CI-FWD-ci-jobs {rule}" for rule in (f"-o ci-jobs {refuse}", *allowed, *blocked, "-j RETURN")
        ],
    }


def test_chain_names_fit_the_kernels_limit_for_the_longest_bridge() -> None:
    assert all(len(chain) <= 28 for chain in wanted(replace(FENCE, bridge="x" * 15), 4))


@pytest.mark.parametrize(
    ("text", "network", "port"),
    [
        ("10.1.2.3", "10.1.2.3/32", None),
        (" 10.1.0.0/16 ", "10.1.0.0/16", None),
        ("10.1.0.0/16:8080", "10.1.0.0/16", 8080),
        ("fd00::/64", "fd00::/64", None),
        ("[fd00::1]:443", "fd00::1/128", 443),
        ("[fd00::1]", "fd00::1/128", None),
    ],
)
def test_a_destination_is_read(text: str, network: str, port: int | None) -> None:
    assert Destination.parse(text) == Destination(ip_network(network), port)


@pytest.mark.parametrize("text", ["10.0.0.0/8", "fd00::/8", "2001:db8::/32"])
def test_the_widest_private_ranges_may_be_allowed(text: str) -> None:
    assert str(Destination.parse(text).network) == text


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "IPv4 or IPv6"),
        ("pypi.org", "IPv4 or IPv6"),
        ("10.1.2.3/8", "host bits"),
        ("10.1.2.3:0", "port"),
        ("10.1.2.3:x", "port"),
        ("10.1.2.3:", "port"),
        ("10.1.2.3:65536", "port"),
        ("[fd00::1]443", "port"),
        ("[fd00::1]:", "port"),
        ("0.0.0.0/0", "too wide"),
        ("::/0", "too wide"),
        ("0.0.0.0/1", "too wide: /8 is the widest"),
        ("128.0.0.0/1:443", "too wide"),
        ("160.0.0.0/7", "host bits|too wide"),
        ("8000::/1", "too wide"),
        ("fc00::/7", "too wide"),
        ("10.1.2.3:\N{ARABIC-INDIC DIGIT FOUR}43", "not ASCII"),
        ("\N{FULLWIDTH DIGIT ONE}0.1.2.3", "not ASCII"),
        ("10.1.2.3\N{NO-BREAK SPACE}", "not ASCII"),
        ("fe80::1%eth0", "link"),
    ],
)
def test_what_is_no_destination_is_refused_and_says_why(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        Destination.parse(text)


def test_controllers_with_other_settings_have_another_bridge() -> None:
    names = {
        bridge_for((), ()),
        bridge_for((IPv4Address("10.0.0.53"),), ()),
        bridge_for((), (Destination.parse("10.0.0.53"),)),
    }
    assert len(names) == 3
    assert bridge_for((), ()) == "ci-jobs"
    assert all(len(name) <= 15 for name in names)


# -- what counts as whole ----------------------------------------------------------------------------------


@pytest.mark.parametrize("saved", [DOCKERS, BARE])
@pytest.mark.parametrize("family", [4, 6])
def test_what_was_restored_is_whole_and_nothing_else_changed(saved: str, family: Family) -> None:
    assert flaws(FENCE, family, saved)
    after = fenced(saved, family)
    assert flaws(FENCE, family, after) == []
    assert fenced(after, family) == after
    kept = [rule for rules in parse(after).values() for rule in rules if "CI-" not in rule]
    assert kept == [rule for rules in parse(saved).values() for rule in rules]


def test_our_jumps_come_first() -> None:
    table = parse(fenced())
    assert table["INPUT"][0] == "-A INPUT -i ci-jobs -j CI-IN-ci-jobs"
    assert table["DOCKER-USER"][0] == "-A DOCKER-USER -i ci-jobs -j CI-FWD-ci-jobs"


def test_without_dockers_chain_the_way_is_direct() -> None:
    assert parse(fenced(BARE, 6))["FORWARD"][0] == "-A FORWARD -i ci-jobs -j CI-FWD-ci-jobs"


def test_when_docker_makes_its_chain_later_the_way_leads_through_it() -> None:
    direct = fenced(BARE)
    later = f"{direct}\n:DOCKER-USER - [0:0]\n-A DOCKER-USER -j RETURN"
    assert flaws(FENCE, 4, later)
    table = parse(fenced(later))
    assert table["FORWARD"] == ["-A FORWARD -j DOCKER-USER"]
    assert flaws(FENCE, 4, fenced(later)) == []


@pytest.mark.parametrize("rule", wanted(FENCE, 4)["CI-FWD-ci-jobs"] + wanted(FENCE, 4)["CI-IN-ci-jobs"])
def test_any_rule_that_is_missing_is_a_flaw(rule: str) -> None:
    broken = fenced().replace(rule + "\n", "", 1)
    assert broken != fenced() or fenced().endswith(rule)
    if broken != fenced():
        assert flaws(FENCE, 4, broken)


@pytest.mark.parametrize(
    "rule",
    [
        "-A INPUT -i ci-jobs -j CI-IN-ci-jobs",
        "-A DOCKER-USER -i ci-jobs -j CI-FWD-ci-jobs",
        "-A FORWARD -j DOCKER-USER",
    ],
)
def test_any_jump_that_is_missing_is_a_flaw_and_is_set_again(rule: str) -> None:
    broken = fenced().replace(rule, "", 1)
    assert len(flaws(FENCE, 4, broken)) == 1
    assert flaws(FENCE, 4, fenced(broken)) == []


@pytest.mark.parametrize("chain", ["INPUT", "FORWARD", "DOCKER-USER"])
@pytest.mark.parametrize(
    "match",
    ["-j ACCEPT", "-j RETURN", "-j ufw-before", "-o eth1 -j ACCEPT", "-g elsewhere", "-i ci-jobs -j ACCEPT",
     "-i ci+ -j ACCEPT", "! -i eth0 -j ACCEPT", "-s 172.18.0.0/16 -j ACCEPT"],
)  # fmt: skip
def test_whatever_may_let_a_packet_past_before_our_rules_is_a_flaw(chain: str, match: str) -> None:
    broken = applied(fenced(), f"-I {chain} 1 {match}")
    assert len(flaws(FENCE, 4, broken)) == 1
    repaired = fenced(broken)
    assert flaws(FENCE, 4, repaired) == []
    assert f"-A {chain} {match}" in repaired  # it stays, behind ours


@pytest.mark.parametrize(
    "match", ["-i eth0 -j ACCEPT", "-s 10.0.0.0/8 -j DROP", "-j REJECT", "-i br0 -g x", "-m comment"]
)
def test_what_cannot_let_a_packet_of_ours_past_may_come_first(match: str) -> None:
    assert flaws(FENCE, 4, applied(fenced(), f"-I INPUT 1 {match}")) == []


def test_another_bridges_fence_is_not_in_the_way() -> None:
    other = replace(FENCE, bridge="ci-t1")
    both = fenced(fenced(), fence=other)
    assert flaws(FENCE, 4, both) == flaws(other, 4, both) == []
    assert bridges(both) == ["ci-jobs", "ci-t1"]


def test_rules_in_another_order_are_a_flaw() -> None:
    lines = fenced().splitlines()
    first = next(index for index, line in enumerate(lines) if line.startswith("-A CI-FWD"))
    lines[first], lines[first + 1] = lines[first + 1], lines[first]
    assert flaws(FENCE, 4, "\n".join(lines))


def test_a_resolver_that_changed_is_a_flaw() -> None:
    assert flaws(replace(FENCE, resolvers=(IPv4Address("10.0.0.1"),)), 4, fenced())


# -- removal -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("saved", [DOCKERS, BARE])
def test_removal_leaves_what_was_there_before(saved: str) -> None:
    script = removal("ci-jobs", fenced(saved))
    assert script is not None
    assert parse(applied(fenced(saved), script)) == parse(saved)


def test_removal_takes_jumps_that_were_set_twice() -> None:
    twice = applied(fenced(), "-I INPUT 1 -i ci-jobs -j CI-IN-ci-jobs")
    script = removal("ci-jobs", twice)
    assert script is not None
    assert "CI-" not in applied(twice, script)


def test_there_is_nothing_to_remove_where_nothing_is() -> None:
    assert removal("ci-jobs", DOCKERS) is None


# -- the guard ---------------------------------------------------------------------------------------------


class Tables:
    """A packet filter in memory that applies the scripts."""

    def __init__(self, seen_for: float = 0) -> None:
        self.seen_for = seen_for
        self.looks = 0
        self.text: dict[Family, str] = {4: DOCKERS, 6: BARE}

    def look(self) -> View:
        self.looks += 1
        return View(dict(self.text))

    def restore(self, scripts: Mapping[Family, str]) -> None:
        for family, script in scripts.items():
            self.text[family] = applied(self.text[family], script)

    def close_embedded_dns(self, container_id: str, process: int) -> None:
        raise FirewallError(f"{container_id}: {process}")


def test_the_guard_sets_what_is_missing_and_then_finds_it() -> None:
    guard = NetworkGuard(Tables(), lambda _: FENCE)
    assert len(guard.inspect()) > 5
    assert guard.inspect() == ()


def test_the_guard_sees_a_reload_in_the_next_look() -> None:
    tables = Tables()
    guard = NetworkGuard(tables, lambda _: FENCE)
    guard.inspect()
    tables.text[4] = DOCKERS
    assert all(flaw.startswith("IPv4") for flaw in guard.inspect())
    assert guard.inspect() == ()


def test_a_dear_look_is_believed_for_a_while_unless_something_else_is_wanted() -> None:
    tables, fences = Tables(seen_for=1e9), [FENCE]
    guard = NetworkGuard(tables, lambda _: fences[-1])
    for _ in range(5):
        guard.inspect()
    assert tables.looks == 2
    fences.append(replace(FENCE, resolvers=()))
    assert guard.inspect() != ()


def test_removing_keeps_the_fences_of_networks_in_use() -> None:
    tables = Tables()
    for bridge in ("ci-a", "ci-b"):
        NetworkGuard(tables, lambda _, bridge=bridge: replace(FENCE, bridge=bridge)).inspect()
    assert remove_fences(tables, lambda bridge: bridge == "ci-a") == ["ci-b"]
    assert [bridges(text) for text in tables.text.values()] == [["ci-a"], ["ci-a"]]


# -- the host's subnets ------------------------------------------------------------------------------------


def test_connected_subnets_are_read_from_the_kernels_routes() -> None:
    routes = """\
Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT
eth0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\t0\t0\t0
tun0\t00000000\t00000000\t0001\t0\t0\t0\t00000080\t0\t0\t0
docker0\t000011AC\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0
eth0\t000200C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0
"""
    assert [str(one) for one in connected_ipv4(routes)] == ["172.17.0.0/16", "192.0.2.0/24"]


def test_connected_subnets_of_ipv6_are_read_too() -> None:
    zero = "0" * 32
    tail = "00000100 00000001 00000000 00000001"
    routes = "\n".join(
        [
            f"20010db8000000000000000000000000 40 {zero} 00 {zero} {tail}     eth0",
            f"{zero} 00 {zero} 00 fd000000000000000000000000000001 {tail}     eth0",
            f"00000000000000000000000000000001 80 {zero} 00 {zero} {tail}       lo",
        ]
    )
    assert [str(one) for one in connected_ipv6(routes)] == ["2001:db8::/64"]

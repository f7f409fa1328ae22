"""Which name servers jobs get: the host's real ones, never one on a loopback address."""

import threading
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from ci_controller.resolver import name_servers, resolv_conf, usable, write_resolv_conf

ONE, TWO = IPv4Address("10.0.0.53"), IPv4Address("192.0.2.53")


def _file(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "servers"),
    [
        ("nameserver 10.0.0.53\nsearch lan\nnameserver 192.0.2.53\n", (ONE, TWO)),
        ("# nameserver 1.1.1.1\n; nameserver 1.1.1.1\n\tnameserver\t10.0.0.53 # mine\n", (ONE,)),
        ("nameserver 127.0.0.53\nnameserver 127.0.0.11\n", ()),
        ("nameserver fd00::53\nnameserver fe80::1%eth0\nnameserver ::1\n", ()),
        ("nameserver\nnameserver x\nnameserver 999.1.1.1\n", ()),
        ("nameserver 10.0.0.53\n" * 5, (ONE,)),
        (
            "".join(f"nameserver 10.0.0.{n}\n" for n in range(9)),
            tuple(IPv4Address(f"10.0.0.{n}") for n in range(3)),
        ),
        ("", ()),
    ],
)
def test_usable_servers_are_those_a_job_can_reach(text: str, servers: tuple[IPv4Address, ...]) -> None:
    assert usable(text) == servers


def test_the_hosts_own_servers_are_used(tmp_path: Path) -> None:
    sources = [_file(tmp_path / "a", "nameserver 10.0.0.53"), _file(tmp_path / "b", "nameserver 192.0.2.53")]
    assert name_servers((), sources) == (ONE,)


def test_behind_a_stub_its_upstream_servers_are_used(tmp_path: Path) -> None:
    sources = [_file(tmp_path / "a", "nameserver 127.0.0.53"), _file(tmp_path / "b", "nameserver 192.0.2.53")]
    assert name_servers((), sources) == (TWO,)


def test_a_source_that_is_missing_is_skipped(tmp_path: Path) -> None:
    assert name_servers((), [tmp_path / "none", _file(tmp_path / "b", "nameserver 192.0.2.53")]) == (TWO,)


def test_configured_servers_come_before_any_file(tmp_path: Path) -> None:
    assert name_servers((TWO,), [_file(tmp_path / "a", "nameserver 10.0.0.53")]) == (TWO,)


def test_with_no_usable_server_there_is_none(tmp_path: Path) -> None:
    assert name_servers((), [tmp_path / "none"]) == ()


def test_the_file_says_what_was_found_and_everybody_may_read_it(tmp_path: Path) -> None:
    path = tmp_path / "data" / "resolv.conf"
    write_resolv_conf(path, (ONE, TWO))
    assert usable(path.read_text()) == (ONE, TWO)
    assert path.stat().st_mode & 0o777 == 0o644
    assert [entry.name for entry in path.parent.iterdir()] == ["resolv.conf"]


def test_a_container_that_has_the_old_file_keeps_it_whole(tmp_path: Path) -> None:
    path = tmp_path / "resolv.conf"
    write_resolv_conf(path, (ONE,))
    with path.open() as held:
        write_resolv_conf(path, (TWO,))
        assert held.read() == resolv_conf((ONE,))
    assert path.read_text() == resolv_conf((TWO,))


def test_several_that_write_it_at_once_are_not_in_each_others_way(tmp_path: Path) -> None:
    path, begin = tmp_path / "resolv.conf", threading.Barrier(8)

    def write(number: int) -> None:
        begin.wait()
        for _ in range(20):
            write_resolv_conf(path, (ONE, TWO)[number % 2 :])

    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(write, range(8))) == [None] * 8
    assert [entry.name for entry in tmp_path.iterdir()] == ["resolv.conf"]


def test_a_file_that_is_right_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "resolv.conf"
    write_resolv_conf(path, (ONE,))
    before = path.stat().st_ino
    write_resolv_conf(path, (ONE,))
    assert path.stat().st_ino == before

"""Sockets beside those that tests use."""

from __future__ import annotations

import os
import socket
import struct

from ci_controller.probes.attempt import probe

_NETFILTER, _ROUTE, _NEW_LINK = 12, 0, 16


@probe
def open_raw_socket() -> str | None:
    """Forge packets."""
    socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP).close()
    return "opened"


@probe
def open_packet_socket() -> str | None:
    """Read and write whole frames of the network."""
    socket.socket(socket.AF_PACKET, socket.SOCK_RAW).close()
    return "opened"


@probe
def open_vsock() -> str | None:
    """Talk to the machine that this one is a guest of."""
    socket.socket(40, socket.SOCK_STREAM).close()
    return "opened"


@probe
def open_crypto_socket() -> str | None:
    """Use the kernel's cryptography (AF_ALG), a source of holes."""
    socket.socket(38, socket.SOCK_SEQPACKET).close()
    return "opened"


@probe
def open_netfilter_socket() -> str | None:
    """Talk to the kernel's firewall."""
    socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETFILTER).close()
    return "opened"


@probe
def open_bluetooth_socket() -> str | None:
    """Have the kernel load the code of a protocol nobody needs here."""
    socket.socket(31, socket.SOCK_RAW, 1).close()
    return "opened"


@probe
def change_network_interface() -> str | None:
    """Switch the loopback interface off and on, as a sign that routes could be changed."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _ROUTE) as netlink:
        body = struct.pack("BxHiII", 0, 0, 1, 1, 1)  # interface 1, IFF_UP of IFF_UP
        netlink.send(struct.pack("IHHII", 16 + len(body), _NEW_LINK, 5, 1, 0) + body)
        code = -struct.unpack_from("i", netlink.recv(4096), 16)[0]
    if code:
        raise OSError(code, os.strerror(code))
    return "changed"

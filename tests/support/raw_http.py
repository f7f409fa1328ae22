"""Clients that behave badly: raw sockets that send slowly, read nothing or leave in the middle."""

import contextlib
import socket
from urllib.parse import urlsplit


def connect(url: str, *, receive_buffer: int | None = None) -> socket.socket:
    """Return a connection to the server at that URL."""
    parts = urlsplit(url)
    assert parts.hostname is not None
    assert parts.port is not None
    connection = socket.socket()
    if receive_buffer is not None:  # before connecting: it decides the window that is offered
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    connection.settimeout(30)
    connection.connect((parts.hostname, parts.port))
    return connection


def head(method: str, path: str, **headers: str) -> bytes:
    """Return the head of a request; underscores in names stand for dashes."""
    lines = [f"{method} {path} HTTP/1.1", "Host: test"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode()


def upload_head(path: str, key: str, length: int, **headers: str) -> bytes:
    """Return the head of a submission whose body has that many bytes."""
    return head(
        "POST",
        path,
        Authorization=f"Bearer {key}",
        Content_Type="multipart/form-data; boundary=B",
        Content_Length=str(length),
        **headers,
    )


def form_of(archive: bytes) -> bytes:
    """Return the body of a submission, for `upload_head`."""
    begin = b'--B\r\nContent-Disposition: form-data; name="file"; filename="p.zip"\r\n\r\n'
    return begin + archive + b"\r\n--B--\r\n"


def rest_of(connection: socket.socket) -> bytes:
    """Return what the server still sends until it ends the connection, by whatever means."""
    received = bytearray()
    with contextlib.suppress(ConnectionError):
        while chunk := connection.recv(1 << 16):
            received += chunk
    return bytes(received)


def is_closed(connection: socket.socket) -> bool:
    """Tell whether the server has ended the connection; what it sent before is read away."""
    connection.setblocking(False)
    try:
        while connection.recv(1 << 16):
            pass
    except BlockingIOError:
        return False
    except ConnectionError:
        return True
    return True

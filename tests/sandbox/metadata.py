"""A metadata service: the machine's own where it has one, else an address of this host for as long as a test runs."""

import fcntl
import socket
import subprocess
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

ADDRESS = "169.254.169.254"
PORT = 80
_LOCK = Path(tempfile.gettempdir()) / "ci-test-metadata.lock"
_LIFETIME = "600"  # seconds: should this process be killed, the kernel takes the address away


def answers(address: str) -> bool:
    """Tell whether something takes connections there; nothing is asked of it."""
    with socket.socket() as knocking:
        knocking.settimeout(1)
        return knocking.connect_ex((address, PORT)) == 0


@contextmanager
def metadata_service(address: str = ADDRESS) -> Generator[None]:
    """Something answers at that address; a real service is used as it is, and never hidden."""
    with _LOCK.open("w") as lock:  # other test processes may want the address at the same time
        fcntl.flock(lock, fcntl.LOCK_EX)
        real = not _is_ours(address) and answers(address)
        if not real:
            _ip("replace", address, "valid_lft", _LIFETIME, "preferred_lft", _LIFETIME)
        fcntl.flock(lock, fcntl.LOCK_SH)
        if real:
            yield
            return
        try:
            with _listening(address):
                yield
        finally:
            _give_up(lock.fileno(), address)


def _give_up(lock: int, address: str) -> None:
    """The address is gone, unless another process still needs it."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return
    _ip("del", address)


@contextmanager
def _listening(address: str) -> Generator[None]:
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind((address, PORT))
        listener.listen()
        yield


def _is_ours(address: str) -> bool:
    shown = subprocess.run(
        ["ip", "-o", "address", "show", "to", address], capture_output=True, check=True
    ).stdout
    return bool(shown)


def _ip(action: str, address: str, *lifetime: str) -> None:
    subprocess.run(["ip", "address", action, f"{address}/32", "dev", "lo", *lifetime], check=True)

"""One line edited in a tree of 50 000 files: how long until the job is queued, and how much was sent for it."""

import random
import socket
import threading
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

from bench.alternate import milliseconds
from bench.place import Place, commit_all
from bench.report import Row
from tests.support.installation import Daemon, Installation

FILES = 50_000
FILE_BYTES = 10_000
PER_DIRECTORY = 100


def make_tree(root: Path, files: int, file_bytes: int) -> Path:
    """A git repository holds so many files of text, no two alike, always the same; returns its root."""
    source = random.Random(4)
    for number in range(files):
        name = root / f"package{number // PER_DIRECTORY:04}" / f"module{number % PER_DIRECTORY:02}.py"
        if number % PER_DIRECTORY == 0:
            name.parent.mkdir(parents=True)
        name.write_text(f"# {number}\nDATA = '{source.randbytes(file_bytes // 2).hex()}'\n")
    (root / "test_it.py").write_text("def test_it(): pass\n")
    (root / "requirements.txt").write_text("pytest\n")
    commit_all(root)
    return root


@dataclass
class Counter:
    """How many bytes clients have sent."""

    sent: int = 0


@contextmanager
def counting(url: str) -> Generator[tuple[str, Counter]]:
    """Yield an address that leads to the server at that URL, and counts what is sent there."""
    parts, counter = urlsplit(url), Counter()
    listener = socket.create_server(("127.0.0.1", 0))
    threads: list[threading.Thread] = []

    def accept() -> None:
        with suppress(OSError):  # the listener is closed
            while True:
                client, _ = listener.accept()
                threads.append(threading.Thread(target=connect, args=(client,), daemon=True))
                threads[-1].start()

    def connect(client: socket.socket) -> None:
        with client, socket.create_connection((parts.hostname, parts.port)) as server:
            back = threading.Thread(target=_carry, args=(server, client, Counter()), daemon=True)
            back.start()
            _carry(client, server, counter)
            back.join()

    accepting = threading.Thread(target=accept, daemon=True)
    accepting.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", counter
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        accepting.join()
        listener.close()
        for thread in threads:
            thread.join(5)


def _carry(source: socket.socket, sink: socket.socket, counter: Counter) -> None:
    """Everything that comes has gone on, and so has the end."""
    with suppress(OSError):
        while data := source.recv(1 << 16):
            counter.sent += len(data)
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)


@contextmanager
def only_a_server(root: Path) -> Generator[tuple[Installation, Daemon]]:
    """A server takes submissions that nobody runs: a job of that size would be in the way of the next."""
    root.mkdir()
    system = Installation(root, prefix="bench-tree-")
    try:
        controller = system.start_controller()
        server = system.start_server()
        system.wait_ready(server)
        controller.terminate()
        yield system, server
    finally:
        system.stop()


def big_tree(place: Place) -> list[Row]:
    """The time to queue and the bytes sent, after one line was edited."""
    files = FILES // 10 if place.quick else FILES
    tree = make_tree(place.root / "big", files, FILE_BYTES)
    edited = tree / "package0007" / "module07.py"
    queued: list[float] = []
    sent: list[float] = []
    with only_a_server(place.root / "tree") as (system, server), counting(server.url) as (url, counter):
        counted, numbers = replace(server, url=url), range(max(2, place.rounds // 2))
        system.submit(server, tree)
        for number in numbers:
            _edit(edited, number)
            queued.append(milliseconds(lambda: system.submit(server, tree)))
        system.submit(counted, tree)  # another address is another server, as far as a client knows
        for number in numbers:
            _edit(edited, -number - 1)
            before = counter.sent
            system.submit(counted, tree)
            sent.append((counter.sent - before) / 1000)
    what = f"one line edited of {files} files, {files * FILE_BYTES // 10**6} MB"
    return [
        Row(f"{what}: → queued, whole command", "ms", tuple(queued), key="big-tree/queued"),
        Row(f"{what}: sent", "kB", tuple(sent), key="big-tree/sent"),
    ]


def _edit(path: Path, number: int) -> None:
    lines = path.read_text().splitlines()
    path.write_text("\n".join([f"# edit {number}", *lines[1:]]) + "\n")

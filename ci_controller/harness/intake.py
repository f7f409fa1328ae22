"""What comes in: standard input as records, and the tree among them."""

# ruff: noqa: PTH103 - pathlib is a tenth of a second of imports for nothing we need

from __future__ import annotations

import errno
import hashlib
import json
import os
import select
import stat
from typing import Any, NamedTuple, cast

from ci_controller.harness.ending import Ended
from ci_controller.harness.signals import Signals

FEED_SECONDS = 120  # without a byte of the feed
MAX_RECORD = 64 * 1024 * 1024
CHUNK = 64 * 1024
# What a tree does to itself: names that no file system takes, and a file above the limit of one.
ITS_OWN_FAULT = (errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.EINVAL, errno.EFBIG)


# What is known before there is a run, and what is known with it. Beside `environment`, the second adds to the first.
WAITING: dict[str, Any] = {
    "workspace": str,
    "environment": dict,
    "reporter": str,
    "forerunner": str,
    "ahead": bool,
}
HEADER: dict[str, Any] = {
    "steps": list,
    "project_steps": list,
    "environment": dict,
    "paths": list,
    "pytest_args": list,
    "timeout": (int, float),
    "idle_timeout": (int, float),
    "log_limit": int,
    "isolate": bool,
    "interrupt_grace": (int, float),
    "terminate_grace": (int, float),
    "build": bool,
    "kept_from": str,
}


class FeedEnded(Ended):
    """The run is over because of what came in, or did not: that is no doing of the job's."""


class Feed:
    """Standard input as records; raises FeedEnded when it breaks off, stalls, is garbled, or we are told to stop."""

    def __init__(self, signals: Signals) -> None:
        self._signals = signals

    def wait(self) -> None:
        """There is something to read, or the end: that may take for ever."""
        self._wait(None)

    def document(self, kind: bytes, shape: dict[str, Any]) -> dict[str, Any]:
        """Return the next record, a JSON object of that shape."""
        document = _parsed(self.expect(kind))
        wrong = [name for name, kinds in shape.items() if not isinstance(document.get(name), kinds)]
        if wrong:
            raise FeedEnded("not_started", f"The feed is garbled: {kind!r} without a proper {wrong[0]}.")
        return document

    def record(self) -> tuple[bytes, bytes]:
        """Return the next record's type and payload."""
        head = self._read(5)
        size = int.from_bytes(head[1:], "big")
        if size > MAX_RECORD:
            raise FeedEnded("not_started", f"The feed is garbled: a record of {size} bytes.")
        return head[:1], self._read(size)

    def expect(self, kind: bytes) -> bytes:
        """Return the payload of the next record, which is of that type."""
        found, payload = self.record()
        if found != kind:
            raise FeedEnded("not_started", f"The feed is garbled: {found!r} instead of {kind!r}.")
        return payload

    def _read(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            if not self._wait(FEED_SECONDS):
                raise FeedEnded("not_started", f"The feed stalled for {FEED_SECONDS} s.")
            chunk = os.read(0, min(size - len(data), 1 << 20))
            if not chunk:
                raise FeedEnded("not_started", "The feed broke off before the run was to start.")
            data += chunk
        return bytes(data)

    def _wait(self, seconds: float | None) -> bool:
        """Tell whether there is something to read; waits for that, each time for so long."""
        while True:
            ready, _, _ = select.select([0, self._signals.descriptor], [], [], seconds)
            if self._signals.descriptor in ready and Signals.STOP in self._signals.read():
                raise FeedEnded("stopped", "Stopped before the run had started.")
            if not ready or 0 in ready:
                return bool(ready)


def _parsed(payload: bytes) -> dict[str, Any]:
    try:
        document = json.loads(payload)
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        raise FeedEnded("not_started", "The feed is garbled: a record that is no JSON object.")
    return cast("dict[str, Any]", document)


class Tree:
    """The tree's records as one stream of bytes; checks what it is at the end."""

    def __init__(self, feed: Feed) -> None:
        self._feed = feed
        self._digest = hashlib.sha256()
        self._size = 0
        self._buffer = b""
        self._end: Any = None

    def read(self, size: int) -> bytes:
        """Return at most `size` bytes, none at the end."""
        while not self._buffer and self._end is None:
            kind, payload = self._feed.record()
            if kind == b"E":
                self._end = _parsed(payload)
            elif kind == b"T":
                self._digest.update(payload)
                self._size += len(payload)
                self._buffer = payload
            else:
                raise FeedEnded("not_started", f"The feed is garbled: {kind!r} within the tree.")
        data, self._buffer = self._buffer[:size], self._buffer[size:]
        return data

    def check(self) -> None:
        """All of the tree was read and is what was sent; raises Ended."""
        while self.read(CHUNK):
            pass
        if self._end != {"bytes": self._size, "sha256": self._digest.hexdigest()}:
            raise FeedEnded("not_started", "The tree arrived damaged.")


def unpack(tree: Tree, workspace: str) -> None:
    """The tree stands in the workspace, checked; raises Ended."""
    source = _Source(tree)
    try:
        os.makedirs(workspace, exist_ok=True)
        while member := _next_member(source):
            _unpack_member(source, member, workspace)
    except ValueError as error:
        raise FeedEnded("not_started", f"The tree arrived damaged: {error}.") from error
    except OSError as error:
        outcome = (
            "bad_archive" if error.errno in ITS_OWN_FAULT else "not_started"
        )  # else it is the machine's fault
        raise Ended(outcome, f"The tree could not be unpacked: {error}.") from error
    tree.check()


class _Source:
    """The tree's bytes, in the sizes that a tar asks for; raises ValueError where it ends."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self._rest = memoryview(b"")

    def some(self, most: int) -> memoryview:
        """Return at least one byte."""
        if not self._rest:
            self._rest = memoryview(self._tree.read(MAX_RECORD))
            if not self._rest:
                raise ValueError("it is cut off")
        data, self._rest = self._rest[:most], self._rest[most:]
        return data

    def exactly(self, size: int) -> bytes:
        """Return so many bytes."""
        data = bytearray()
        while len(data) < size:
            data += self.some(size - len(data))
        return bytes(data)


class _Member(NamedTuple):
    name: str
    kind: bytes
    mode: int
    size: int


# Of the tar format this is what the controller writes, and no more: a general reader takes four times as long.
BLOCK = 512
FILE, DIRECTORY, EXTENSION = b"0", b"5", b"x"
MAX_EXTENSION = 64 * 1024
_FIELDS = {b"path": "name", b"size": "size"}


def _next_member(source: _Source) -> _Member | None:
    """Return what comes next, None at the end; raises ValueError for what no controller writes."""
    block = source.exactly(BLOCK)
    if not any(block):
        return None
    member = _header(block)
    if member.kind != EXTENSION:
        return member
    more = _extension(source, member.size)
    member = _header(source.exactly(BLOCK))
    if member.kind == EXTENSION:
        raise ValueError("an extension is followed by another")
    return member._replace(**more)


def _header(block: bytes) -> _Member:
    name, mode, size, total, magic = (
        block[:100],
        block[100:107],
        block[124:135],
        block[148:154],
        block[257:265],
    )
    if magic != b"ustar\x0000" or block[154:156] != b"\0 " or any(block[345:]):
        raise ValueError("a header is none")
    # Eight blanks stand for the sum while it is taken.
    if _number(total, 8) != sum(block) - sum(block[148:156]) + 8 * 32:
        raise ValueError("a header has another sum than it says")
    return _Member(name.rstrip(b"\0").decode(), block[156:157], _number(mode, 8), _number(size, 8))


def _number(digits: bytes, base: int = 10) -> int:
    if not digits.isdigit():
        raise ValueError("a number is none")
    return int(digits, base)


def _extension(source: _Source, size: int) -> dict[str, Any]:
    """Return what the header that follows has no room for: lines of their length, a name, `=` and a value."""
    if size > MAX_EXTENSION:
        raise ValueError(f"an extension has {size} bytes")
    data = source.exactly(size)
    found: dict[str, Any] = {}
    source.exactly(-size % BLOCK)
    while data:
        length = _number(data.partition(b" ")[0])
        line, data = data[:length], data[length:]
        name, equals, value = line.partition(b" ")[2].partition(b"=")
        if len(line) != length or not equals or value[-1:] != b"\n" or name not in _FIELDS:
            raise ValueError("an extension is garbled")
        found[_FIELDS[name]] = _number(value[:-1]) if name == b"size" else value[:-1].decode()
    return found


def _unpack_member(source: _Source, member: _Member, workspace: str) -> None:
    name = member.name
    if name[:1] in ("", "/") or ".." in name.split("/") or member.kind not in (FILE, DIRECTORY):
        raise Ended("bad_archive", f"The tree holds something that is no file below it: {name!r}.")
    path = f"{workspace}/{name}"
    if member.kind == DIRECTORY:
        os.makedirs(path, exist_ok=True)
        return
    # Exclusive: nothing is written through a link or over another file.
    target = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, stat.S_IMODE(member.mode))
    try:
        _write(source, target, member.size)
    finally:
        os.close(target)
    source.exactly(-member.size % BLOCK)


def _write(source: _Source, target: int, size: int) -> None:
    while size:
        piece = source.some(size)
        size -= len(piece)
        while piece:
            piece = piece[os.write(target, piece) :]

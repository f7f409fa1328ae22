"""What comes in: standard input as records, and the tree among them."""

# ruff: noqa: PTH103, PTH118 - pathlib is a tenth of a second of imports for nothing we need

from __future__ import annotations

import errno
import hashlib
import json
import os
import select
import shutil
import stat
import tarfile
from typing import Any, cast

from ci_controller.harness.ending import Ended
from ci_controller.harness.signals import Signals

FEED_SECONDS = 120  # without a byte of the feed
MAX_RECORD = 64 * 1024 * 1024
CHUNK = 64 * 1024
# What a tree does to itself: names that no file system takes, and a file above the limit of one.
ITS_OWN_FAULT = (errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.EINVAL, errno.EFBIG)


class Feed:
    """Standard input as records; raises Ended when it breaks off, stalls, or we are told to stop meanwhile."""

    def __init__(self, signals: Signals) -> None:
        self._signals = signals

    def record(self) -> tuple[bytes, bytes]:
        """Return the next record's type and payload."""
        head = self._read(5)
        size = int.from_bytes(head[1:], "big")
        if size > MAX_RECORD:
            raise Ended("not_started", f"The feed is garbled: a record of {size} bytes.")
        return head[:1], self._read(size)

    def expect(self, kind: bytes) -> bytes:
        """Return the payload of the next record, which is of that type."""
        found, payload = self.record()
        if found != kind:
            raise Ended("not_started", f"The feed is garbled: {found!r} instead of {kind!r}.")
        return payload

    def _read(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            self._wait()
            chunk = os.read(0, min(size - len(data), 1 << 20))
            if not chunk:
                raise Ended("not_started", "The feed broke off before the run was to start.")
            data += chunk
        return bytes(data)

    def _wait(self) -> None:
        ready, _, _ = select.select([0, self._signals.descriptor], [], [], FEED_SECONDS)
        if self._signals.descriptor in ready and Signals.STOP in self._signals.read():
            raise Ended("stopped", "Stopped before the run had started.")
        if not ready:
            raise Ended("not_started", f"The feed stalled for {FEED_SECONDS} s.")


class Tree:
    """The tree's records as a file that tarfile can read; checks what it is at the end."""

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
                self._end = json.loads(payload)
            elif kind == b"T":
                self._digest.update(payload)
                self._size += len(payload)
                self._buffer = payload
            else:
                raise Ended("not_started", f"The feed is garbled: {kind!r} within the tree.")
        data, self._buffer = self._buffer[:size], self._buffer[size:]
        return data

    def check(self) -> None:
        """All of the tree was read and is what was sent; raises Ended."""
        while self.read(CHUNK):
            pass
        if self._end != {"bytes": self._size, "sha256": self._digest.hexdigest()}:
            raise Ended("not_started", "The tree arrived damaged.")


def unpack(tree: Tree, workspace: str) -> None:
    """The tree stands in the workspace, checked; raises Ended."""
    try:
        os.makedirs(workspace, exist_ok=True)
        with tarfile.open(fileobj=cast(Any, tree), mode="r|", bufsize=CHUNK) as archive:
            for member in archive:
                _unpack_member(archive, member, workspace)
    except tarfile.TarError as error:
        raise Ended("not_started", f"The tree arrived damaged: {error}.") from error
    except OSError as error:
        outcome = (
            "bad_archive" if error.errno in ITS_OWN_FAULT else "not_started"
        )  # else it is the machine's fault
        raise Ended(outcome, f"The tree could not be unpacked: {error}.") from error
    tree.check()


def _unpack_member(archive: tarfile.TarFile, member: tarfile.TarInfo, workspace: str) -> None:
    if (
        member.name.startswith("/")
        or ".." in member.name.split("/")
        or not (member.isreg() or member.isdir())
    ):
        raise Ended("bad_archive", f"The tree holds something that is no file below it: {member.name!r}.")
    path = os.path.join(workspace, member.name)
    if member.isdir():
        os.makedirs(path, exist_ok=True)
        return
    source = archive.extractfile(member)
    assert source is not None, "a regular file has content"
    # Exclusive: nothing is written through a link or over another file.
    target = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, stat.S_IMODE(member.mode))
    with os.fdopen(target, "wb") as file:
        shutil.copyfileobj(source, file, CHUNK)

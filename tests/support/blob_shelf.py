"""What a server keeps of trees, as small as still tells whether a client speaks the protocol: no limits, no disk."""

import json
import struct
import threading
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, Self

_HEAD = struct.Struct(">32sQQB")


@dataclass(frozen=True, slots=True)
class Submission:
    """One request for a job: what was asked for, and the records that came with it."""

    asked: dict[str, Any]
    records: bytes

    @classmethod
    def parse(cls, body: bytes) -> Self:
        """Return the parts of a body of `/submit-tree`."""
        (length,) = struct.unpack_from(">I", body)
        return cls(json.loads(body[4 : 4 + length]), body[4 + length :])

    @property
    def root(self) -> str:
        """The hash of the root's listing."""
        return str(self.asked["root"])


@dataclass(slots=True)
class BlobShelf:
    """Blobs by hash; every record is verified."""

    blobs: dict[str, bytes] = field(default_factory=dict[str, bytes])
    encodings: dict[str, int] = field(default_factory=dict[str, int])
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def put(self, records: bytes) -> int:
        """The blobs are kept; returns how many. Fails for a record that is not what it says."""
        count = 0
        for digest, data, encoding in _records(records):
            assert sha256(data).digest() == digest, "a record lies about its bytes"
            with self._lock:
                self.blobs[digest.hex()] = data
                self.encodings[digest.hex()] = encoding
            count += 1
        return count

    def missing(self, asked: list[str]) -> list[str]:
        """Return those that are not here."""
        return [digest for digest in asked if digest not in self.blobs]

    def missing_of_tree(self, root: str) -> list[str]:
        """Return what a tree lacks, as far as can be seen: nothing is known of what is under a missing listing."""
        if root not in self.blobs:
            return [root]
        found: list[str] = []
        for _, kind, size, digest in self._items(root):
            if kind in "dp":
                found += self.missing_of_tree(digest)
            elif digest not in self.blobs:
                found.append(digest)
            else:
                assert len(self.blobs[digest]) == size, "a listing lies about a size"
        return found

    def files(self, root: str, prefix: str = "") -> dict[str, tuple[bytes, bool]]:
        """Return the files of a tree by path: bytes, and whether they are executable."""
        found: dict[str, tuple[bytes, bool]] = {}
        for name, kind, _, digest in self._items(root):
            if kind in "dp":
                found |= self.files(digest, f"{prefix}{name}/" if kind == "d" else prefix)
            else:
                found[prefix + name] = self.blobs[digest], kind == "x"
        return found

    def _items(self, listing: str) -> list[tuple[str, str, int, str]]:
        items = [tuple(item) for item in json.loads(self.blobs[listing])]
        names = [name.encode() for name, kind, _, _ in items if kind != "p"]
        assert names == sorted(set(names)), "a listing is not in order"
        return items


def _records(data: bytes) -> Iterator[tuple[bytes, bytes, int]]:
    at = 0
    while at < len(data):
        digest, stored, size, encoding = _HEAD.unpack_from(data, at)
        at += _HEAD.size + stored
        assert at <= len(data), "a record is longer than the body"
        raw = data[at - stored : at]
        whole = zlib.decompress(raw) if encoding else raw
        assert len(whole) == size, "a record lies about its size"
        yield digest, whole, encoding

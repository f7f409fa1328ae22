"""Trees as clients send them: records of contents, manifests of paths."""

import hashlib
import json
import struct
import zlib
from collections.abc import Mapping
from typing import Any

MEDIA = {"Content-Type": "application/vnd.ci.blobs"}
TREE_MEDIA = {"Content-Type": "application/vnd.ci.submission"}


def sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def record(
    data: bytes,
    *,
    packed: bool = True,
    stored: bytes | None = None,
    size: int | None = None,
    encoding: int | None = None,
    digest: bytes | None = None,
) -> bytes:
    """Return one blob as it is sent; what is given is told whether it is true or not."""
    sent = stored if stored is not None else zlib.compress(data, 1) if packed else data
    head = struct.pack(
        ">32sQQB",
        digest or sha256(data),
        len(sent),
        len(data) if size is None else size,
        int(packed) if encoding is None else encoding,
    )
    return head + sent


def records(*contents: bytes) -> bytes:
    """Return a body of `PUT /blobs`."""
    return b"".join(record(data, packed=number % 2 == 0) for number, data in enumerate(contents))


def entry(path: str, data: bytes = b"", **told: Any) -> dict[str, Any]:
    """Return a file of a manifest."""
    return {"path": path, "mode": 0o644, "size": len(data), "sha256": sha256(data).hex(), **told}


def manifest_of(contents: Mapping[str, bytes]) -> list[dict[str, Any]]:
    """Return the files of a manifest."""
    return [entry(path, data) for path, data in contents.items()]


def listing(*items: tuple[str, str, bytes]) -> bytes:
    """Return a directory's listing: name, kind and contents of each."""
    return json.dumps([[name, kind, len(data), sha256(data).hex()] for name, kind, data in items]).encode()


def tree_body(root: bytes, *contents: bytes, **asked: Any) -> bytes:
    """Return a body of `POST /submit-tree` whose root has that listing."""
    head = json.dumps({"root": sha256(root).hex(), **asked}).encode()
    return struct.pack(">I", len(head)) + head + records(*contents)

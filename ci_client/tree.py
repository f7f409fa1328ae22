"""The project as a tree of hashes: each directory's listing is a blob, so that an edit changes few of them. Pure.

A listing is a JSON array of `[name, kind, size, SHA-256]`, sorted by name: `f` a file, `x` an executable one, `d` a
directory (the hash is its listing's). A long listing is cut into parts (`p`), each a listing of its own; where it is
cut depends on the names alone, so that an edit touches one part.
"""

import json
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256
from zlib import crc32

Item = tuple[str, str, int, str]  # name, kind, size, SHA-256 in hexadecimal digits
_LONG = 1024  # entries of a listing that is cut into parts
_CUT = 256  # entries of a part, on average


@dataclass(frozen=True, slots=True)
class Tree:
    """A root and the listings under it, by hash; the root's is among them."""

    root: bytes
    listings: dict[bytes, bytes]


def build_tree(files: Iterable[tuple[str, bool, int, bytes]]) -> Tree:
    """Return the tree of files: path, executable or not, size and hash of each."""
    directories: defaultdict[str, list[Item]] = defaultdict(list)
    directories[""] = []
    for path, executable, size, digest in files:
        cut = path.rfind("/")
        kind = "x" if executable else "f"
        directories[path[:cut] if cut > 0 else ""].append((path[cut + 1 :], kind, size, digest.hex()))
    for path in list(directories):
        _add_parents(directories, path)
    listings: dict[bytes, bytes] = {}
    *below, root = sorted(directories, key=_depth, reverse=True)
    for path in below:
        digest = _add_listing(listings, directories[path])
        parent, _, name = path.rpartition("/")
        directories[parent].append((name, "d", 0, digest.hex()))
    return Tree(_add_listing(listings, directories[root]), listings)


def _depth(path: str) -> int:
    return path.count("/") + 1 if path else 0


def _add_parents(directories: defaultdict[str, list[Item]], path: str) -> None:
    """Every directory above this one is there, also one without files of its own."""
    while path:
        path = path.rpartition("/")[0]
        if path in directories:
            return
        directories[path] = []


def _add_listing(listings: dict[bytes, bytes], items: list[Item]) -> bytes:
    items.sort(key=lambda item: item[0].encode())
    if len(items) > _LONG:
        items = [("", "p", 0, _add_blob(listings, part).hex()) for part in _parts(items)]
    return _add_blob(listings, items)


def _add_blob(listings: dict[bytes, bytes], items: list[Item]) -> bytes:
    data = json.dumps(items, ensure_ascii=False, separators=(",", ":")).encode()
    digest = sha256(data).digest()
    listings[digest] = data
    return digest


def _parts(items: list[Item]) -> Iterable[list[Item]]:
    """Yield the items in pieces that end where a name's checksum says so; none is much longer than a listing may be."""
    part: list[Item] = []
    for item in items:
        part.append(item)
        if crc32(item[0].encode()) % _CUT == 0 or len(part) >= 8 * _CUT:
            yield part
            part = []
    if part:
        yield part

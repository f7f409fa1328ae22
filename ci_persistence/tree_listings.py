"""A tree as listings of its directories, each a blob of its own: so an edit changes the few above it and no other.

A listing is a JSON array of `[name, kind, size, SHA-256]`: `f` a file, `x` an executable one, `d` a directory and
`p` a part of the same directory (of these two the hash is that of another listing, and size says nothing).
"""

from collections.abc import Collection, Iterator, Mapping
from typing import Any, Final

from ci_common.blobs import ManifestFile, as_digest
from ci_common.bounded_json import loads_bounded
from ci_common.errors import InvalidArchive
from ci_persistence.archive_paths import MAX_DEPTH, MAX_NAME_BYTES
from ci_persistence.archive_rules import MAX_NAMES_BYTES, ArchiveLimits
from ci_persistence.zip_format import refuse

MAX_LISTINGS_BYTES: Final = (
    64 * 1024 * 1024
)  # of a whole tree, each level's counted once; 300 bytes for each entry
_MODES: Final = {"f": 0o644, "x": 0o755}
_VALUES_PER_ITEM: Final = 10  # five, and what looks like one in a name
_MAX_SIZE: Final = 2**63 - 1
_MAX_LEVELS: Final = 2 * MAX_DEPTH  # a directory may be cut into parts


class Expansion:
    """Goes down a tree level by level: whoever has it reads the listings that are wanted, and gives them to it.

    Equal directories are one blob and many places, so a small upload can name an enormous tree: what was found is
    counted while it is found. Raises InvalidArchive.
    """

    def __init__(self, root: bytes, limits: ArchiveLimits) -> None:
        self._limits = limits
        self._level: list[tuple[str, bytes]] = [("", root)]  # what stands before its names, and the listing
        self._levels = self._listings = self._names = self._bytes = 0
        self.files: list[ManifestFile] = []

    def wanted(self) -> set[bytes]:
        """Return the listings that are needed next; none: all files are found."""
        return {sha256 for _, sha256 in self._level}

    def allow(self, size: int) -> None:
        """So many bytes of listings may be read for this level, beside those of the levels above."""
        self._bytes += size
        if self._bytes > MAX_LISTINGS_BYTES:
            raise refuse("names_size", f"The listings of the tree take more than {MAX_LISTINGS_BYTES} bytes.")

    def descend(self, contents: Mapping[bytes, bytes]) -> None:
        """The listings of this level were read, and those below are wanted."""
        parsed = {sha256: _parsed(data, self._limits.entries) for sha256, data in contents.items()}
        self._levels += 1
        if self._levels > _MAX_LEVELS:
            raise refuse("path_length", f"The tree is more than {MAX_DEPTH} levels deep.")
        level, self._level = self._level, []
        for prefix, sha256 in level:
            self._add(prefix, parsed[sha256])

    def _add(self, prefix: str, items: Collection[tuple[str, str, int, bytes]]) -> None:
        self._names += len(prefix) * len(items) + sum(len(item[0]) for item in items)
        if self._names > MAX_NAMES_BYTES:
            raise refuse("names_size", f"The archive's file names take more than {MAX_NAMES_BYTES} bytes.")
        for name, kind, size, sha256 in items:
            if mode := _MODES.get(kind):
                self.files.append(ManifestFile(prefix + name, mode, size, sha256))
            else:
                self._level.append((prefix if kind == "p" else f"{prefix}{name}/", sha256))
        self._limits.check_count(len(self.files))
        self._listings += 1
        if self._listings + len(self._level) > self._limits.entries:
            raise refuse("too_many_entries", f"The tree has more than {self._limits.entries} directories.")


def _parsed(data: bytes, most: int) -> list[tuple[str, str, int, bytes]]:
    try:
        items: Any = loads_bounded(data, _VALUES_PER_ITEM * most)
    except ValueError:
        raise _malformed() from None
    if not isinstance(items, list):
        raise _malformed()
    return list(_items(items))  # pyright: ignore[reportUnknownArgumentType]


def _items(items: list[Any]) -> Iterator[tuple[str, str, int, bytes]]:
    for item in items:
        try:
            name, kind, size, text = item
        except (TypeError, ValueError):
            raise _malformed() from None
        digest = as_digest(text)
        if digest is None or type(name) is not str or type(size) is not int or not 0 <= size <= _MAX_SIZE:
            raise _malformed()
        if kind == "p" and name == "":
            yield "", "p", 0, digest
        elif kind not in ("f", "x", "d") or "/" in name or not name:
            raise _malformed()
        elif len(name) > MAX_NAME_BYTES:  # before it is kept: a listing may be one name of megabytes
            raise refuse("path_length", f"The name {name[:200]!r} is longer than {MAX_NAME_BYTES} bytes.")
        else:
            yield name, kind, size, digest


def _malformed() -> InvalidArchive:
    return refuse("form", "A listing of the tree has not the documented form.")

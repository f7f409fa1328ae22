"""A tree as listings of its directories, each a blob of its own: so an edit changes the few above it and no other.

A listing is a JSON array of `[name, kind, size, SHA-256]`: `f` a file, `x` an executable one, `d` a directory and
`p` a part of the same directory (of these two the hash is that of another listing, and size says nothing).
"""

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from ci_common.blobs import ManifestFile, as_digest
from ci_common.bounded_json import loads_bounded
from ci_common.errors import InvalidArchive
from ci_persistence.archive_paths import MAX_DEPTH, MAX_NAME_BYTES, Names, check_path, encoded_length
from ci_persistence.archive_rules import MAX_NAMES_BYTES, ArchiveLimits, Budget
from ci_persistence.zip_format import refuse

MAX_LISTINGS_BYTES: Final = (
    64 * 1024 * 1024
)  # of a whole tree, each level's counted once; 300 bytes for each entry
_MODES: Final = {"f": 0o644, "x": 0o755}
_VALUES_PER_ITEM: Final = 10  # five, and what looks like one in a name
_MAX_SIZE: Final = 2**63 - 1
_MAX_LEVELS: Final = 2 * MAX_DEPTH  # a directory may be cut into parts


class Spot(NamedTuple):
    """A listing where a tree has it."""

    prefix: str  # stands before its names
    sha256: bytes


@dataclass(frozen=True, slots=True)
class Piece:
    """What a listing says of the spot where it is, once that passed the rules, and where the contents lie.

    Made of few objects: of a large tree there are many, and they are kept.
    """

    files: int
    names: bytes  # of the files, with their directories, and line breaks between them
    records: bytes  # of the files, as the manifest has them
    size: int  # bytes of all files
    listing_size: int
    directories: tuple[str, ...]
    below: tuple[Spot, ...]  # the listings that it names
    packs: frozenset[str]  # that all this was read from

    def paths(self) -> list[str]:
        """Return the files."""
        return self.names.decode().split("\n") if self.files else []


@dataclass(frozen=True, slots=True)
class Fresh:
    """The same before the rules were asked."""

    files: tuple[ManifestFile, ...]
    listing_size: int
    directories: tuple[str, ...]
    below: tuple[Spot, ...]

    def paths(self) -> list[str]:
        """Return the files."""
        return [file.path for file in self.files]


class Expansion:
    """Goes down a tree level by level: whoever has it reads the listings that are wanted, and gives them to it.

    Those that are `known` are not wanted, but count. Equal directories are one blob and many places, so a small upload
    can name an enormous tree: what was found is counted while it is found. Raises InvalidArchive.
    """

    def __init__(self, root: bytes, limits: ArchiveLimits, known: Mapping[Spot, Piece]) -> None:
        self._limits = limits
        self._known = known
        self._budget = Budget(limits)
        self._level = [Spot("", root)]
        self._levels = self._files = self._names = self._bytes = 0
        self.spots: list[Spot] = []  # all, in the order of their levels
        self.fresh: dict[Spot, Fresh] = {}  # what was found at those that are not known

    @property
    def done(self) -> bool:
        """Tell whether all files are found."""
        return not self._level

    def wanted(self) -> set[bytes]:
        """Return the listings that are needed for the next level."""
        return {spot.sha256 for spot in self._level if spot not in self._known}

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
        known = {spot: self._known[spot] for spot in level if spot.sha256 not in contents}
        self.allow(sum({spot.sha256: piece.listing_size for spot, piece in known.items()}.values()))
        for spot in level:
            if piece := self._known.get(spot):
                self._add(spot, piece.below, piece.files)
                self._budget.add_all(len(piece.names) - max(piece.files - 1, 0), piece.size)
            else:
                size = len(contents[spot.sha256])
                fresh = self.fresh[spot] = self._found(spot.prefix, parsed[spot.sha256], size)
                self._add(spot, fresh.below, len(fresh.files))

    def _add(self, spot: Spot, below: Collection[Spot], files: int) -> None:
        self.spots.append(spot)
        self._files += files
        self._level += below
        self._limits.check_count(self._files)
        if len(self.spots) + len(self._level) > self._limits.entries:
            raise refuse("too_many_entries", f"The tree has more than {self._limits.entries} directories.")

    def _found(self, prefix: str, items: Collection[tuple[str, str, int, bytes]], size: int) -> Fresh:
        self._names += len(prefix) * len(items) + sum(len(item[0]) for item in items)
        if self._names > MAX_NAMES_BYTES:
            raise refuse("names_size", f"The archive's file names take more than {MAX_NAMES_BYTES} bytes.")
        files: list[ManifestFile] = []
        directories: list[str] = []
        below: list[Spot] = []
        for name, kind, length, sha256 in items:
            if mode := _MODES.get(kind):
                files.append(ManifestFile(prefix + name, mode, length, sha256))
            elif kind == "p":
                below.append(Spot(prefix, sha256))
            else:
                directories.append(prefix + name)
                below.append(Spot(f"{prefix}{name}/", sha256))
        return Fresh(tuple(files), size, tuple(directories), tuple(below))

    def hashes(self) -> set[bytes]:
        """Return the contents of the files that were found where nothing was known."""
        return {file.sha256 for fresh in self.fresh.values() for file in fresh.files}

    def judge(self) -> None:
        """The whole tree passed the rules, those that all archives have.

        Two names can only be in each other's way in one directory, so only where something is new they are compared.
        """
        if not self._files:
            raise refuse("empty", "The archive holds no files.")
        for fresh in self.fresh.values():
            for file in fresh.files:
                self._budget.add_name(file, encoded_length(file.path))
                self._budget.add_size(file.size)
            for path in fresh.directories:
                encoded_length(path)
        by_prefix: defaultdict[str, list[Spot]] = defaultdict(list)
        changed = {spot.prefix for spot in self.fresh}
        for spot in self.spots:
            if spot.prefix in changed:
                by_prefix[spot.prefix].append(spot)
        for spots in by_prefix.values():
            self._judge_directory(spots)

    def _judge_directory(self, spots: list[Spot]) -> None:
        names = Names(self._limits.entries)
        for spot in spots:  # a directory that was cut has some
            found = self.fresh.get(spot) or self._known[spot]
            for path in found.paths():
                check_path(path)
                names.add_file(path)
            for path in found.directories:
                check_path(path)
                names.add_directory(path)


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

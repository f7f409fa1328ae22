"""The project as a tree of hashes: each directory's listing is a blob, so that an edit changes few of them. Pure.

A listing is a JSON array of `[name, kind, size, SHA-256]`, sorted by name: `f` a file, `x` an executable one, `d` a
directory (the hash is its listing's). A long listing is cut into parts (`p`), each a listing of its own; where it is
cut depends on the names alone, so that an edit touches one part.
"""

import json
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import NamedTuple
from zlib import crc32

File = tuple[str, bool, int, bytes]  # path, executable or not, size, SHA-256
Item = tuple[str, str, int, str]  # name, kind, size, SHA-256 in hexadecimal digits
_LONG = 1024  # entries of a listing that is cut into parts
_CUT = 256  # entries of a part, on average


class Directory(NamedTuple):
    """A directory as a tree has it."""

    files: int  # in it, not below
    trees: int
    listings: tuple[bytes, ...]  # by hash: its parts, if it has any, then its own

    @property
    def digest(self) -> bytes:
        """What the directory above names it by."""
        return self.listings[-1]


@dataclass(frozen=True, slots=True)
class Tree:
    """A root, the directories under it by path, and the listings that were made for them, by hash."""

    root: bytes
    directories: dict[str, Directory]  # the root is ""
    listings: dict[bytes, bytes]


def build_tree(
    files: Iterable[File], known: Mapping[str, Directory] | None = None, changed: Collection[str] = ()
) -> Tree:
    """Return the tree of files.

    `known` are directories of an earlier tree: of every file of theirs that is in this one as well either nothing
    has changed, or its directory is among the `changed`, which are also the directories of all new files. So where
    there are as many as before, they are the same, and no listing is made.
    """
    known, dirty = known or {}, set(changed)
    files_in: defaultdict[str, list[File]] = defaultdict(list)
    for file in files:
        path = file[0]
        files_in[path[: max(path.rfind("/"), 0)]].append(file)
    trees_in = _trees(files_in)
    directories: dict[str, Directory] = {}
    listings: dict[bytes, bytes] = {}
    for path in sorted(trees_in, key=_depth, reverse=True):
        inside, trees, old = files_in.get(path, []), trees_in[path], known.get(path)
        if old and path not in dirty and (old.files, old.trees) == (len(inside), len(trees)):
            directories[path] = old
            continue
        new = directories[path] = _directory(inside, trees, directories, listings)
        if not old or old.digest != new.digest:
            dirty.add(parent_of(path))
    return Tree(directories[""].digest, directories, listings)


def edited_tree(known: Mapping[str, Directory], edited: Mapping[str, Iterable[File]]) -> Tree:
    """Return a tree of the same names as the one with the known directories.

    Of the edited directories, among which are those above each of them, all files are given.
    """
    trees_in, directories, listings = _trees(known), dict(known), dict[bytes, bytes]()
    for path in sorted(edited, key=_depth, reverse=True):
        directories[path] = _directory(list(edited[path]), trees_in[path], directories, listings)
        for same in known[path].listings:
            listings.pop(same, None)
    return Tree(directories[""].digest, directories, listings)


def _directory(
    files: Collection[File],
    trees: Collection[str],
    directories: Mapping[str, Directory],
    listings: dict[bytes, bytes],
) -> Directory:
    """Return the directory of these files, and of trees that are among the directories; its listings are there."""
    items = [_item(file) for file in files]
    items += [(_name(tree), "d", 0, directories[tree].digest.hex()) for tree in trees]
    return Directory(len(files), len(trees), _add_listing(listings, items))


def parents_of(paths: Iterable[str]) -> set[str]:
    """Return all directories that something of these is in, at any depth: the root, too."""
    found = {""}
    for path in paths:
        directory = parent_of(path)
        while directory not in found:
            found.add(directory)
            directory = parent_of(directory)
    return found


def parent_of(path: str) -> str:
    """Return the directory that a path is in; the root is ""."""
    return path[: max(path.rfind("/"), 0)]


def _name(path: str) -> str:
    return path[path.rfind("/") + 1 :]


def _item(file: File) -> Item:
    path, executable, size, digest = file
    return _name(path), "x" if executable else "f", size, digest.hex()


def _depth(path: str) -> int:
    return path.count("/") + 1 if path else 0


def _trees(directories: Iterable[str]) -> dict[str, list[str]]:
    """Return the directories that each directory holds: of these, and of those above them, the root included."""
    trees: dict[str, list[str]] = {"": []}
    for directory in directories:
        path = directory
        while path not in trees:
            trees[path] = []
            path = parent_of(path)
    for path in trees:
        if path:
            trees[parent_of(path)].append(path)
    return trees


def _add_listing(listings: dict[bytes, bytes], items: list[Item]) -> tuple[bytes, ...]:
    """The directory's listing is there; returns the hashes of its parts and its own."""
    items.sort(key=lambda item: item[0].encode())
    parts = [_add_blob(listings, part) for part in _parts(items)] if len(items) > _LONG else []
    if parts:
        items = [("", "p", 0, part.hex()) for part in parts]
    return *parts, _add_blob(listings, items)


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

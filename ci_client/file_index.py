"""What a project's files hashed to last time, kept in the user's cache: a scan then is a matter of `stat` calls.

A hash is believed while nothing that `stat` tells has changed, the time of change included, which no program can
set. A file as young as the scan that hashed it is not believed: it may have been written again within the same
tick of its file system's clock. An index that is damaged, foreign or of another release counts as none.
"""

import contextlib
import json
import os
import stat
import struct
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any, cast

from ci_client.tree import Directory, File

_MAGIC = (
    b"ci-index-3\n"  # another one, too, when the rules for names change: what is known is not judged again
)
_FACTS = struct.Struct("<QqqQQI")  # size, times of modification and change, inode, device, mode
_DIGEST = 32
_RECORD_SIZE = _FACTS.size + _DIGEST
_DIRECTORY = struct.Struct("<III")  # files, directories, listings
_NEW = "new-"  # begins the names of files that are being written
_TICK_NS = 2_000_000_000  # the coarsest clock of a file system that is in use
_KEPT_SECONDS = 90 * 86_400


def facts(info: os.stat_result) -> bytes:
    """Return what says, as long as it stays the same, that a file's bytes do."""
    return _FACTS.pack(
        info.st_size, info.st_mtime_ns, info.st_ctime_ns, info.st_ino, info.st_dev, info.st_mode
    )


@dataclass(slots=True)
class FileIndex:
    """The files of one project by path, as one scan found them, and the tree that they made."""

    scanned_at: int = 0  # nanoseconds; before the first file was looked at
    files: dict[str, bytes] = field(default_factory=dict[str, bytes])  # the facts, then the SHA-256
    directories: dict[str, Directory] = field(default_factory=dict[str, Directory])
    accepted_by: str = ""  # the server that took exactly this tree for the same user
    warned: bool = False  # something was to be told about which files go

    def known(self, path: str, info: os.stat_result) -> bytes | None:
        """Return what is kept of a file, its hash last; None where only reading the file tells its hash."""
        known = self.files.get(path)
        if known is None or sys.platform == "win32":  # there, no time says that the bytes changed
            return None
        oldest = self.scanned_at - _TICK_NS
        old = info.st_ctime_ns < oldest and info.st_mtime_ns < oldest
        return known if old and known.startswith(facts(info)) else None

    def stale(self, base: str, infos: dict[str, os.stat_result]) -> list[str]:
        """Return the files that are not `known` any more; what `lstat` says of those that are there is in `infos`.

        One loop, because it runs for each of many thousand files; `base` is the root, with a slash.
        """
        oldest, lstat, pack = self.scanned_at - _TICK_NS, os.lstat, _FACTS.pack
        stale: list[str] = []
        for path, known in self.files.items():
            try:
                info = infos[path] = lstat(base + path)
            except OSError:
                stale.append(path)  # gone, most likely; whether that matters, the listing says
                continue
            size, modified, changed = info.st_size, info.st_mtime_ns, info.st_ctime_ns
            same = known.startswith(pack(size, modified, changed, info.st_ino, info.st_dev, info.st_mode))
            if not same or changed >= oldest or modified >= oldest:
                stale.append(path)
        return stale

    def listings(self) -> set[bytes]:
        """Return the hashes of all listings of the tree."""
        return {digest for directory in self.directories.values() for digest in directory.listings}

    def blobs(self) -> set[bytes]:
        """Return the hashes of everything that the tree is made of."""
        return {digest_of(known) for known in self.files.values()} | self.listings()


def digest_of(record: bytes) -> bytes:
    """Return the hash that is kept of a file."""
    return record[-_DIGEST:]


def file_of(path: str, record: bytes) -> File:
    """Return the file that is kept so, as it is in a tree (not on Windows, where no mode says what is executable)."""
    size, *_, mode = _FACTS.unpack_from(record)
    return path, mode & stat.S_IXUSR != 0, size, digest_of(record)


def path_of(root: Path, environ: Mapping[str, str] = os.environ) -> Path:
    """Return the file that the index of a project is kept in."""
    return _cache_directory(environ) / "ci" / f"{sha256(os.fsencode(root.resolve())).hexdigest()[:32]}.index"


def load(root: Path) -> FileIndex:
    """Return the index of a project; an empty one where there is none that can be believed."""
    try:
        with path_of(root).open("rb") as file:
            if sys.platform != "win32" and os.fstat(file.fileno()).st_uid != os.geteuid():
                return FileIndex()
            return _decoded(file.read(), root)
    except (OSError, ValueError, KeyError, TypeError, struct.error):
        return FileIndex()  # it is a cache: whatever is wrong with it, reading the files is right


def save(root: Path, index: FileIndex) -> None:
    """The index is kept, whole or not at all, for this user alone; raises OSError where it cannot be."""
    path = path_of(root)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    new = path.with_name(f"{_NEW}{os.urandom(8).hex()}")
    try:
        with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(_encoded(index, root))
        new.replace(path)
    except BaseException:
        new.unlink(missing_ok=True)
        raise
    _forget_old(path.parent)


def _encoded(index: FileIndex, root: Path) -> bytes:
    head = {
        "root": os.fsdecode(root.resolve()),
        "scanned_at": index.scanned_at,
        "accepted_by": index.accepted_by,
        "warned": index.warned,
        "files": len(index.files),
        "directories": len(index.directories),
        "listings": sum(len(known.listings) for known in index.directories.values()),
    }
    directories = index.directories.values()
    parts = [
        json.dumps(head).encode() + b"\n",  # ASCII, whatever is in the name of the directory
        b"".join(index.files.values()),
        b"".join([_DIRECTORY.pack(known.files, known.trees, len(known.listings)) for known in directories]),
        b"".join([digest for known in directories for digest in known.listings]),
        "\0".join([*index.files, *index.directories]).encode(),
    ]
    body = b"".join(parts)
    return _MAGIC + sha256(body).digest() + body


def _decoded(data: bytes, root: Path) -> FileIndex:
    start = len(_MAGIC) + _DIGEST
    if not data.startswith(_MAGIC) or sha256(memoryview(data)[start:]).digest() != data[len(_MAGIC) : start]:
        raise ValueError("damaged, or of another release")
    line_end = data.index(b"\n", start)
    head = cast(dict[str, Any], json.loads(data[start:line_end]))
    if head["root"] != os.fsdecode(root.resolve()):
        raise ValueError("of another project")
    files_end = line_end + 1 + head["files"] * _RECORD_SIZE
    directories_end = files_end + head["directories"] * _DIRECTORY.size
    listings_end = directories_end + head["listings"] * _DIGEST
    names = data[listings_end:].decode().split("\0") if head["files"] + head["directories"] else []
    files = _pieces(data[line_end + 1 : files_end], _RECORD_SIZE)
    listings = iter(_pieces(data[directories_end:listings_end], _DIGEST))
    directories = [
        Directory(files, trees, tuple(islice(listings, count)))
        for files, trees, count in _DIRECTORY.iter_unpack(data[files_end:directories_end])
    ]
    return FileIndex(
        scanned_at=head["scanned_at"],
        files=dict(zip(names[: len(files)], files, strict=True)),
        directories=dict(zip(names[len(files) :], directories, strict=True)),
        accepted_by=head["accepted_by"],
        warned=head["warned"],
    )


def _pieces(data: bytes, size: int) -> list[bytes]:
    return [data[start : start + size] for start in range(0, len(data), size)]


def _cache_directory(environ: Mapping[str, str]) -> Path:
    named = environ.get("XDG_CACHE_HOME", "")
    if Path(named).is_absolute():  # the rule: others are ignored
        return Path(named)
    if sys.platform == "win32" and environ.get("LOCALAPPDATA"):
        return Path(environ["LOCALAPPDATA"])
    return Path.home() / ("Library/Caches" if sys.platform == "darwin" else ".cache")


def _forget_old(directory: Path) -> None:
    """Projects that were not submitted for months leave nothing, nor do writers that died."""
    oldest = time.time() - _KEPT_SECONDS
    for entry in os.scandir(directory):
        with contextlib.suppress(OSError):  # another process was quicker
            ours = entry.name.endswith(".index") or entry.name.startswith(_NEW)
            if ours and entry.stat(follow_symlinks=False).st_mtime < oldest:
                Path(entry.path).unlink()

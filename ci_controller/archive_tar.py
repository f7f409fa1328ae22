"""An accepted archive as a stream of tar bytes: what goes into a container without touching the host's disk."""

import tarfile
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Final

from ci_common.errors import InvalidArchive
from ci_common.stores import Archive, ArchiveEntry

_BLOCK: Final = 512
_CHUNK: Final = 256 * 1024
_DIRECTORY_MODE: Final = 0o755


def tar_stream(archive: Archive) -> Iterator[bytes]:
    """Yield a tar of exactly the archive's files, each after its directories; the same archive gives the same bytes.

    Raises InvalidArchive when an entry has more or fewer bytes than it declares.
    """
    above: list[
        str
    ] = []  # those of the last file are enough: files are sorted, so a directory is one run of them
    for entry in archive.entries:
        parents = _parents(entry.path)
        for parent in parents:
            if parent not in above:
                yield _header(parent, tarfile.DIRTYPE, _DIRECTORY_MODE, 0)
        above = parents
        yield from _file(archive, entry)
    yield bytes(2 * _BLOCK)


def _parents(path: str) -> list[str]:
    """Return the directories above a path, the outermost first."""
    return [str(parent) for parent in reversed(PurePosixPath(path).parents)][1:]


def _file(archive: Archive, entry: ArchiveEntry) -> Iterator[bytes]:
    yield _header(entry.path, tarfile.REGTYPE, entry.mode, entry.size)
    count = 0
    with archive.open(entry) as reader:
        while chunk := reader.read(_CHUNK):
            count += len(chunk)
            if count > entry.size:  # before it is sent: one byte more would be read as the next header
                raise InvalidArchive(f"'{entry.path}' is larger than it says.", rule="size_mismatch")
            yield chunk
    if count < entry.size:
        raise InvalidArchive(f"'{entry.path}' is smaller than it says.", rule="size_mismatch")
    yield bytes(-count % _BLOCK)


def _header(name: str, kind: bytes, mode: int, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.type, info.mode, info.size = kind, mode, size
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "strict")

"""An archive as a plain zip, made while it is sent: of whatever the upload came as, its files with their modes."""

import zipfile
from collections.abc import Iterator
from contextlib import ExitStack
from typing import IO, cast

from ci_common.stores import Archive, ArchiveEntry

_PIECE = 256 * 1024
_REGULAR_FILE = 0o100000


class _Sink:
    """What a zip is written to that is taken away piece by piece."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def write(self, data: bytes) -> int:
        self._parts.append(bytes(data))
        return len(data)

    def flush(self) -> None:
        """Nothing: it is taken when it is wanted."""

    def taken(self) -> bytes:
        parts, self._parts = self._parts, []
        return b"".join(parts)


def zip_of(archive: Archive) -> Iterator[bytes]:
    """Yield the bytes of a zip with the archive's files, stored as they are; raises InvalidArchive.

    Not packed: what shrinks a lot would look like an attack to whoever judges the zip.
    """
    sink = _Sink()
    with zipfile.ZipFile(cast(IO[bytes], sink), "w") as made:  # which asks for no more than a sink can
        for entry in archive.entries:
            with archive.open(entry) as reader, made.open(_info(entry), "w") as member:
                while piece := reader.read(_PIECE):
                    member.write(piece)
                    yield sink.taken()
    yield sink.taken()


def sent_of(archive: Archive, kept: ExitStack) -> Iterator[bytes]:
    """Yield the same, and close what kept the archive open."""
    with kept:
        yield from zip_of(archive)


def _info(entry: ArchiveEntry) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(entry.path)
    info.external_attr = (_REGULAR_FILE | entry.mode) << 16
    info.file_size = entry.size  # decides on the form for large files
    return info

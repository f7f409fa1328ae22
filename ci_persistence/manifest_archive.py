"""A manifest that was accepted, as a file beside the zips, and the archive that it is together with its packs.

The file has a line of JSON, the names, one record of fixed size for each file, and the SHA-256 of all that. Only
`manifest_bytes` writes it, of what was judged, so reading it back is checking that sum and no second judgement.
"""

import contextlib
import hashlib
import io
import json
import os
import struct
import threading
import zlib
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple

from ci_common.blobs import BlobPlace, Encoding, Manifest, ManifestFile
from ci_common.stores import Archive, ArchiveEntry
from ci_persistence.entry_reader import READ_SIZE, PackedReader, Span
from ci_persistence.zip_format import refuse

_FORMAT: Final = 1
_RECORD: Final = struct.Struct(">HQ32sIQQB")
_SUM_BYTES: Final = 32
_SMALL: Final = 256 * 1024  # bytes of a file that is read at once

OpenPack = Callable[[str], int]


class _Record(NamedTuple):
    mode: int
    size: int
    sha256: bytes
    pack: int  # which of those that the first line names
    offset: int
    stored: int
    encoding: int


def manifest_bytes(manifest: Manifest, places: Mapping[bytes, BlobPlace]) -> bytes:
    """Return the file: the tree, and where all its contents lie."""
    packs = sorted({place.pack for place in places.values()})
    numbers = {name: number for number, name in enumerate(packs)}
    names = "\n".join(file.path for file in manifest.files).encode()  # which hold no line break
    records = [record(file, places[file.sha256], numbers) for file in manifest.files]
    return sealed((frame(packs, len(records), len(names)), names, *records))


def frame(packs: Sequence[str], files: int, names: int) -> bytes:
    """Return what stands before so many bytes of names and the files' records, which name packs by number."""
    first = {"format": _FORMAT, "packs": packs, "files": files, "names": names}
    return json.dumps(first).encode() + b"\n"


def record(file: ManifestFile, place: BlobPlace, numbers: Mapping[str, int]) -> bytes:
    """Return what the file has of one file beside its name."""
    _, mode, size, sha256 = file
    pack, offset, stored, _, encoding = place
    return _RECORD.pack(mode, size, sha256, numbers[pack], offset, stored, encoding)


def sealed(parts: Iterable[bytes]) -> bytes:
    """Return the file that has these parts."""
    body = b"".join(parts)
    return body + hashlib.sha256(body).digest()


class ManifestArchive(Archive):
    """The tree of a manifest; the hash of each file's bytes is checked whenever they are read."""

    def __init__(self, data: bytes, open_pack: OpenPack) -> None:
        body = memoryview(data)[:-_SUM_BYTES]
        if len(data) < _SUM_BYTES or hashlib.sha256(body).digest() != data[-_SUM_BYTES:]:
            raise refuse("damaged", "The manifest in the store is damaged.")
        end = data.index(b"\n")
        first = json.loads(data[:end])
        names_end = end + 1 + first["names"]
        paths = data[end + 1 : names_end].decode().split("\n")
        self._records = dict(
            zip(paths, map(_Record._make, _RECORD.iter_unpack(body[names_end:])), strict=True)
        )
        self._packs: list[str] = first["packs"]
        self._open_pack = open_pack
        self._lock = threading.Lock()
        self._idle: tuple[int, int] | None = None  # the pack that was read last, with its descriptor
        self._entries = tuple(
            ArchiveEntry(path, one.mode, one.size) for path, one in sorted(self._records.items())
        )

    @property
    def entries(self) -> tuple[ArchiveEntry, ...]:
        return self._entries

    def open(self, entry: ArchiveEntry) -> AbstractContextManager[BinaryIO]:
        record = self._records[entry.path]
        if record.size <= _SMALL and record.stored <= _SMALL:
            with self._descriptor(record.pack) as descriptor:
                data = _whole(descriptor, record)
            if data is not None:
                return contextlib.nullcontext(io.BytesIO(data))
        return self._open(entry, record)  # which also says what is wrong with a small one

    @contextlib.contextmanager
    def _open(self, entry: ArchiveEntry, record: _Record) -> Generator[BinaryIO]:
        with self._descriptor(record.pack) as descriptor:
            reader = _BlobReader(descriptor, repr(entry.path[:200]), record.sha256, record)
            yield io.BufferedReader(reader, READ_SIZE)

    @contextlib.contextmanager
    def _descriptor(self, pack: int) -> Generator[int]:
        """The context is a descriptor of the pack, nobody else's meanwhile.

        The last one stays open: most files lie in the pack of the one before, and in all there may be more packs
        than a process may hold open.
        """
        idle = self._swap_idle(None)
        if idle and idle[0] == pack:
            descriptor = idle[1]
        else:
            _close(idle)
            descriptor = self._open_pack(self._packs[pack])
        try:
            yield descriptor
        finally:
            _close(self._swap_idle((pack, descriptor)))

    def close(self) -> None:
        """Nothing is open any more; reading opens it again."""
        _close(self._swap_idle(None))

    def _swap_idle(self, new: tuple[int, int] | None) -> tuple[int, int] | None:
        with self._lock:
            idle, self._idle = self._idle, new
        return idle


def read_manifest(path: Path, open_pack: OpenPack) -> ManifestArchive:
    """Return the archive of that file; raises InvalidArchive when it is damaged."""
    return ManifestArchive(path.read_bytes(), open_pack)


def read_blob(sha256: bytes, place: BlobPlace, open_pack: OpenPack) -> bytes:
    """Return all of a blob that is not large; raises InvalidArchive."""
    descriptor = open_pack(place.pack)
    try:
        return _BlobReader(descriptor, sha256.hex(), sha256, place).readall()
    finally:
        os.close(descriptor)


def _close(idle: tuple[int, int] | None) -> None:
    if idle:
        os.close(idle[1])


def _whole(descriptor: int, place: "_Record") -> bytes | None:
    """Return the contents of a small file at once, None where they are not what was declared."""
    data = os.pread(descriptor, place.stored, place.offset)
    if place.encoding == Encoding.ZLIB:
        inflate = zlib.decompressobj()
        try:
            data = inflate.decompress(data, place.size + 1)  # and never more, whatever the data says
        except zlib.error:
            return None
        if not inflate.eof or inflate.unused_data:
            return None
    good = len(data) == place.size and hashlib.sha256(data).digest() == place.sha256
    return data if good else None


class _BlobReader(PackedReader):
    """The contents of one file."""

    def __init__(self, descriptor: int, shown: str, sha256: bytes, place: "_Record | BlobPlace") -> None:
        window = zlib.MAX_WBITS if place.encoding == Encoding.ZLIB else None
        span = Span(descriptor, place.offset, place.stored, place.size)
        super().__init__(span, shown, window)
        self._declared = sha256
        self._hash = hashlib.sha256()

    def _add(self, data: bytes) -> None:
        self._hash.update(data)

    def _check_sum(self) -> None:
        if self._hash.digest() != self._declared:
            raise refuse("hash", f"The entry {self._shown} does not match its hash.")

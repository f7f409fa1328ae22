"""Blobs as they travel: bytes under their SHA-256, packed into records. A record never says what its bytes are not."""

import struct
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO, cast

CONTENT_TYPE = "application/vnd.ci.blobs"
SMALL = 4 << 20  # bytes of a file that is read at once
_HEAD = struct.Struct(">32sQQB")  # SHA-256, stored size, size of the original, encoding
_IDENTITY, _ZLIB = 0, 1
_SAMPLE = 1 << 16
_WORTH = 0.9  # what does not shrink by a tenth goes as it is
_CHUNK = 1 << 20
_MOST_RATIO, _RATIO_SLACK = 200, 1 << 20  # what unpacks to more is an attack, to the server


class FileChanged(Exception):
    """A file has other bytes than it was hashed with, or none any more."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.path = path


@dataclass(frozen=True, slots=True)
class Blob:
    """Bytes by their hash: at hand, or in a file."""

    digest: bytes
    size: int
    path: str = ""  # in the project, for people
    source: str = ""  # where the bytes are, unless `data` has them
    data: bytes | None = None


@dataclass(frozen=True, slots=True)
class Packed:
    """Records as a request body: how long they are, and their bytes, to be had once."""

    length: int
    chunks: Iterable[bytes]


def pack(blobs: Iterable[Blob], *, compress: bool) -> Packed:
    """Return the records of blobs; raises FileChanged, a streamed file's only while its bytes are taken."""
    parts: list[bytes] = []
    streams: list[Packed] = []
    for blob in blobs:
        if blob.data is None and blob.size > SMALL:
            streams.append(_streamed(blob, compress=compress))
        else:
            parts += _record(blob, compress=compress)
    length = sum(map(len, parts)) + sum(stream.length for stream in streams)
    return Packed(length, _chain(parts, streams))


def _chain(parts: list[bytes], streams: list[Packed]) -> Iterator[bytes]:
    if parts:
        yield b"".join(parts)
    for stream in streams:
        yield from stream.chunks


def _record(blob: Blob, *, compress: bool) -> tuple[bytes, bytes]:
    data = _bytes_of(blob)
    if compress and (len(data) <= _SAMPLE or _shrinks(data[:_SAMPLE])):
        packed = zlib.compress(data, 1)
        if len(packed) < len(data) and not _looks_like_a_bomb(len(packed), len(data)):
            return _HEAD.pack(blob.digest, len(packed), len(data), _ZLIB), packed
    return _HEAD.pack(blob.digest, len(data), len(data), _IDENTITY), data


def _bytes_of(blob: Blob) -> bytes:
    if blob.data is not None:
        return blob.data
    try:
        data = Path(blob.source).read_bytes()
    except OSError as error:
        raise FileChanged(blob.path) from error
    if sha256(data).digest() != blob.digest:
        raise FileChanged(blob.path)
    return data


def _streamed(blob: Blob, *, compress: bool) -> Packed:
    """Return the record of a big file, of which only pieces are in memory at a time."""
    try:
        file = Path(blob.source).open("rb")  # noqa: SIM115 - whoever takes its pieces closes it
    except OSError as error:
        raise FileChanged(blob.path) from error
    pieces, stored, encoding = _verified(blob, file), blob.size, _IDENTITY
    if compress and _shrinks(file.read(_SAMPLE)):
        packed = _compressed(pieces)
        if _looks_like_a_bomb(packed.tell(), blob.size):
            packed.close()
            return _streamed(blob, compress=False)
        pieces, stored, encoding = _pieces(packed), packed.tell(), _ZLIB
        packed.seek(0)
    return Packed(
        _HEAD.size + stored,
        _chain([_HEAD.pack(blob.digest, stored, blob.size, encoding)], [Packed(stored, pieces)]),
    )


def _verified(blob: Blob, file: BinaryIO) -> Iterator[bytes]:
    """Yield the file's bytes but for the last piece when they are not those that were hashed."""
    with file:
        file.seek(0)
        running, left = sha256(), blob.size
        while left:
            try:
                piece = file.read(min(left, _CHUNK))
            except OSError as error:
                raise FileChanged(blob.path) from error
            running.update(piece)
            left -= len(piece)
            if not piece or (left == 0 and running.digest() != blob.digest):
                raise FileChanged(blob.path)
            yield piece


def _compressed(pieces: Iterable[bytes]) -> BinaryIO:
    import tempfile  # slow to import, and for big files only

    packer = zlib.compressobj(1)
    packed = cast(BinaryIO, tempfile.TemporaryFile(prefix="ci-upload-"))  # noqa: SIM115 - `_pieces` closes it
    for piece in pieces:
        packed.write(packer.compress(piece))
    packed.write(packer.flush())
    return packed


def _pieces(file: BinaryIO) -> Iterator[bytes]:
    with file:
        while piece := file.read(_CHUNK):
            yield piece


def _looks_like_a_bomb(packed: int, size: int) -> bool:
    return size > _MOST_RATIO * packed + _RATIO_SLACK


def _shrinks(sample: bytes) -> bool:
    """Tell whether packing pays, by a sample: pictures, wheels and archives are packed already."""
    return len(zlib.compress(sample, 1)) < _WORTH * len(sample)

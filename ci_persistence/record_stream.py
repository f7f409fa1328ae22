"""Blobs as they are sent: one record after the other, each verified while it passes, in flat memory.

A record is the SHA-256 of the contents (32 bytes), the number of stored bytes that follow and the number of bytes
they unpack to (8 bytes each, big-endian), the encoding (1 byte), then the stored bytes.
"""

import hashlib
import struct
import zlib
from collections.abc import Callable
from typing import Final

from ci_common.blobs import Blob, Encoding
from ci_common.errors import ArchiveTooLarge, InvalidBlob
from ci_persistence.archive_rules import ArchiveLimits

HEADER: Final = struct.Struct(">32sQQB")
MOST_BLOBS: Final = 10_000  # of one request: their rows are one transaction, which everybody waits for
_INPUT = 64 * 1024  # bytes that zlib gets at once: it copies what it did not come to
_OUTPUT = 256 * 1024  # bytes that are unpacked at once


class RecordStream:
    """Takes a body in pieces of any size; what is verified has been handed to `write`, each hash once.

    Raises InvalidBlob, which names the hash, and ArchiveTooLarge. What was written before is worth nothing then.
    """

    def __init__(self, write: Callable[[memoryview], None], limits: ArchiveLimits) -> None:
        self._write = write
        self._limits = limits
        self._head = b""  # the beginning of a header
        self._record: _Record | None = None
        self._skip = False  # the record's contents stand in the pack already
        self._seen: set[bytes] = set()
        self._records = 0
        self._total = 0
        self.blobs: list[Blob] = []
        self.size = 0  # bytes written

    def feed(self, data: bytes) -> None:
        """The next bytes of the body are worked off."""
        view, position = memoryview(self._head + data), 0
        self._head = b""
        while True:
            if self._record is None:
                if len(view) - position < HEADER.size:
                    break
                self._begin(*HEADER.unpack_from(view, position))
                position += HEADER.size
            position += self._pass_on(view[position:])
            if self._record is not None:
                return  # the rest of it comes later
        self._head = bytes(view[position:])

    def finish(self) -> None:
        """The body ended behind a whole record; raises InvalidBlob otherwise."""
        if self._record is not None:
            raise self._record.refused("is cut off")
        if self._head:
            raise InvalidBlob("The body ends within the head of a blob.")

    def _begin(self, sha256: bytes, stored: int, size: int, encoding: int) -> None:
        self._records += 1
        self._total += size
        record = _Record(sha256, stored, size, encoding)
        limits = self._limits
        if self._records > min(MOST_BLOBS, limits.entries):
            most = min(MOST_BLOBS, limits.entries)
            raise ArchiveTooLarge(f"The request has more than {most} blobs; send several.", limit=most)
        if self._total > limits.total_bytes:
            raise ArchiveTooLarge(
                f"The blobs of the request unpack to more than {limits.total_bytes} bytes; send several requests.",
                limit=limits.total_bytes,
            )
        if limits.inflates_too_much(stored, size):
            raise record.refused(
                f"unpacks to more than {limits.ratio} times what is sent; send it as it is, with encoding 0"
            )
        self._record = record
        self._skip = sha256 in self._seen

    def _pass_on(self, view: memoryview) -> int:
        """The record has what belongs to it; returns how many bytes that was."""
        record = self._record
        assert record is not None, "a record has begun"
        taken = record.take(view)
        if taken and not self._skip:
            self._write(view[:taken])
        if not record.left:
            self._end(record)
        return taken

    def _end(self, record: "_Record") -> None:
        record.verify()
        if not self._skip:
            self._seen.add(record.sha256)
            self.blobs.append(
                Blob(record.sha256, self.size, record.stored, record.size, int(record.encoding))
            )
            self.size += record.stored
        self._record = None


class _Record:
    """One blob on its way in."""

    def __init__(self, sha256: bytes, stored: int, size: int, encoding: int) -> None:
        self.sha256, self.stored, self.size = sha256, stored, size
        self.left = stored
        self._got = 0
        self._hash = hashlib.sha256()
        if encoding not in tuple(Encoding):
            raise self.refused(f"has the encoding {encoding}, which does not exist")
        self.encoding = Encoding(encoding)
        self._inflate = zlib.decompressobj() if self.encoding is Encoding.ZLIB else None
        if self._inflate is None and stored != size:
            raise self.refused("is sent as it is, but its two sizes differ")

    def take(self, view: memoryview) -> int:
        """As many of the bytes as belong to the blob are worked off; returns how many."""
        mine = view[: self.left]
        self.left -= len(mine)
        if self._inflate is None:
            self._add(mine)
            return len(mine)
        for start in range(0, len(mine), _INPUT):
            self._unpack(mine[start : start + _INPUT])
        return len(mine)

    def verify(self) -> None:
        """The contents are complete and are those of the hash; raises InvalidBlob."""
        if self._inflate is not None and not self._inflate.eof:
            raise self.refused("is cut off")
        if self._got != self.size:
            raise self.refused(f"has {self._got} bytes and not {self.size}")
        if self._hash.digest() != self.sha256:
            raise self.refused(f"is something else, of hash {self._hash.hexdigest()}")

    def refused(self, what: str) -> InvalidBlob:
        """Return the error that names the blob."""
        return InvalidBlob(f"The blob {self.sha256.hex()} {what}.", sha256=self.sha256.hex())

    def _unpack(self, data: bytes | memoryview) -> None:
        inflate = self._inflate
        assert inflate is not None, "the blob is packed"
        while True:
            # Never more than one byte beyond the declared size, whatever the data says.
            most = min(_OUTPUT, self.size - self._got + 1)
            try:
                out = inflate.decompress(data, most)
            except zlib.error as error:
                raise self.refused(f"is damaged: {error}") from error
            self._add(out)
            data = inflate.unconsumed_tail
            if inflate.eof or (not data and len(out) < most):
                break
        if inflate.unused_data:
            raise self.refused("goes on behind its end")

    def _add(self, data: bytes | memoryview) -> None:
        self._got += len(data)
        if self._got > self.size:
            raise self.refused(f"has more than the {self.size} bytes that it declares")
        self._hash.update(data)

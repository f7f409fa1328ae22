"""Reading one entry of an archive: every byte is counted and summed while it streams, in flat memory."""

import io
import os
import zlib
from typing import BinaryIO

from ci_persistence.zip_format import DEFLATED, RawEntry, refuse

_READ_SIZE = 64 * 1024


class _EntryReader(io.RawIOBase):
    """The bytes of an entry; raises InvalidArchive as soon as they are not what was declared."""

    def __init__(self, descriptor: int, begin: int, entry: RawEntry) -> None:
        self._descriptor = descriptor
        self._entry = entry
        self._position = begin
        self._packed_left = entry.packed
        self._inflate = zlib.decompressobj(-zlib.MAX_WBITS) if entry.method == DEFLATED else None
        self._input = b""
        self._size = 0
        self._crc = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview, /) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
        # Never more than one byte beyond the declared size is unpacked, whatever the data says.
        wanted = min(len(buffer), self._entry.size - self._size + 1)
        data = self._next(wanted)
        self._size += len(data)
        self._crc = zlib.crc32(data, self._crc)
        if self._size > self._entry.size:
            raise refuse("size", f"The entry {self._entry} unpacks to more than it declares.")
        if not data and wanted:
            self._check_end()
        buffer[: len(data)] = data
        return len(data)

    def _next(self, wanted: int) -> bytes:
        if self._inflate is None:
            return self._packed(wanted)
        while not self._inflate.eof:
            if not self._input:
                self._input = self._packed(_READ_SIZE)
            given = self._input
            try:
                data = self._inflate.decompress(given, wanted)
            except zlib.error as error:
                raise refuse("data", f"The entry {self._entry} is damaged: {error}.") from error
            self._input = self._inflate.unconsumed_tail
            if data:
                return data
            if not given:
                raise refuse("data", f"The entry {self._entry} is cut off.")
        return b""

    def _packed(self, length: int) -> bytes:
        data = os.pread(self._descriptor, min(length, self._packed_left), self._position)
        self._position += len(data)
        self._packed_left -= len(data)
        return data

    def _check_end(self) -> None:
        unread = self._packed_left or self._input or (self._inflate is not None and self._inflate.unused_data)
        if self._size != self._entry.size or unread:
            raise refuse("size", f"The entry {self._entry} is not as long as it declares.")
        if self._crc != self._entry.crc:
            raise refuse("crc", f"The entry {self._entry} does not match its checksum.")


def open_entry(descriptor: int, begin: int, entry: RawEntry) -> BinaryIO:
    """Return a reader of the entry whose packed bytes begin there; it does not own the descriptor."""
    return io.BufferedReader(_EntryReader(descriptor, begin, entry), _READ_SIZE)


def check_entry(descriptor: int, begin: int, entry: RawEntry, buffer: memoryview) -> None:
    """The entry's bytes are what was declared; raises InvalidArchive. The buffer's content is lost."""
    reader = _EntryReader(descriptor, begin, entry)
    while reader.readinto(buffer):
        pass

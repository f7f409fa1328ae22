"""Reading one packed file out of a larger one: every byte is counted and summed while it streams, in flat memory."""

import io
import os
import zlib
from abc import abstractmethod
from dataclasses import dataclass
from typing import BinaryIO

from ci_persistence.zip_format import DEFLATED, RawEntry, refuse

READ_SIZE = 64 * 1024


@dataclass(frozen=True, slots=True)
class Span:
    """Where packed bytes lie in an open file, and how many there are before and after unpacking."""

    descriptor: int
    begin: int
    packed: int
    size: int


class PackedReader(io.RawIOBase):
    """The bytes of one file; raises InvalidArchive as soon as they are not what was declared."""

    def __init__(self, span: Span, shown: object, window: int | None) -> None:
        """`shown` is what the file is called in messages, `window` zlib's, None for what is stored as it is."""
        self._span = span
        self._shown = shown
        self._position = span.begin
        self._packed_left = span.packed
        self._inflate = None if window is None else zlib.decompressobj(window)
        self._input = b""
        self._size = 0

    @abstractmethod
    def _add(self, data: bytes) -> None:
        """These bytes come next; the sum is taken of them."""

    @abstractmethod
    def _check_sum(self) -> None:
        """All bytes are as they were; raises InvalidArchive."""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview, /) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
        # Never more than one byte beyond the declared size is unpacked, whatever the data says.
        wanted = min(len(buffer), self._span.size - self._size + 1)
        data = self._next(wanted)
        self._size += len(data)
        self._add(data)
        if self._size > self._span.size:
            raise refuse("size", f"The entry {self._shown} unpacks to more than it declares.")
        if not data and wanted:
            self._check_end()
        buffer[: len(data)] = data
        return len(data)

    def _next(self, wanted: int) -> bytes:
        if self._inflate is None:
            return self._packed(wanted)
        while not self._inflate.eof:
            if not self._input:
                self._input = self._packed(READ_SIZE)
            given = self._input
            try:
                data = self._inflate.decompress(given, wanted)
            except zlib.error as error:
                raise refuse("data", f"The entry {self._shown} is damaged: {error}.") from error
            self._input = self._inflate.unconsumed_tail
            if data:
                return data
            if not given:
                raise refuse("data", f"The entry {self._shown} is cut off.")
        return b""

    def _packed(self, length: int) -> bytes:
        data = os.pread(self._span.descriptor, min(length, self._packed_left), self._position)
        self._position += len(data)
        self._packed_left -= len(data)
        return data

    def _check_end(self) -> None:
        unread = self._packed_left or self._input or (self._inflate is not None and self._inflate.unused_data)
        if self._size != self._span.size or unread:
            raise refuse("size", f"The entry {self._shown} is not as long as it declares.")
        self._check_sum()


class _EntryReader(PackedReader):
    """The bytes of an entry of a zip archive."""

    def __init__(self, descriptor: int, begin: int, entry: RawEntry) -> None:
        window = -zlib.MAX_WBITS if entry.method == DEFLATED else None
        super().__init__(Span(descriptor, begin, entry.packed, entry.size), entry, window)
        self._declared = entry.crc
        self._crc = 0

    def _add(self, data: bytes) -> None:
        self._crc = zlib.crc32(data, self._crc)

    def _check_sum(self) -> None:
        if self._crc != self._declared:
            raise refuse("crc", f"The entry {self._shown} does not match its checksum.")


def open_entry(descriptor: int, begin: int, entry: RawEntry) -> BinaryIO:
    """Return a reader of the entry whose packed bytes begin there; it does not own the descriptor."""
    return io.BufferedReader(_EntryReader(descriptor, begin, entry), READ_SIZE)


def check_entry(descriptor: int, begin: int, entry: RawEntry, buffer: memoryview) -> None:
    """The entry's bytes are what was declared; raises InvalidArchive. The buffer's content is lost."""
    reader = _EntryReader(descriptor, begin, entry)
    while reader.readinto(buffer):
        pass

"""Logs that are not written any more, compressed: zstd in frames of which each stands alone, and where they lie.

The form is zstd's own "seekable format": the frames, then a table of their sizes in a frame that decoders skip. So
`zstd -dc` prints such a file, and any part of it costs the frames it lies in. Nothing that a file says of itself is
believed beyond fixed bounds: no read holds more than one frame.
"""

import errno
import os
import struct
import sys
from bisect import bisect_right
from collections.abc import Iterator
from hashlib import sha256
from itertools import accumulate
from typing import Final

from ci_common.models import LogSeal
from ci_persistence.descriptors import read_fully, write_fully

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

FRAME_BYTES: Final = (
    256 * 1024
)  # of text: decoded in a third of a millisecond, and within 2 % of one great frame
_MOST_FRAME_BYTES: Final = 1024 * 1024  # that are read, whoever wrote them
_MOST_FRAMES: Final = 1 << 16
_SKIPPED: Final = 0x184D2A5E  # begins what decoders skip
_SEEKABLE: Final = 0x8F92EAB1
_HEAD = struct.Struct("<II")  # that number, and how long the rest of the table is
_ENTRY = struct.Struct("<II")  # bytes of a frame, and of its text
_FOOTER = struct.Struct("<IBI")  # how many frames, no options, the number of the format
_WINDOW_LOG = 20  # a megabyte: what decoding may look back on


class DamagedFrames(OSError):
    """What the disk gives back is not what was written there."""

    def __init__(self, what: str) -> None:
        super().__init__(errno.EIO, f"a compressed log is damaged: {what}")


def compress(source: int, target: int) -> LogSeal:
    """`target` has, in frames, what stands in `source`; returns size and hash of that. Nothing is synced."""
    compressor = zstd.ZstdCompressor(options={zstd.CompressionParameter.checksum_flag: 1})
    entries, digest, size = list[bytes](), sha256(), 0
    while text := read_fully(source, size, FRAME_BYTES):
        frame = compressor.compress(text, compressor.FLUSH_FRAME)
        write_fully(target, frame)
        entries.append(_ENTRY.pack(len(frame), len(text)))
        digest.update(text)
        size += len(text)
    table = b"".join((*entries, _FOOTER.pack(len(entries), 0, _SEEKABLE)))
    write_fully(target, _HEAD.pack(_SKIPPED, len(table)) + table)
    return LogSeal(size, digest.hexdigest())


class FramedText:
    """The text of such a file, by offset; the frame read last is kept, so that reading on decodes each once."""

    def __init__(self, descriptor: int) -> None:
        """The file's table was read. Raises DamagedFrames."""
        self._descriptor = descriptor
        sizes = _table(descriptor)
        self._places = [0, *accumulate(stored for stored, _ in sizes)]
        self._starts = [0, *accumulate(text for _, text in sizes)]
        self._kept = (-1, b"")

    @property
    def size(self) -> int:
        """The bytes of text."""
        return self._starts[-1]

    def read(self, offset: int, length: int) -> bytes:
        """Return at most so many bytes from there; empty at the end. Raises DamagedFrames."""
        parts, end = list[bytes](), min(offset + length, self.size)
        while offset < end:
            number = bisect_right(self._starts, offset) - 1
            start = self._starts[number]
            part = self._text(number)[offset - start : end - start]
            parts.append(part)
            offset += len(part)
        return b"".join(parts)

    def pieces(self) -> Iterator[bytes]:
        """Yield the text from its beginning, frame by frame."""
        for number in range(len(self._starts) - 1):
            yield self._text(number)

    def _text(self, number: int) -> bytes:
        if self._kept[0] != number:
            size = self._starts[number + 1] - self._starts[number]
            place, end = self._places[number : number + 2]
            self._kept = (number, _decoded(read_fully(self._descriptor, place, end - place), size))
        return self._kept[1]


def _decoded(frame: bytes, size: int) -> bytes:
    decoder = zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: _WINDOW_LOG})
    try:
        text = decoder.decompress(frame, max_length=size + 1)  # and never more, whatever the frame says
    except zstd.ZstdError as error:
        raise DamagedFrames(str(error)) from error
    if len(text) != size or not decoder.eof:
        raise DamagedFrames("a frame is not as long as the table says")
    return text


def _table(descriptor: int) -> list[tuple[int, int]]:
    """Return the sizes of each frame: stored, and of its text."""
    end = os.fstat(descriptor).st_size
    footer = read_fully(descriptor, max(0, end - _FOOTER.size), _FOOTER.size)
    if len(footer) != _FOOTER.size:
        raise DamagedFrames("it has no table")
    count, options, number = _FOOTER.unpack(footer)
    if number != _SEEKABLE or options or count > _MOST_FRAMES:
        raise DamagedFrames("it does not end with a table of ours")
    rest = count * _ENTRY.size + _FOOTER.size
    start = end - rest - _HEAD.size
    if start < 0 or read_fully(descriptor, start, _HEAD.size) != _HEAD.pack(_SKIPPED, rest):
        raise DamagedFrames("its table does not begin where it should")
    entries = read_fully(descriptor, start + _HEAD.size, count * _ENTRY.size)
    sizes: list[tuple[int, int]] = list(_ENTRY.iter_unpack(entries))
    if sum(stored for stored, _ in sizes) != start:
        raise DamagedFrames("its frames are not as long as the table says")
    if any(not 0 < text <= _MOST_FRAME_BYTES or stored > 2 * _MOST_FRAME_BYTES for stored, text in sizes):
        raise DamagedFrames("its table has a frame that we never write")
    return sizes

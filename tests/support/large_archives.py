"""Archives that are large where it hurts, written without much work: to measure what judging them costs."""

import struct
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import BinaryIO

_MIB = 1024 * 1024
_PADDING = struct.pack("<B2H", 0, 0, 0xFFFF)  # an empty stored block: padding that unpacks to nothing


def write_entries(path: Path, names: Iterable[bytes], *, extra: int = 0, comment: int = 0) -> None:
    """The archive holds an empty file under each name, with that many zeros as extra fields and as comment."""
    central: list[bytes] = []
    offset = 0
    with path.open("wb") as file:
        for name in names:
            header = struct.pack("<5H3L2H", 20, 0, 0, 0, 33, 0, 0, 0, len(name), extra)
            file.write(b"PK\3\4" + header + name)
            _leave_hole(file, extra)
            more = struct.pack("<3H2L", comment, 0, 0, 0, offset)
            central.append(b"PK\1\2" + struct.pack("<H", 20) + header + more + name)
            offset += 4 + len(header) + len(name) + extra
        for record in central:
            file.write(record)
            _leave_hole(file, extra + comment)
        _finish(file.write, offset, file.tell() - offset, len(central))


def _leave_hole(file: BinaryIO, size: int) -> None:
    """So many zeros follow, which cost nothing; seeking to where one is would write out what is gathered."""
    if size:
        file.seek(size, 1)


def _finish(write: Callable[[bytes], object], start: int, size: int, count: int) -> None:
    end = start + size
    write(b"PK\6\6" + struct.pack("<Q2H2L4Q", 44, 45, 45, 0, 0, count, count, size, start))
    write(b"PK\6\7" + struct.pack("<LQL", 0, end, 1))
    write(b"PK\5\6" + struct.pack("<4H2LH", 0, 0, min(count, 0xFFFF), min(count, 0xFFFF), size, start, 0))


def write_zeros(path: Path, mebibytes: int, *, declared: int | None = None, ratio: int | None = None) -> None:
    """The archive's one file unpacks to that many MiB of zeros, each packed to a `ratio`-th of itself.

    It declares another size if it is told to. Without a ratio it is as small as deflate can make it.
    """
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = packer.compress(bytes(_MIB)) + packer.flush(zlib.Z_FULL_FLUSH)
    if ratio is not None:
        block += _PADDING * ((_MIB // ratio - len(block)) // len(_PADDING) + 1)
    packed = block * mebibytes + zlib.compressobj(9, zlib.DEFLATED, -15).flush()
    size = mebibytes * _MIB if declared is None else declared
    crc = 0
    for _ in range(mebibytes if declared is None else 0):
        crc = zlib.crc32(bytes(_MIB), crc)
    header = struct.pack("<5H3L2H", 20, 0, 8, 0, 33, crc, len(packed), size, 1, 0)
    central = b"PK\1\2" + struct.pack("<H", 20) + header + struct.pack("<3H2L", 0, 0, 0, 0, 0) + b"z"
    with path.open("wb") as file:
        file.write(b"PK\3\4" + header + b"z" + packed + central)
        _finish(file.write, file.tell() - len(central), len(central), 1)

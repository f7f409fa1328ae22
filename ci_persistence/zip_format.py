"""The structure of a zip file, read strictly: every byte is accounted for once, or InvalidArchive says why not.

Only what the format says is looked at here; which names, sizes and kinds of entries we take is decided in
`archive_validator`. Format: APPNOTE.TXT 6.3.10, https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from ci_common.errors import InvalidArchive

STORED, DEFLATED = 0, 8

_EOCD = struct.Struct("<4s4H2LH")
_ZIP64_LOCATOR = struct.Struct("<4sLQL")
_ZIP64_EOCD = struct.Struct("<4sQ2H2L4Q")
_CENTRAL = struct.Struct("<4s4B4HL2L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")
_EXTRA = struct.Struct("<2H")

_MAX_COMMENT = 0xFFFF
_MAX16, _MAX32 = 0xFFFF, 0xFFFFFFFF
_ZIP64_EXTRA = 0x0001
_UNICODE_PATH_EXTRA = 0x7075
_NEWEST_VERSION = 63  # 6.3: what APPNOTE 4.4.3 knows; other readers refuse more
_MAX_EXTRA_FIELDS = 16  # of one entry; archivers write at most six
_ENCRYPTED, _DESCRIPTOR, _STRONG_ENCRYPTION, _MASKED = 1 << 0, 1 << 3, 1 << 6, 1 << 13
_KNOWN_FLAGS = 0b110 | _DESCRIPTOR | 1 << 11  # how hard deflate tried; the name is UTF-8


def refuse(rule: str, detail: str) -> InvalidArchive:
    """Return the error for a broken rule, with its name for the problem document."""
    return InvalidArchive(detail, rule=rule)


@dataclass(frozen=True, slots=True)
class Directory:
    """Where the central directory lies and how many entries it says it has."""

    offset: int
    size: int
    count: int


@dataclass(frozen=True, slots=True)
class RawEntry:
    """One entry of the central directory."""

    name: bytes
    method: int
    flags: int
    crc: int
    packed: int
    size: int
    header_offset: int
    mode: int  # of Unix, 0 where the archive has none
    dos_attributes: int

    def __str__(self) -> str:
        return repr(self.name[:200].decode("utf-8", "backslashreplace"))


def find_directory(file: BinaryIO) -> Directory:
    """Return the place of the central directory, which must end where its end records begin."""
    end = file.seek(0, 2)
    tail_start = max(0, end - _EOCD.size - _MAX_COMMENT)
    file.seek(tail_start)
    tail = file.read()
    position = _end_record(tail)
    _, disk, first_disk, here, count, size, offset, _ = _EOCD.unpack_from(tail, position)
    found = Directory(offset, size, count)
    found, directory_end = _with_zip64(file, found, tail_start + position)
    if disk or first_disk or here != count:
        raise refuse("multi_disk", "The archive is split over several disks.")
    if found.offset + found.size != directory_end:
        raise refuse("framing", "The archive's directory does not end where its end record begins.")
    return found


def _end_record(tail: bytes) -> int:
    """Return where the end record is: the only one whose comment ends with the file."""
    position = tail.find(b"PK\x05\x06")
    seen = position >= 0
    while position >= 0:
        if len(tail) >= position + _EOCD.size:
            comment = _EOCD.unpack_from(tail, position)[7]
            if position + _EOCD.size + comment == len(tail):
                break
        position = tail.find(b"PK\x05\x06", position + 1)
    if position < 0 and seen:
        raise refuse("trailing_data", "There is data after the end of the archive.")
    if position < 0:
        raise refuse("not_a_zip", "The upload is not a zip archive.")
    if tail.find(b"PK\x05\x06", position + 1) >= 0:
        raise refuse("framing", "The archive has more than one end record.")
    return position


def _with_zip64(file: BinaryIO, found: Directory, end: int) -> tuple[Directory, int]:
    """Return the directory and where it must end, after looking at the zip64 end records, if there are any."""
    saturated = found.count == _MAX16 or found.size == _MAX32 or found.offset == _MAX32
    locator = _read_at(file, end - _ZIP64_LOCATOR.size, _ZIP64_LOCATOR.size) if end >= 20 else b""
    if not locator.startswith(b"PK\x06\x07"):
        if saturated:
            raise refuse("zip64", "The archive's zip64 end record is missing.")
        return found, end
    _, disk, record_offset, disks = _ZIP64_LOCATOR.unpack(locator)
    if (
        record_offset != end - _ZIP64_LOCATOR.size - _ZIP64_EOCD.size
        or record_offset < 0
        or disk
        or disks != 1
    ):
        raise refuse("zip64", "The archive's zip64 end record is not where it belongs.")
    file.seek(record_offset)
    fields = _ZIP64_EOCD.unpack(_exactly(file, _ZIP64_EOCD.size))
    signature, record_size, _, _, disk, first_disk, here, count, size, offset = fields
    if (
        signature != b"PK\x06\x06"
        or record_size != _ZIP64_EOCD.size - 12
        or disk
        or first_disk
        or here != count
    ):
        raise refuse("zip64", "The archive's zip64 end record is malformed.")
    for small, large, sentinel in (
        (found.count, count, _MAX16),
        (found.size, size, _MAX32),
        (found.offset, offset, _MAX32),
    ):
        if small not in (large, sentinel):
            raise refuse("zip64", "The archive's two end records contradict each other.")
    return Directory(offset, size, count), record_offset


def read_directory(file: BinaryIO, directory: Directory) -> Iterator[RawEntry]:
    """Yield the entries of the central directory, which must fill it exactly."""
    file.seek(directory.offset)
    left = directory.size
    for _ in range(directory.count):
        fields = _CENTRAL.unpack(_exactly(file, _CENTRAL.size))
        signature, _, _, needed, _, flags, method, _, _, crc, packed, size, *rest = fields
        name_length, extra_length, comment_length, disk, _, attributes, offset = rest
        if signature != b"PK\x01\x02":
            raise refuse("framing", "The archive's directory is malformed.")
        variable = name_length + extra_length + comment_length
        left -= _CENTRAL.size + variable
        if left < 0:
            raise refuse("framing", "The archive's directory is larger than it says.")
        name = _exactly(file, name_length)
        extra = _extra_fields(_exactly(file, extra_length))
        _exactly(file, comment_length)
        if disk:
            raise refuse("multi_disk", "The archive is split over several disks.")
        if needed > _NEWEST_VERSION:
            raise refuse("version", "The archive needs a newer version of zip than there is.")
        _check_unicode_path(extra, name)
        size, packed, offset = _zip64_values(extra, (size, packed, offset))
        yield RawEntry(name, method, flags, crc, packed, size, offset, attributes >> 16, attributes & _MAX16)
    if left:
        raise refuse("framing", "The archive's directory is smaller than it says.")


def data_span(file: BinaryIO, entry: RawEntry, limit: int) -> tuple[int, int]:
    """Return where the entry's bytes begin and where all that belongs to it ends, `limit` at most.

    The local header must say what the directory says: whoever reads only one of them sees the same file.
    """
    file.seek(entry.header_offset)
    fields = _LOCAL.unpack(_exactly(file, _LOCAL.size))
    signature, _, flags, method, _, _, crc, packed, size, name_length, extra_length = fields
    if signature != b"PK\x03\x04":
        raise refuse("framing", f"The entry {entry} does not begin where the directory says.")
    name = _exactly(file, name_length)
    extra = _extra_fields(_exactly(file, extra_length))
    if (name, method, flags) != (entry.name, entry.method, entry.flags):
        raise _mismatch(entry)
    _check_unicode_path(extra, name)
    size, packed = _zip64_values(extra, (size, packed))
    begin = entry.header_offset + _LOCAL.size + name_length + extra_length
    end = begin + entry.packed
    if end > limit:  # also: what is added below may be no offset that a file can have
        raise _beyond(entry)
    if (crc, packed, size) == (entry.crc, entry.packed, entry.size) and not flags & _DESCRIPTOR:
        return begin, end
    if not flags & _DESCRIPTOR or any(
        local not in (0, central)
        for local, central in ((crc, entry.crc), (packed, entry.packed), (size, entry.size))
    ):
        raise _mismatch(entry)
    end += _descriptor_length(file, entry, end, wide=_ZIP64_EXTRA in extra)
    if end > limit:
        raise _beyond(entry)
    return begin, end


def _descriptor_length(file: BinaryIO, entry: RawEntry, position: int, *, wide: bool) -> int:
    values = struct.pack("<LQQ" if wide else "<LLL", entry.crc, entry.packed, entry.size)
    found = _read_at(file, position, len(values) + 4)
    if found == b"PK\x07\x08" + values:
        return len(found)
    if found.startswith(values):  # the signature is optional
        return len(values)
    raise _mismatch(entry)


def check_features(entry: RawEntry) -> None:
    """The entry uses nothing but plain or deflated data; raises InvalidArchive otherwise."""
    if entry.flags & (_ENCRYPTED | _STRONG_ENCRYPTION | _MASKED):
        raise refuse("encrypted", f"The entry {entry} is encrypted.")
    if entry.flags & ~_KNOWN_FLAGS:
        raise refuse("flags", f"The entry {entry} needs a feature of zip that is not supported.")
    if entry.method not in (STORED, DEFLATED):
        raise refuse("method", f"The entry {entry} is compressed by method {entry.method}; use deflate.")
    if entry.method == STORED and entry.packed != entry.size:
        raise refuse("size", f"The entry {entry} is stored, but its two sizes differ.")


def _mismatch(entry: RawEntry) -> InvalidArchive:
    return refuse("header_mismatch", f"The entry {entry} contradicts the archive's directory.")


def _beyond(entry: RawEntry) -> InvalidArchive:
    return refuse("overlap", f"The entry {entry} overlaps the archive's directory.")


def _extra_fields(data: bytes) -> dict[int, bytes]:
    fields: dict[int, bytes] = {}
    position = count = 0
    while position + _EXTRA.size <= len(data):
        kind, length = _EXTRA.unpack_from(data, position)
        position += _EXTRA.size
        count += 1
        if count > _MAX_EXTRA_FIELDS:  # 64 KiB hold 16 384 empty ones: much work for nothing
            raise refuse("extra_fields", "An entry of the archive has too many extra fields.")
        if position + length > len(data):
            raise refuse("framing", "An extra field of the archive is cut off.")
        if kind in fields and kind in (_ZIP64_EXTRA, _UNICODE_PATH_EXTRA):
            raise refuse("zip64", "An entry of the archive has the same extra field twice.")
        fields[kind] = data[position : position + length]
        position += length
    return fields


def _zip64_values(extra: dict[int, bytes], values: tuple[int, ...]) -> tuple[int, ...]:
    """Return the values, those that are saturated taken from the zip64 field, which must hold exactly them."""
    saturated = sum(value == _MAX32 for value in values)
    field = extra.get(_ZIP64_EXTRA, b"")
    if _ZIP64_EXTRA not in extra and not saturated:
        return values
    if len(field) != 8 * saturated:
        raise refuse("zip64", "An entry's zip64 field does not fit its header.")
    large = iter(struct.unpack(f"<{saturated}Q", field))
    return tuple(next(large) if value == _MAX32 else value for value in values)


def _check_unicode_path(extra: dict[int, bytes], name: bytes) -> None:
    # Readers that know this field take the name from it: a second name nobody else sees.
    field = extra.get(_UNICODE_PATH_EXTRA)
    if field is not None and field[5:] != name:
        raise refuse("header_mismatch", "An entry of the archive has two different names.")


def _read_at(file: BinaryIO, position: int, length: int) -> bytes:
    file.seek(position)
    return file.read(length)


def _exactly(file: BinaryIO, length: int) -> bytes:
    data = file.read(length)
    if len(data) != length:
        raise refuse("framing", "The archive is cut off.")
    return data

"""Zip archives for tests: honest ones by the standard library, hostile ones byte by byte."""

import io
import stat
import struct
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass


def zip_of(files: Mapping[str, bytes]) -> bytes:
    """Return an honest archive of these files."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()


@dataclass
class Item:
    """One entry as the builder writes it; fields that lie are set by hand."""

    name: bytes = b"a.txt"
    data: bytes = b"hello"
    mode: int = stat.S_IFREG | 0o644
    method: int = 0
    flags: int = 0
    packed: bytes | None = None  # None: `data`, packed by `method`
    size: int | None = None  # None: the truth; written to both headers
    crc: int | None = None
    local_name: bytes | None = None
    local_size: int | None = None
    offset: int | None = None  # of the local header, as the directory says
    extra: bytes = b""
    local_extra: bytes | None = None
    disk: int = 0
    omit_local: bool = False

    def body(self) -> bytes:
        if self.packed is not None:
            return self.packed
        if self.method != 8:
            return self.data
        packer = zlib.compressobj(9, zlib.DEFLATED, -15)
        return packer.compress(self.data) + packer.flush()


def build(
    *items: Item,
    prefix: bytes = b"",
    gap: bytes = b"",
    comment: bytes = b"",
    trailing: bytes = b"",
    **end: int,
) -> bytes:
    """Return the archive these items make; `end` overrides fields of the end record."""
    out, central = bytearray(prefix), bytearray()
    for item in items:
        offset = len(out) if item.offset is None else item.offset
        if not item.omit_local:
            out += _local(item)
        central += _central(item, offset)
    out += gap
    fields = {
        "disk": 0,
        "here": len(items),
        "count": len(items),
        "size": len(central),
        "offset": len(out),
        **end,
    }
    record = struct.pack(
        "<4s4H2LH",
        b"PK\x05\x06",
        fields["disk"],
        fields["disk"],
        fields["here"],
        fields["count"],
        fields["size"],
        fields["offset"],
        len(comment),
    )
    return bytes(out + central + record + comment + trailing)


def _sizes(item: Item) -> tuple[int, int, int]:
    crc = zlib.crc32(item.data) if item.crc is None else item.crc
    return crc, len(item.body()), len(item.data) if item.size is None else item.size


def _local(item: Item) -> bytes:
    crc, packed, size = _sizes(item)
    size = size if item.local_size is None else item.local_size
    name = item.name if item.local_name is None else item.local_name
    extra = item.extra if item.local_extra is None else item.local_extra
    header = struct.pack(
        "<4s5H3L2H",
        b"PK\x03\x04",
        20,
        item.flags,
        item.method,
        0,
        33,
        crc,
        packed,
        size,
        len(name),
        len(extra),
    )
    return header + name + extra + item.body()


def _central(item: Item, offset: int) -> bytes:
    crc, packed, size = _sizes(item)
    header = struct.pack(
        "<4s4B4HL2L5H2L",
        b"PK\x01\x02",
        20,
        3,
        20,
        0,
        item.flags,
        item.method,
        0,
        33,
        crc,
        packed,
        size,
        len(item.name),
        len(item.extra),
        0,
        item.disk,
        0,
        item.mode << 16,
        offset,
    )
    return header + item.name + item.extra


def _zip64(*values: int) -> bytes:
    return struct.pack(f"<2H{len(values)}Q", 1, 8 * len(values), *values)


def _unicode_path(name: bytes, other: bytes) -> bytes:
    body = struct.pack("<BL", 1, zlib.crc32(name)) + other
    return struct.pack("<2H", 0x7075, len(body)) + body


def _files(count: int) -> list[Item]:
    return [Item(name=f"f{number}".encode()) for number in range(count)]


_ZEROS = 4 * 1024 * 1024
_BIG_ZEROS = Item(data=bytes(_ZEROS), method=8)
_HALF_DEFLATE = Item(data=b"x" * 1000, method=8).body()[:-2]

# Every way to be refused: what it is -> (the archive, the rule that it breaks).
HOSTILE: dict[str, tuple[bytes, str]] = {
    "nothing at all": (b"", "not_a_zip"),
    "text": (b"hello, world\n" * 100, "not_a_zip"),
    "no entries": (build(), "empty"),
    "only directories": (build(Item(b"d/", b"", stat.S_IFDIR | 0o755)), "empty"),
    "parent": (build(Item(b"../evil")), "path"),
    "parent inside": (build(Item(b"a/../../evil")), "path"),
    "absolute": (build(Item(b"/etc/passwd")), "path"),
    "drive": (build(Item(b"C:/evil")), "path"),
    "backslash": (build(Item(b"a\\b")), "path"),
    "NUL": (build(Item(b"a\0.txt")), "path"),
    "control character": (build(Item(b"a\x1b[31m")), "path"),
    "C1 control character": (build(Item("a\x9b".encode())), "path"),
    "dot": (build(Item(b"./a")), "path"),
    "empty component": (build(Item(b"a//b")), "path"),
    "empty name": (build(Item(b"")), "path"),
    "latin-1": (build(Item("é".encode("latin-1"))), "encoding"),
    "decomposed": (build(Item("e\u0301".encode())), "encoding"),
    "symlink": (build(Item(b"link", b"/etc/passwd", stat.S_IFLNK | 0o777)), "special_entry"),
    "fifo": (build(Item(b"fifo", b"", stat.S_IFIFO | 0o644)), "special_entry"),
    "device": (build(Item(b"null", b"", stat.S_IFCHR | 0o666)), "special_entry"),
    "directory without a slash": (build(Item(b"d", b"", stat.S_IFDIR | 0o755), Item()), "special_entry"),
    "directory with content": (build(Item(b"d/", b"x", stat.S_IFDIR | 0o755), Item()), "special_entry"),
    "duplicate": (build(Item(), Item(data=b"other")), "duplicate"),
    "differs in case": (build(Item(b"README"), Item(b"readme")), "collision"),
    "directories differ in case": (build(Item(b"Src/a"), Item(b"src/b")), "collision"),
    "folds to the same": (build(Item("stra\u00dfe".encode()), Item(b"STRASSE")), "collision"),
    "file, then directory": (build(Item(b"a"), Item(b"a/b")), "collision"),
    "directory, then file": (build(Item(b"a/b"), Item(b"a")), "collision"),
    "encrypted": (build(Item(flags=1)), "encrypted"),
    "strongly encrypted": (build(Item(flags=1 << 6)), "encrypted"),
    "unknown method": (build(Item(method=12)), "method"),
    "wrong checksum": (build(Item(crc=1)), "crc"),
    "wrong checksum, deflated": (build(Item(method=8, crc=1)), "crc"),
    "larger than declared": (build(Item(data=b"x" * 1000, method=8, size=999)), "size"),
    "smaller than declared": (build(Item(data=b"x" * 1000, method=8, size=1001)), "size"),
    "stored with two sizes": (build(Item(size=4)), "size"),
    "data after the deflate stream": (
        build(Item(method=8, packed=Item(method=8).body() + b"more")),
        "size",
    ),
    "cut deflate stream": (build(Item(data=b"x" * 1000, method=8, packed=_HALF_DEFLATE)), "data"),
    "not a deflate stream": (build(Item(method=8, packed=b"\xff" * 40)), "data"),
    "bomb": (build(_BIG_ZEROS), "ratio"),
    "unpacks to too much": (
        build(*(Item(f"f{n}".encode(), b"x" * 700_000) for n in range(3))),
        "unpacked_size",
    ),
    "too many entries": (build(*_files(21)), "too_many_entries"),
    "claims too many entries": (build(Item(), count=5000, here=5000), "too_many_entries"),
    "overlapping": (build(Item(b"a", b"x" * 100), Item(b"a2", offset=20, omit_local=True)), "overlap"),
    "two entries on one header": (build(Item(b"a"), Item(b"a", offset=0, omit_local=True)), "overlap"),
    "directory outside the file": (build(Item(), offset=10_000_000), "framing"),
    "directory is shorter": (build(Item(), Item(b"b"), count=1, here=1), "framing"),
    "directory is longer": (build(Item(), count=2, here=2), "framing"),
    "header outside the data": (build(Item(offset=1_000_000)), "framing"),
    "data in front": (build(Item(), prefix=b"#!/bin/sh\n"), "framing"),
    "data in a gap": (build(Item(), gap=b"hidden"), "framing"),
    "trailing data": (build(Item(), trailing=b"hidden"), "trailing_data"),
    "two end records": (build(Item(), comment=build()), "framing"),
    "several disks": (build(Item(), disk=1), "multi_disk"),
    "entry on another disk": (build(Item(disk=1)), "multi_disk"),
    "another name in the local header": (build(Item(local_name=b"b.txt")), "header_mismatch"),
    "another size in the local header": (build(Item(local_size=4)), "header_mismatch"),
    "another name in a Unicode field": (
        build(Item(extra=_unicode_path(b"a.txt", b"../evil"))),
        "header_mismatch",
    ),
    "no descriptor where one is promised": (build(Item(flags=8)), "header_mismatch"),
    "zip64 field nobody asked for": (build(Item(extra=_zip64(5))), "zip64"),
    "zip64 field missing": (build(Item(size=0xFFFFFFFF, method=8)), "zip64"),
    "zip64 end record missing": (build(Item(), count=0xFFFF, here=0xFFFF), "zip64"),
    "extra field cut off": (build(Item(extra=struct.pack("<2H", 1, 400))), "framing"),
    "too deep": (build(Item(b"/".join([b"d"] * 33))), "path_length"),
    "name too long": (build(Item(b"n" * 256)), "path_length"),
    "path too long": (build(Item(b"/".join([b"p" * 200] * 6))), "path_length"),
}

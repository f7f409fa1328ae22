"""Zip archives for tests: honest ones by the standard library, hostile ones byte by byte."""

import io
import stat
import struct
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace


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
    packed_size: int | None = None
    crc: int | None = None
    local_name: bytes | None = None
    local_size: int | None = None
    offset: int | None = None  # of the local header, as the directory says
    extra: bytes = b""
    local_extra: bytes | None = None
    disk: int = 0
    omit_local: bool = False
    dos: int = 0  # the attributes that MS-DOS and Windows know
    local_method: int | None = None
    local_flags: int | None = None
    local_crc: int | None = None
    descriptor: bytes = b""
    comment: bytes = b""
    needed: int = 20  # the version of zip, times ten

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
    packed = len(item.body()) if item.packed_size is None else item.packed_size
    return crc, packed, len(item.data) if item.size is None else item.size


def _local(item: Item) -> bytes:
    crc, packed, size = _sizes(item)
    size = size if item.local_size is None else item.local_size
    name = item.name if item.local_name is None else item.local_name
    extra = item.extra if item.local_extra is None else item.local_extra
    header = struct.pack(
        "<4s5H3L2H",
        b"PK\x03\x04",
        20,
        item.flags if item.local_flags is None else item.local_flags,
        item.method if item.local_method is None else item.local_method,
        0,
        33,
        crc if item.local_crc is None else item.local_crc,
        packed,
        size,
        len(name),
        len(extra),
    )
    return header + name + extra + item.body() + item.descriptor


def _central(item: Item, offset: int) -> bytes:
    crc, packed, size = _sizes(item)
    header = struct.pack(
        "<4s4B4HL2L5H2L",
        b"PK\x01\x02",
        20,
        3,
        item.needed,
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
        len(item.comment),
        item.disk,
        0,
        item.mode << 16 | item.dos,
        offset,
    )
    return header + item.name + item.extra + item.comment


def _zip64(*values: int) -> bytes:
    return struct.pack(f"<2H{len(values)}Q", 1, 8 * len(values), *values)


def _unicode_path(name: bytes, other: bytes) -> bytes:
    body = struct.pack("<BL", 1, zlib.crc32(name)) + other
    return struct.pack("<2H", 0x7075, len(body)) + body


def _zip64_end(data: bytes, *, shift: int = 0, **lies: int) -> bytes:
    """Return the archive with zip64 end records before its end record, with fields that are given overridden."""
    end = data.rindex(b"PK\x05\x06")
    _, _, _, here, count, size, offset, _ = struct.unpack_from("<4s4H2LH", data, end)
    fields = {"here": here, "count": count, "size": size, "offset": offset, "record": 44, "disks": 1, **lies}
    record = struct.pack(
        "<4sQ2H2L4Q",
        b"PK\x06\x06",
        fields["record"],
        45,
        45,
        0,
        0,
        *(fields[name] for name in ("here", "count", "size", "offset")),
    )
    locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, end + shift, fields["disks"])
    return data[:end] + record + locator + data[end:]


def _descriptor(item: Item, *, crc: int | None = None) -> Item:
    """Return the item with its sizes behind its bytes, as who cannot seek writes them."""
    values = (zlib.crc32(item.data) if crc is None else crc, len(item.body()), len(item.data))
    return replace(
        item,
        flags=item.flags | 8,
        local_crc=0,
        descriptor=b"PK\x07\x08" + struct.pack("<LLL", *values),
    )


def _far_away(flags: int) -> Item:
    """Return an item whose packed bytes end where no file can: sizes are 64 bits wide in zip64."""
    extra = struct.pack("<2H2Q", 1, 16, 5, 2**63)
    return Item(method=8, flags=flags, size=0xFFFFFFFF, packed_size=0xFFFFFFFF, extra=extra)


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
    "a long way up": (build(Item(b"../" * 20 + b"etc/passwd")), "path"),
    "two dots at the end": (build(Item(b"a/..")), "path"),
    "two dots as a directory": (build(Item(b"../", b"", stat.S_IFDIR | 0o755), Item()), "path"),
    "network share": (build(Item(b"\\\\host\\share\\evil")), "path"),
    "only a slash": (build(Item(b"/", b"", stat.S_IFDIR | 0o755), Item()), "path"),
    "alternate stream": (build(Item(b"a.txt:evil")), "path"),
    "DEL": (build(Item(b"a\x7f")), "path"),
    "line feed": (build(Item(b"a\nb")), "path"),
    "overlong UTF-8": (build(Item(b"..\xc0\xafevil")), "encoding"),
    "surrogate": (build(Item(b"\xed\xa0\x80")), "encoding"),
    "UTF-8 by flag, latin-1 by bytes": (build(Item(b"\xe9", flags=1 << 11)), "encoding"),
    "decomposed beside composed": (
        build(Item("\u00e9".encode()), Item("e\u0301".encode())),
        "encoding",
    ),
    "symlink with setuid": (build(Item(b"link", b"/", stat.S_IFLNK | 0o4777)), "special_entry"),
    "block device": (build(Item(b"sda", b"", stat.S_IFBLK | 0o666)), "special_entry"),
    "socket": (build(Item(b"sock", b"", stat.S_IFSOCK | 0o666)), "special_entry"),
    "no kind that exists": (build(Item(mode=0o030644)), "special_entry"),
    "file with the name of a directory": (build(Item(b"d/", b""), Item()), "special_entry"),
    "directory by MS-DOS, file by name": (build(Item(mode=0, dos=0x10)), "special_entry"),
    "volume label": (build(Item(mode=0, dos=0x08)), "special_entry"),
    "link by Windows": (build(Item(mode=0, dos=0x400)), "special_entry"),
    "bytes hidden in a directory": (
        build(Item(b"d/", b"", 0, method=8, packed=Item(method=8, data=b"").body() + b"hidden"), Item()),
        "size",
    ),
    "checksum of a directory": (build(Item(b"d/", b"", 0, crc=1), Item()), "crc"),
    "directory twice": (build(Item(b"d/", b"", 0), Item(b"d/", b"", 0), Item()), "duplicate"),
    "duplicate deep down": (build(Item(b"a/b/c"), Item(b"a/x"), Item(b"a/b/c")), "duplicate"),
    "file, then listed directory": (build(Item(b"a"), Item(b"a/", b"", 0)), "collision"),
    "listed directories differ in case": (
        build(Item(b"a/", b"", 0), Item(b"A/", b"", 0), Item()),
        "collision",
    ),
    "central directory encrypted": (build(Item(flags=1 << 13)), "encrypted"),
    "patch data": (build(Item(flags=1 << 5)), "flags"),
    "enhanced deflate": (build(Item(flags=1 << 4)), "flags"),
    "a flag nobody knows": (build(Item(flags=1 << 15)), "flags"),
    "a version of zip that does not exist": (build(Item(needed=64)), "version"),
    "deflate64": (build(Item(method=9)), "method"),
    "LZMA": (build(Item(method=14)), "method"),
    "AES": (build(Item(method=99)), "method"),
    "another method in the local header": (build(Item(local_method=8)), "header_mismatch"),
    "other flags in the local header": (build(Item(local_flags=1 << 11)), "header_mismatch"),
    "another checksum in the local header": (build(Item(local_crc=1)), "header_mismatch"),
    "descriptor with another checksum": (build(_descriptor(Item(method=8), crc=1)), "header_mismatch"),
    "descriptor for which the header has other values": (
        build(replace(_descriptor(Item(method=8)), local_crc=1)),
        "header_mismatch",
    ),
    "descriptor, then more": (
        build(replace(_descriptor(Item()), descriptor=_descriptor(Item()).descriptor + b"more")),
        "framing",
    ),
    "local name in a Unicode field": (
        build(Item(extra=b"", local_extra=_unicode_path(b"a.txt", b"b.txt"))),
        "header_mismatch",
    ),
    "Unicode field without a name": (build(Item(extra=struct.pack("<2HB", 0x7075, 1, 1))), "header_mismatch"),
    "Unicode field twice": (build(Item(extra=_unicode_path(b"a.txt", b"a.txt") * 2)), "zip64"),
    "17 extra fields": (build(Item(extra=struct.pack("<2H", 0x6666, 0) * 17)), "extra_fields"),
    "16 384 local extra fields": (build(Item(extra=b"", local_extra=bytes(65_532))), "extra_fields"),
    "zip64 field twice": (build(Item(size=0xFFFFFFFF, method=8, extra=_zip64(5) * 2)), "zip64"),
    "zip64 size is a bomb": (build(Item(size=0xFFFFFFFF, method=8, extra=_zip64(2**63))), "ratio"),
    "zip64 offset beyond any file": (build(Item(offset=0xFFFFFFFF, extra=_zip64(2**64 - 1))), "framing"),
    "zip64 packed size beyond any file": (
        build(_far_away(flags=0)),
        "overlap",
    ),
    "zip64 packed size beyond any file, with a descriptor": (build(_far_away(flags=8)), "overlap"),
    "zip64 end record elsewhere": (_zip64_end(build(Item()), shift=-1), "zip64"),
    "zip64 end record beyond any file": (_zip64_end(build(Item()), shift=2**62), "zip64"),
    "zip64 end records contradict": (_zip64_end(build(Item()), count=2, here=2), "zip64"),
    "zip64 end record of another length": (_zip64_end(build(Item()), record=45), "zip64"),
    "zip64 end record on several disks": (_zip64_end(build(Item()), disks=2), "zip64"),
    "zip64 end record counts disks": (_zip64_end(build(Item()), here=0), "zip64"),
    "zip64 end record claims too much": (
        _zip64_end(build(Item(), count=0xFFFF, here=0xFFFF), count=2**64 - 1, here=2**64 - 1),
        "too_many_entries",
    ),
    "zip64 end record without its locator": (
        _zip64_end(build(Item())).replace(b"PK\x06\x07", b"PK\x06\x08"),
        "framing",
    ),
    "entries of which one disk has some": (build(Item(), Item(b"b"), here=1), "multi_disk"),
    "cut in the end record": (build(Item())[:-1], "trailing_data"),
    "cut in the directory": (build(Item())[:-30], "not_a_zip"),
    "cut at the front": (build(Item())[1:], "framing"),
    "an archive in a gap": (build(Item(), gap=build()), "framing"),
    "end record in an end record's comment": (build(Item(), comment=b"x" + build()), "framing"),
    "two archives": (build(Item()) + build(Item(b"b")), "framing"),
    "a zero behind": (build(Item(), trailing=b"\0"), "trailing_data"),
    "a comment cut off": (build(Item(), comment=b"comment")[:-3], "trailing_data"),
    "overlap by one byte": (build(Item(b"a"), Item(b"b", offset=35, omit_local=True)), "overlap"),
    "overlaps the directory": (build(Item(method=8, packed_size=1000)), "overlap"),
    "20 entries on one header": (
        build(Item(b"a", b"x" * 50), *(Item(b"a", b"x" * 50, offset=0, omit_local=True) for _ in range(19))),
        "overlap",
    ),
    "2 GiB out of nothing": (build(Item(method=8, packed=b"", size=2**31, crc=0)), "ratio"),
    "declares all that 32 bits can": (build(Item(method=8, size=0xFFFFFFFE)), "ratio"),
    "many directories": (
        build(Item(b"a/b/c/d/e/f/g"), Item(b"h/i/j/k/l/m/n/o/p/q/r/s/t/u/v/w")),
        "too_many_entries",
    ),
    "name of 65 535 bytes": (build(Item(b"n" * 65_535)), "path_length"),
    "600 levels": (build(Item(b"/".join([b"d"] * 400))), "path_length"),
    "directory too deep": (build(Item(b"d/" * 33, b"", 0), Item()), "path_length"),
    "too deep": (build(Item(b"/".join([b"d"] * 33))), "path_length"),
    "name too long": (build(Item(b"n" * 256)), "path_length"),
    "path too long": (build(Item(b"/".join([b"p" * 200] * 6))), "path_length"),
}

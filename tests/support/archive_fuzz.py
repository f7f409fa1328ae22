"""Archives nobody would think of, and what must hold for each: one judgement, and other readers see the same files."""

import io
import os
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from hypothesis import strategies as st

from ci_common.errors import InvalidArchive
from ci_controller.archive_tar import tar_stream
from ci_persistence.archive_rules import ArchiveLimits
from ci_persistence.archive_validator import ZipArchive
from tests.support.archives import HOSTILE, Item, build

LIMITS = ArchiveLimits(entries=20, ratio=200, total_bytes=2_000_000)
Files = dict[str, bytes]


@dataclass
class Tally:
    """How many archives were taken and refused: a fuzz test that sees only one kind shows nothing."""

    accepted: int = 0
    refused: int = 0


def check(data: bytes, tally: Tally) -> None:
    """Whatever the bytes are, the judge refuses them by a rule, or all readers agree on what they hold."""
    first, second = _judged(data), _judged(data)
    assert first == second
    if isinstance(first, str):
        tally.refused += 1
        return
    tally.accepted += 1
    assert 0 < len(first) <= LIMITS.entries
    assert sum(map(len, first.values())) <= LIMITS.total_bytes
    assert _by_zipfile(data) == first
    assert _by_tar(data) == first


def _judged(data: bytes) -> Files | str:
    """Return the files, or the rule that the archive breaks; any other exception is a failure of the test."""
    try:
        with _file(data) as file:
            archive = ZipArchive(file, LIMITS)
            archive.verify()
            return {entry.path: _read(archive, entry.path) for entry in archive.entries}
    except InvalidArchive as error:
        return str(error.extra["rule"])


def _read(archive: ZipArchive, path: str) -> bytes:
    (entry,) = (one for one in archive.entries if one.path == path)
    with archive.open(entry) as reader:
        data = reader.read()
    assert len(data) == entry.size
    return data


def _by_zipfile(data: bytes) -> Files:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {_name(info): archive.read(info) for info in archive.infolist() if not info.is_dir()}


def _name(info: zipfile.ZipInfo) -> str:
    """Return the name as we read it: as UTF-8 also where no flag says so, and `zipfile` takes it for CP437."""
    flagged = info.flag_bits & 0x800
    return info.filename if flagged else info.filename.encode("cp437").decode()


def _by_tar(data: bytes) -> Files:
    """Return the files that an extraction of our stream leaves on disk, which leaves nothing else there."""
    with _file(data) as file, tempfile.TemporaryDirectory() as outside:
        inside = Path(outside, "inside")
        stream = io.BytesIO(b"".join(tar_stream(ZipArchive(file, LIMITS))))
        with tarfile.open(fileobj=stream, mode="r:") as tar:
            tar.extractall(inside, filter="fully_trusted")
        assert [path.name for path in Path(outside).iterdir()] == ["inside"]
        found = [path for path in inside.rglob("*") if not path.is_dir()]
        assert all(path.is_file() and not path.is_symlink() for path in found)
        return {str(path.relative_to(inside)): path.read_bytes() for path in found}


@contextmanager
def _file(data: bytes) -> Generator[BinaryIO]:
    with os.fdopen(os.memfd_create("archive"), "w+b") as file:
        file.write(data)
        file.flush()
        yield file


# -- what is tried -------------------------------------------------------------------------------------

_GOOD_PARTS = ["a", "b", "c", "d", "src", "tests", "conftest.py", "é", "\u4e00", "\U0001f600", "x" * 120]
_BAD_PARTS = ["A", "..", ".", "ß", "ss", "e\u0301", "a:b", "n" * 256]
_PARTS = st.sampled_from(_GOOD_PARTS * 6 + _BAD_PARTS)
_PATHS = st.lists(_PARTS, min_size=1, max_size=4).map("/".join)
_DATA = st.one_of(st.binary(max_size=60), st.integers(0, 5000).map(bytes), st.just(b"pass\n" * 300))


class _Pipe(io.BytesIO):
    """Written to from front to end, so that writers put sizes behind the bytes."""

    def seekable(self) -> bool:
        return False

    def seek(self, offset: int, whence: int = 0, /) -> int:
        raise io.UnsupportedOperation

    def tell(self) -> int:
        raise io.UnsupportedOperation


@st.composite
def written(draw: st.DrawFn) -> bytes:
    """Return what Python's own writer makes of some files: good, but for names that we refuse."""
    buffer = _Pipe() if draw(st.booleans()) else io.BytesIO()
    method = draw(st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]))
    wide = draw(st.booleans())
    with zipfile.ZipFile(buffer, "w", method) as archive:
        archive.comment = draw(st.sampled_from([b"", b"comment"]))
        for path, data in draw(st.dictionaries(_PATHS, _DATA, max_size=4)).items():
            with archive.open(path, "w", force_zip64=wide) as file:
                file.write(data)
    return buffer.getvalue()


_NUMBERS = st.one_of(
    st.sampled_from([0, 1, 2, 8, 20, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFE, 0xFFFFFFFF]),
    st.integers(0, 2**32 - 1),
)
_SIGNATURES = (b"PK\x01\x02", b"PK\x03\x04", b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07", b"PK\x07\x08")


def _flip(data: bytes, draw: st.DrawFn) -> bytes:
    position = draw(st.integers(0, len(data) - 1))
    return data[:position] + bytes([data[position] ^ draw(st.integers(1, 255))]) + data[position + 1 :]


def _cut(data: bytes, draw: st.DrawFn) -> bytes:
    begin, end = sorted((draw(st.integers(0, len(data))), draw(st.integers(0, len(data)))))
    return data[:begin] + data[end:] if draw(st.booleans()) else data[begin:end]


def _splice(data: bytes, draw: st.DrawFn) -> bytes:
    other = draw(st.one_of(written(), st.binary(max_size=30), st.just(data), st.sampled_from(_SIGNATURES)))
    at = draw(st.integers(0, len(data)))
    over = draw(st.sampled_from([0, 0, len(other)]))
    return data[:at] + other + data[at + over :]


def _edit(data: bytes, draw: st.DrawFn) -> bytes:
    """Return the archive with one field of one of its records changed."""
    found = [at for one in _SIGNATURES for at in _places(data, one)]
    if not found:
        return data
    at = draw(st.sampled_from(found)) + draw(st.integers(4, 56))
    width = draw(st.sampled_from([1, 2, 4, 8]))
    value = draw(_NUMBERS) % 256**width
    return data[:at] + value.to_bytes(width, "little") + data[at + width :]


def _places(data: bytes, wanted: bytes) -> Iterator[int]:
    at = data.find(wanted)
    while at >= 0:
        yield at
        at = data.find(wanted, at + 1)


def _edit_what_nobody_reads(data: bytes, draw: st.DrawFn) -> bytes:
    """Return the archive with the versions, times or attributes of an entry changed."""
    found = list(_places(data, b"PK\x01\x02"))
    if not found:
        return data
    at = draw(st.sampled_from(found)) + draw(st.sampled_from([4, 5, 6, 12, 13, 14, 15, 36, 38, 39, 40, 41]))
    return data[:at] + bytes([draw(st.integers(0, 255))]) + data[at + 1 :]


_MUTATIONS: tuple[Callable[[bytes, st.DrawFn], bytes], ...] = (
    _flip,
    _flip,
    _cut,
    _splice,
    _edit,
    _edit,
    _edit,
    *(_edit_what_nobody_reads,) * 6,
)


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """Return an archive, good or of the corpus, after up to three changes."""
    small = st.sampled_from([data for data, _ in HOSTILE.values() if len(data) < 20_000])
    data = draw(draw(st.sampled_from([written(), small, written(), written()])))
    for _ in range(draw(st.sampled_from([0, 1, 1, 1, 1, 2, 3]))):
        if data:
            data = draw(st.sampled_from(_MUTATIONS))(data, draw)
    return data


def _maybe(strategy: st.SearchStrategy[int]) -> st.SearchStrategy[int | None]:
    return st.one_of(*[st.none()] * 14, strategy)


_ITEMS = st.builds(
    Item,
    name=st.one_of(
        _PATHS.map(str.encode),
        _PATHS.map(str.encode),
        _PATHS.map(str.encode),
        _PATHS.map(lambda path: f"{path}/".encode()),
        st.binary(max_size=9),
    ),
    data=_DATA,
    mode=st.sampled_from([0, 0, 0o100644, 0o100644, 0o100755, 0o104755, 0o120777]),
    method=st.sampled_from([0, 0, 0, 8, 8, 8, 8, 12]),
    flags=st.sampled_from([0, 0, 2, 1 << 11, 1 << 11, 1 << 11, 8, 1]),
    size=_maybe(_NUMBERS),
    crc=_maybe(_NUMBERS),
    local_size=_maybe(_NUMBERS),
    offset=_maybe(st.integers(0, 400)),
    extra=st.sampled_from([b"", b"", b"", b"UT\5\0\3abcd", b"\1\0\0\0", b"x"]),
    dos=st.sampled_from([0, 0, 0, 0x20, 0x20, 0x10, 0x400]),
    comment=st.sampled_from([b"", b"comment", b"PK\x05\x06"]),
)


_PLAIN = st.builds(
    Item, name=st.sampled_from([b"one", b"two/a", b"two/b"]), data=_DATA, method=st.sampled_from([0, 8])
)


@st.composite
def built(draw: st.DrawFn) -> bytes:
    """Return an archive whose headers may say anything."""
    kinds = draw(st.sampled_from([[_PLAIN], [_PLAIN, _ITEMS], [_ITEMS], [_ITEMS, _PLAIN, _ITEMS]]))
    comment = draw(st.sampled_from([b"", b"", b"comment", b"PK\x05\x06"]))
    prefix = draw(st.sampled_from([b"", b"", b"", b"", b"", b"PK"]))
    return build(*(draw(kind) for kind in kinds), prefix=prefix, comment=comment)

"""An accepted archive as a stream of tar bytes: what goes into a container without touching the host's disk."""

import tarfile
from collections.abc import Iterator
from functools import cache
from typing import Final, NamedTuple

from ci_common.errors import InvalidArchive
from ci_common.stores import Archive, ArchiveEntry

_BLOCK: Final = 512
_CHUNK: Final = 256 * 1024
_DIRECTORY_MODE: Final = 0o755
_NAME_BYTES: Final = 100  # of a header; longer ones and those that are not ASCII take further records
_PLAIN_SIZE: Final = 8**11  # the first that twelve octal digits, one of which is a NUL, do not hold


def tar_stream(archive: Archive) -> Iterator[bytes]:
    """Yield a tar of exactly the archive's files, each after its directories; the same archive gives the same bytes.

    Raises InvalidArchive when an entry has more or fewer bytes than it declares.
    """
    above: list[str] = []  # of the last file; they are enough: files are sorted, so a directory is one run
    directory = ""
    for entry in archive.entries:
        parent = entry.path.rpartition("/")[0]
        if parent != directory:
            parents = _directories(parent)
            yield from (
                _header(one, tarfile.DIRTYPE, _DIRECTORY_MODE, 0) for one in parents if one not in above
            )
            above, directory = parents, parent
        yield from _file(archive, entry)
    yield bytes(2 * _BLOCK)


def _directories(path: str) -> list[str]:
    """Return a directory and those above it, the outermost first."""
    parts = path.split("/") if path else []
    return ["/".join(parts[:end]) for end in range(1, len(parts) + 1)]


def _file(archive: Archive, entry: ArchiveEntry) -> Iterator[bytes]:
    yield _header(entry.path, tarfile.REGTYPE, entry.mode, entry.size)
    count = 0
    with archive.open(entry) as reader:
        while chunk := reader.read(_CHUNK):
            count += len(chunk)
            if count > entry.size:  # before it is sent: one byte more would be read as the next header
                raise InvalidArchive(f"'{entry.path}' is larger than it says.", rule="size_mismatch")
            yield chunk
    if count < entry.size:
        raise InvalidArchive(f"'{entry.path}' is smaller than it says.", rule="size_mismatch")
    yield bytes(-count % _BLOCK)


def _header(name: str, kind: bytes, mode: int, size: int) -> bytes:
    """Return what tarfile writes; it is asked where the name or the size is not as they mostly are."""
    if kind != tarfile.REGTYPE or not name.isascii() or len(name) > _NAME_BYTES or size >= _PLAIN_SIZE:
        return _tarfile_header(name, kind, mode, size)
    frame, text, digits = _frame(mode), name.encode(), b"%011o" % size
    return b"".join(
        (
            text.ljust(_NAME_BYTES, b"\0"),
            frame.before_size,
            digits,
            frame.after_size,
            b"%06o" % (frame.sum + sum(text) + sum(digits)),
            frame.after_sum,
        )
    )


class _Frame(NamedTuple):
    """What headers of files of one mode have in common."""

    before_size: bytes
    after_size: bytes
    after_sum: bytes
    sum: int  # of all bytes but those of the name and the size, as if the sum's place held blanks


@cache
def _frame(mode: int) -> _Frame:
    example = _tarfile_header("a", tarfile.REGTYPE, mode, 0)
    parts = example[100:124], example[135:148], example[154:]
    return _Frame(*parts, 6 * ord(" ") + sum(map(sum, parts)) - sum(b"\0 ") + 2 * ord(" "))


def _tarfile_header(name: str, kind: bytes, mode: int, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.type, info.mode, info.size = kind, mode, size
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "strict")

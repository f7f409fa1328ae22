"""The one judge and reader of archives: whoever reads a file through it reads what was judged.

An archive is accepted or refused whole, before any of it is used; nothing is repaired. Differences between
two parsers are how hostile archives work, so nothing else here opens a zip.
"""

import stat
from collections.abc import Generator, Iterable
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from ci_common.stores import Archive, ArchiveEntry
from ci_persistence.archive_paths import Names, checked_path
from ci_persistence.archive_rules import ArchiveLimits, Budget
from ci_persistence.entry_reader import check_entry, open_entry
from ci_persistence.zip_format import (
    Directory,
    RawEntry,
    check_features,
    data_span,
    find_directory,
    read_directory,
    refuse,
)

_READ_SIZE = 256 * 1024
_DOS_VOLUME, _DOS_DIRECTORY, _DOS_REPARSE_POINT = 0x08, 0x10, 0x400


@dataclass(frozen=True, slots=True)
class _Judged:
    """A good entry, how the format describes it, and where its bytes begin; a directory's path ends with a slash."""

    entry: ArchiveEntry
    raw: RawEntry
    begin: int


class ZipArchive(Archive):
    """An archive whose structure and names were judged good; each file's bytes are judged as they are read."""

    def __init__(self, file: BinaryIO, limits: ArchiveLimits) -> None:
        self._descriptor = file.fileno()
        judged = sorted(_judge(file, limits), key=lambda one: one.entry.path)
        self._judged = {one.entry.path: one for one in judged}
        self._entries = tuple(one.entry for one in judged if not one.entry.path.endswith("/"))
        if not self._entries:
            raise refuse("empty", "The archive holds no files.")

    @property
    def entries(self) -> tuple[ArchiveEntry, ...]:
        return self._entries

    def open(self, entry: ArchiveEntry) -> AbstractContextManager[BinaryIO]:
        judged = self._judged[entry.path]
        return open_entry(self._descriptor, judged.begin, judged.raw)

    def verify(self) -> None:
        """Every byte of every file was unpacked once and is what was declared; raises InvalidArchive."""
        buffer = memoryview(bytearray(_READ_SIZE))
        for judged in self._judged.values():  # directories too: nothing may hide in them
            check_entry(self._descriptor, judged.begin, judged.raw, buffer)


@contextmanager
def open_archive(path: Path, limits: ArchiveLimits) -> Generator[ZipArchive]:
    """Return the archive at that path, judged; raises InvalidArchive with the rule that it breaks."""
    with path.open("rb") as file:
        yield ZipArchive(file, limits)


def _judge(file: BinaryIO, limits: ArchiveLimits) -> Iterable[_Judged]:
    directory = find_directory(file)
    limits.check_count(directory.count)
    raws = list(_check_totals(read_directory(file, directory), limits))
    begins = _check_layout(file, directory, raws)
    return _accepted(raws, begins, Names(limits.entries))


def _check_totals(raws: Iterable[RawEntry], limits: ArchiveLimits) -> Iterable[RawEntry]:
    budget = Budget(limits)
    for raw in raws:
        check_features(raw)
        budget.add_name(raw, len(raw.name))  # before 64 KiB of each are kept
        if limits.inflates_too_much(raw.packed, raw.size):
            raise refuse("ratio", f"The entry {raw} unpacks to more than {limits.ratio} times its size.")
        budget.add_size(raw.size)
        yield raw


def _check_layout(file: BinaryIO, directory: Directory, raws: list[RawEntry]) -> dict[int, int]:
    """Return where each entry's bytes begin, under its header's offset.

    From the first byte to the directory one entry follows another: no overlap, no gap, nothing unaccounted for.
    """
    begins: dict[int, int] = {}
    position = 0
    for raw in sorted(raws, key=lambda one: one.header_offset):
        if raw.header_offset < position:
            raise refuse("overlap", f"The entry {raw} overlaps another one.")
        if raw.header_offset > position:
            raise refuse("framing", f"There is unaccounted data before the entry {raw}.")
        begins[raw.header_offset], position = data_span(file, raw, directory.offset)
    if position != directory.offset:
        raise refuse("framing", "There is unaccounted data before the archive's directory.")
    return begins


def _accepted(raws: Iterable[RawEntry], begins: dict[int, int], names: Names) -> Iterable[_Judged]:
    for raw in raws:
        path = checked_path(raw.name)
        if _is_directory(raw, path):
            names.add_directory(path.removesuffix("/"))
        else:
            names.add_file(path)
        mode = 0o755 if raw.mode & 0o111 else 0o644  # setuid and the like end here
        yield _Judged(ArchiveEntry(path, mode, raw.size), raw, begins[raw.header_offset])


def _is_directory(raw: RawEntry, path: str) -> bool:
    kind = stat.S_IFMT(raw.mode)
    named_directory = path.endswith("/")
    contradicts = raw.dos_attributes & _DOS_DIRECTORY and not named_directory
    special = raw.dos_attributes & (_DOS_VOLUME | _DOS_REPARSE_POINT)
    if contradicts or special or kind not in (0, stat.S_IFDIR if named_directory else stat.S_IFREG):
        raise refuse(
            "special_entry", f"The entry {raw} is a link or device, or its name contradicts its kind."
        )
    if named_directory and raw.size:
        raise refuse("special_entry", f"The directory {raw} has content.")
    return named_directory

"""The rules that every tree must pass, whatever it came as: how many files, how large, which names in all."""

from dataclasses import dataclass
from typing import Final

from ci_persistence.archive_paths import MAX_PATH_BYTES
from ci_persistence.zip_format import refuse

MAX_NAMES_BYTES: Final = (
    12 * 1024 * 1024
)  # all are in memory while they are judged; 125 bytes each of 100 000
_RATIO_SLACK: Final = 1024 * 1024  # a small file of zeros is honest


@dataclass(frozen=True, slots=True)
class ArchiveLimits:
    """How large an archive may be once it is unpacked."""

    entries: int
    ratio: int  # unpacked bytes per packed byte of one file
    total_bytes: int

    def check_count(self, count: int) -> None:
        """So many entries are allowed; raises InvalidArchive."""
        if count > self.entries:
            raise refuse("too_many_entries", f"The archive has {count} entries; {self.entries} is the limit.")

    def inflates_too_much(self, packed: int, size: int) -> bool:
        """Tell whether unpacking so few bytes to so many is an attack and no file."""
        return size > self.ratio * max(packed, 1) + _RATIO_SLACK


class Budget:
    """What the entries of one archive take together; raises InvalidArchive for the one that is too much."""

    def __init__(self, limits: ArchiveLimits) -> None:
        self._limits = limits
        self._names = 0
        self._total = 0

    def add_name(self, entry: object, length: int) -> None:
        """A name of so many bytes is allowed; `entry` is how it is shown."""
        self._names += length
        if length > MAX_PATH_BYTES:
            raise refuse("path_length", f"The file name {entry} is longer than {MAX_PATH_BYTES} bytes.")
        self._check_names()

    def _check_names(self) -> None:
        if self._names > MAX_NAMES_BYTES:
            raise refuse("names_size", f"The archive's file names take more than {MAX_NAMES_BYTES} bytes.")

    def add_all(self, names: int, size: int) -> None:
        """Files that were judged one by one before, with names of so many bytes, are allowed beside the others."""
        self._names += names
        self._check_names()
        self.add_size(size)

    def add_size(self, size: int) -> None:
        """A file of so many bytes is allowed beside the others."""
        self._total += size
        if self._total > self._limits.total_bytes:
            raise refuse(
                "unpacked_size", f"The archive unpacks to more than {self._limits.total_bytes} bytes."
            )

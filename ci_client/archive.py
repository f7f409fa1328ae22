"""The upload: a zip of the selected files, the same bytes for the same tree."""

import contextlib
import errno
import shutil
import tempfile
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Self, cast

from ci_client.selection import Entry, Selection, select_files
from ci_common.errors import CIError, InternalError, StorageFull

_FULL = (errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC))  # Windows has no quotas there
_REGULAR = 0o100000
_UNIX = 3
_COPY = 1 << 20
_BOMB_SIZE, _BOMB_RATIO, _SAMPLE = 1 << 20, 50, 1 << 16  # the server refuses 200 to 1 above a megabyte
_ZIP64 = 1 << 30  # a file may still grow while it is read


@dataclass(frozen=True, slots=True)
class Archive:
    """A finished archive in a temporary file, which is gone when it is closed; a context manager."""

    file: BinaryIO
    size: int
    files: int
    warnings: tuple[str, ...]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()


def build_archive(root: Path, *, compress: bool = True, include_ignored: bool = False) -> Archive:
    """Return the archive of a project: sorted, fixed times, executable bits kept.

    Files that vanish or cannot be read meanwhile are left out, with a warning. Raises NotAProject, StorageFull.
    """
    return pack(select_files(root, include_ignored=include_ignored), compress=compress)


def pack(selection: Selection, *, compress: bool = True) -> Archive:
    """Return the archive of a selection; without compression where the network costs less than the time."""
    try:
        file = cast(BinaryIO, tempfile.TemporaryFile(prefix="ci-upload-"))  # noqa: SIM115 - the archive closes it
    except OSError as error:
        raise _failure(error) from error
    try:
        warnings = _write(file, selection, compress=compress)
        size = file.tell()
        file.seek(0)
    except OSError as error:
        _discard(file)
        raise _failure(error) from error
    except BaseException:
        _discard(file)
        raise
    count = len(selection.entries) - len(warnings)
    return Archive(file, size, count, (*selection.warnings, *warnings))


def _discard(file: BinaryIO) -> None:
    with contextlib.suppress(OSError):  # what is still buffered cannot be written either
        file.close()


def _failure(error: OSError) -> CIError:
    cls = StorageFull if error.errno in _FULL else InternalError
    return cls(f"The archive cannot be made in {tempfile.gettempdir()}: {error.strerror}.")


def _write(file: BinaryIO, selection: Selection, *, compress: bool) -> list[str]:
    warnings: list[str] = []
    with zipfile.ZipFile(file, "w", compresslevel=1) as archive:
        for entry in selection.entries:
            try:
                source = Path(entry.source).open("rb")  # noqa: SIM115 - closed below, where it was opened
            except OSError as error:
                warnings.append(f"{entry.path}: not sent (cannot be read: {error.strerror})")
            else:
                with source:
                    _add(archive, entry, source, compress=compress)
    return warnings


def _add(archive: zipfile.ZipFile, entry: Entry, source: BinaryIO, *, compress: bool) -> None:
    packed = compress and not _looks_like_a_bomb(source, entry.size)
    archive.compression = zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED
    # By name, not by a ZipInfo made from the file: so its time is 1980, always, and the level ours.
    with archive.open(entry.path, "w", force_zip64=entry.size > _ZIP64) as target:
        shutil.copyfileobj(source, target, _COPY)
    info = archive.getinfo(entry.path)
    info.create_system = _UNIX
    info.external_attr = (_REGULAR | (0o755 if entry.executable else 0o644)) << 16


def _looks_like_a_bomb(source: BinaryIO, size: int) -> bool:
    """Tell whether a big file packs so well that the server would refuse the archive for it (test data of zeros)."""
    if size < _BOMB_SIZE:
        return False
    ratios: list[float] = []
    for place in (0, size // 2, size - _SAMPLE):
        source.seek(place)
        sample = source.read(_SAMPLE)
        ratios.append(len(sample) / len(zlib.compress(sample, 1)))
    source.seek(0)
    return max(ratios) > _BOMB_RATIO

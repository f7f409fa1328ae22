"""The two forms of a log, and the way from one to the other: plain while it is written, compressed for ever after.

At no moment is there neither. Where there are both, a process died in between: they say the same, the plain one
counts, and putting away is done again.
"""

import fcntl
import hashlib
import os
import uuid
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import structlog

from ci_common.crash_points import crash_point
from ci_common.models import LogSeal
from ci_common.stores import LogReader
from ci_persistence.descriptors import is_of_no_file, open_in_place, read_fully, write_fully
from ci_persistence.log_frames import DamagedFrames, FramedText, compress
from ci_persistence.ownership import FILE_MODE, fsync_directory

COMPRESSED: Final = ".zst"
UNFINISHED: Final = ".part"

log = structlog.get_logger(__name__)


def compressed_path(path: Path) -> Path:
    """Return where a log lies that was put away."""
    return path.with_name(path.name + COMPRESSED)


def names_of(name: str) -> tuple[str, str]:
    """Return the names under which what is called so may lie: of a log, both."""
    plain = name.removesuffix(COMPRESSED)
    return plain, plain + COMPRESSED


@contextmanager
def reading(path: Path) -> Generator[LogReader]:
    """Whatever form the log has now can be read to its end, even if it is deleted meanwhile."""
    descriptor, reader = _opened(path)
    try:
        yield reader
    finally:
        if descriptor is not None:
            os.close(descriptor)


def put_away(path: Path, seal: LogSeal | None) -> bool | None:
    """The log is compressed, on disk for good and compared; the plain file is gone.

    False, and nothing changed: it is not what the seal says. None, and nothing changed: there is none, or somebody
    else is at it. Raises OSError, of a log that is no regular file too.
    """
    try:
        plain = open_in_place(path, os.O_RDWR)
    except FileNotFoundError:
        return None
    try:
        if not _ours_alone(plain, path):
            return None
        if not (done := _compressed(plain, path, seal)):
            return done
        crash_point("after_log_compressed")
        path.unlink()
        return True
    finally:
        os.close(plain)


def take_out(path: Path) -> None:
    """A log that was put away is plain again: whoever writes finds what stands. Else nothing happens.

    Of an attempt that has ended nobody writes. A database that was restored may believe otherwise.
    """
    if os.path.lexists(path) or not (stored := compressed_path(path)).exists():
        return
    unfinished = path.with_name(f"{path.name}.{uuid.uuid4().hex}{UNFINISHED}")
    try:
        _decompress(stored, unfinished)
        with suppress(FileExistsError):  # another writer was quicker, and writes by now
            path.hardlink_to(unfinished)
    finally:
        unfinished.unlink(missing_ok=True)
    fsync_directory(path.parent)
    stored.unlink(missing_ok=True)


def _opened(path: Path) -> tuple[int | None, LogReader]:
    # The plain one once more at the end: it may have been taken out between the first two looks.
    for form in (path, compressed_path(path), path):
        if (descriptor := _for_reading(form)) is not None:
            return descriptor, _PlainReader(descriptor) if form is path else _FramedReader(descriptor, form)
    return None, _PlainReader(None)


def _for_reading(path: Path) -> int | None:
    """Return the descriptor, None where there is nothing. What a link names, or a pipe, is no log: not there."""
    try:
        return open_in_place(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    except OSError as error:
        if not is_of_no_file(error):
            raise
        log.error("a log is no regular file, and is not read", path=str(path))
        return None


class _PlainReader(LogReader):
    def __init__(self, descriptor: int | None) -> None:
        self._descriptor = descriptor

    def size(self) -> int:
        return 0 if self._descriptor is None else os.fstat(self._descriptor).st_size

    def read(self, offset: int, length: int) -> bytes:
        return b"" if self._descriptor is None else read_fully(self._descriptor, offset, length)


class _FramedReader(LogReader):
    """What is damaged counts as not there, and readers learn from the row that it should be."""

    def __init__(self, descriptor: int, path: Path) -> None:
        self._path = path
        try:
            self._text: FramedText | None = FramedText(descriptor)
        except DamagedFrames as error:
            self._text = self._without(error)

    def size(self) -> int:
        return self._text.size if self._text else 0

    def read(self, offset: int, length: int) -> bytes:
        try:
            return self._text.read(offset, length) if self._text else b""
        except DamagedFrames as error:
            self._text = self._without(error)
            return b""

    def _without(self, error: DamagedFrames) -> None:
        log.error("a stored log is damaged", path=str(self._path), error=str(error))


def _ours_alone(plain: int, path: Path) -> bool:
    """Tell whether nobody else puts this file away; the lock goes with the descriptor, so with a process that dies."""
    try:
        fcntl.flock(plain, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.path.samestat(os.fstat(plain), path.lstat())
    except (BlockingIOError, FileNotFoundError):
        return False


def _compressed(plain: int, path: Path, seal: LogSeal | None) -> bool | None:
    """The compressed form has its name, unless the plain one is not what it should be (False) or grew (None)."""
    unfinished = compressed_path(path).with_name(compressed_path(path).name + UNFINISHED)
    try:
        found = _written(plain, unfinished)
        is_whole = seal is None or (seal.size, seal.sha256) == (found.size, found.sha256)
        if os.fstat(plain).st_size != found.size:
            return None
        if not is_whole:
            return False
        unfinished.rename(compressed_path(path))
    finally:
        unfinished.unlink(missing_ok=True)
    fsync_directory(path.parent)
    return True


def _written(plain: int, unfinished: Path) -> LogSeal:
    """The file holds the log in frames, on disk for good and read back from there; returns what the log is."""
    # The directory may be somebody else's than this process's: what lies under that name is not written through.
    unfinished.unlink(missing_ok=True)
    target = open_in_place(unfinished, os.O_RDWR | os.O_CREAT | os.O_EXCL, FILE_MODE)
    try:
        os.fchmod(target, FILE_MODE)  # whatever the umask
        found = compress(plain, target)
        times = os.fstat(plain)
        os.utime(
            target, ns=(times.st_atime_ns, times.st_mtime_ns)
        )  # how long it was left alone counts in pruning
        os.fsync(target)
        os.posix_fadvise(target, 0, 0, os.POSIX_FADV_DONTNEED)  # the disk is asked, not our memory of it
        _compare(target, found)
    finally:
        os.close(target)
    return found


def _compare(descriptor: int, expected: LogSeal) -> None:
    digest, size = hashlib.sha256(), 0
    for piece in FramedText(descriptor).pieces():
        digest.update(piece)
        size += len(piece)
    if (size, digest.hexdigest()) != (expected.size, expected.sha256):
        raise DamagedFrames("what was written is not what is read")


def _decompress(stored: Path, unfinished: Path) -> None:
    source = open_in_place(stored, os.O_RDONLY)
    try:
        target = open_in_place(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, FILE_MODE)
        try:
            os.fchmod(target, FILE_MODE)
            for piece in FramedText(source).pieces():
                write_fully(target, piece)
            os.fsync(target)
        finally:
            os.close(target)
    finally:
        os.close(source)

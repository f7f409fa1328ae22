"""The output of attempts as files: `logs/<job>/<attempt>.log` and `.events`. One writer each, any number of readers.

Nothing here knows what the bytes mean; offsets and completeness are the pump's. A log that nobody writes any more is
put away as `<attempt>.log.zst` (`put_away.py`); offsets mean bytes of its text ever after.
"""

import errno
import hashlib
import os
import re
import shutil
import stat
import time
from collections.abc import Generator, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

from ci_common.errors import StorageFull
from ci_common.models import LogSeal
from ci_common.stores import LogReader, LogStore, LogWriter, StoredItem
from ci_persistence.descriptors import open_in_place, read_fully, write_fully
from ci_persistence.ownership import FILE_MODE, fsync_directory, make_shared_directory
from ci_persistence.put_away import compressed_path, put_away, reading, take_out

DIRECTORY_MODE = 0o2750  # written by the controller, read by its group, nothing for the world
_JOB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}")
_ATTEMPT = re.compile(r"[1-9][0-9]{0,8}")
_READ_SIZE = 1024 * 1024
_ONE_BLOCK = 4096  # which a file takes on its disk, however little is in it


@contextmanager
def disk_full_as_storage_full(path: Path) -> Generator[None]:
    """A full disk or quota comes out as StorageFull; only its `detail`, for the log, names the file."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise StorageFull(
            f"There is no space left for {path}.",
            public_detail="There is no space left on the server's data disk; its operator has to make room.",
        ) from error


class FileLogStore(LogStore):
    """Logs below one directory."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def writer(self, job_id: str, attempt: int) -> LogWriter:
        path = self._path(job_id, attempt)
        with disk_full_as_storage_full(path):
            # Made by the first writer, not with the installation: so it belongs to the controller's user,
            # and a server that runs as another one can read logs and never write them.
            make_shared_directory(self._root, DIRECTORY_MODE)
            make_shared_directory(path.parent, DIRECTORY_MODE)
            return _writer_of_what_stands(path)

    def size(self, job_id: str, attempt: int) -> int:
        path = self._path(job_id, attempt)
        with suppress(FileNotFoundError):
            found = path.lstat()  # of one that grows: asked at every wake-up
            if stat.S_ISREG(found.st_mode) and not path.parent.is_symlink():
                return found.st_size
        with reading(path) as reader:
            return reader.size()

    def read(self, job_id: str, attempt: int, offset: int, length: int) -> bytes:
        with reading(self._path(job_id, attempt)) as reader:
            return reader.read(offset, length)

    def read_events(self, job_id: str, attempt: int, length: int) -> bytes:
        with reading(_events_path(self._path(job_id, attempt))) as reader:
            return reader.read(0, length)

    def reader(self, job_id: str, attempt: int) -> AbstractContextManager[LogReader]:
        return reading(self._path(job_id, attempt))

    def delete(self, job_id: str) -> None:
        directory = self._path(job_id, 1).parent
        with suppress(FileNotFoundError):
            if directory.is_symlink():
                directory.unlink()
            else:
                shutil.rmtree(directory)

    def items(self) -> Iterator[StoredItem]:
        now = time.time()
        for directory in sorted(self._root.glob("*/")):
            ours = _JOB_ID.fullmatch(directory.name) and not directory.is_symlink()
            if ours and (item := _item(directory, now)):
                yield item

    def to_put_away(self) -> Iterator[tuple[str, int]]:
        for path in sorted(self._root.glob("*/*.log")):
            with suppress(FileNotFoundError):
                ours = _JOB_ID.fullmatch(path.parent.name) and _ATTEMPT.fullmatch(path.stem)
                if ours and not path.parent.is_symlink() and path.lstat().st_size > _ONE_BLOCK:
                    yield path.parent.name, int(path.stem)

    def put_away(self, job_id: str, attempt: int, seal: LogSeal | None = None) -> bool | None:
        path = self._path(job_id, attempt)
        with disk_full_as_storage_full(path):
            return put_away(path, seal)

    def _path(self, job_id: str, attempt: int) -> Path:
        # Job ids come from URLs: one that could leave the directory must never become a path.
        if not _JOB_ID.fullmatch(job_id) or attempt < 1:
            raise ValueError(f"not an attempt: {job_id[:120]!r} {attempt}")
        return self._root / job_id / f"{attempt}.log"


def _writer_of_what_stands(path: Path) -> "FileLogWriter":
    """Return the writer of the plain log. One that was put away between our look and our opening would be hidden by
    the empty file that opening makes: that goes, and the log is taken out again."""
    while True:
        take_out(path)
        writer = FileLogWriter(path)
        if writer.size() or not compressed_path(path).exists():
            return writer
        writer.close()
        path.unlink(missing_ok=True)


def _item(directory: Path, now: float) -> StoredItem | None:
    """Return what the directory of one job holds, None if it vanished meanwhile."""
    try:
        with os.scandir(directory) as entries:
            stats = [entry.stat(follow_symlinks=False) for entry in entries]
        newest = max((one.st_mtime for one in stats), default=directory.stat().st_mtime)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return StoredItem(directory.name, sum(one.st_size for one in stats), max(0.0, now - newest))


class FileLogWriter(LogWriter):
    """The writer of one attempt; a second one on the same attempt writes the same bytes, so no harm is done."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._events_path = _events_path(path)
        self._log = _open_for_writing(path, os.O_RDWR)
        self._events = _open_for_writing(self._events_path, os.O_WRONLY | os.O_APPEND)

    def write(self, offset: int, data: bytes) -> None:
        view = memoryview(data)
        with disk_full_as_storage_full(self._path):
            while view:
                written = os.pwrite(self._log, view, offset)
                view, offset = view[written:], offset + written

    def read(self, offset: int, length: int) -> bytes:
        return read_fully(self._log, offset, length)

    def size(self) -> int:
        return os.fstat(self._log).st_size

    def write_events(self, lines: Iterable[bytes]) -> None:
        new_path = self._events_path.with_name(self._events_path.name + ".new")
        with disk_full_as_storage_full(new_path):
            descriptor = _open_for_writing(new_path, os.O_WRONLY | os.O_APPEND | os.O_TRUNC)
            try:
                write_fully(descriptor, b"".join(lines))
                os.fsync(descriptor)
                new_path.replace(self._events_path)
            except BaseException:
                os.close(descriptor)
                raise
        os.close(self._events)
        self._events = descriptor

    def append_event(self, line: bytes) -> None:
        with disk_full_as_storage_full(self._events_path):
            write_fully(self._events, line)

    def seal(self, *, truncated: bool = False) -> LogSeal:
        with disk_full_as_storage_full(self._path):
            os.fsync(self._log)
            os.fsync(self._events)
            fsync_directory(self._path.parent)
            fsync_directory(self._path.parent.parent)
        digest, size = hashlib.sha256(), 0
        while chunk := os.pread(self._log, _READ_SIZE, size):
            digest.update(chunk)
            size += len(chunk)
        return LogSeal(size, digest.hexdigest(), truncated)

    def close(self) -> None:
        for descriptor in (self._log, self._events):
            if descriptor >= 0:
                os.close(descriptor)
        self._log = self._events = -1


def _events_path(log_path: Path) -> Path:
    return log_path.with_suffix(".events")


def _open_for_writing(path: Path, flags: int) -> int:
    # A link is an error: the controller may be root, and the directory another user's.
    descriptor = open_in_place(path, flags | os.O_CREAT, FILE_MODE)
    os.fchmod(descriptor, FILE_MODE)  # whatever the umask
    return descriptor

"""What goes up: the file with its progress, and the form fields beside it."""

import io
import os
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

from ci_common.models import JobOptions

Progress = Callable[[int, int], None]  # bytes sent, bytes in all


class CountingReader(io.RawIOBase):
    """A file that tells how far it has been read; closing it leaves the file under it open."""

    def __init__(self, file: BinaryIO, on_progress: Progress) -> None:
        super().__init__()
        self._file = file
        self._on_progress = on_progress
        self._size = file.seek(0, os.SEEK_END)
        file.seek(0)

    def read(self, size: int = -1, /) -> bytes:
        chunk = self._file.read(size)
        self._on_progress(self._file.tell(), self._size)
        return chunk

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True


@contextmanager
def opened(archive: Path | BinaryIO, on_progress: Progress | None) -> Generator[BinaryIO]:
    """Yield the archive as a file that reports its progress; a path is closed again, a file is the caller's."""
    if isinstance(archive, Path):
        with archive.open("rb") as file:
            yield _counted(file, on_progress)
    else:
        yield _counted(archive, on_progress)


def form_fields(options: JobOptions | None) -> dict[str, Any]:
    """Return the form fields beside the file; what was not asked for is left to the server."""
    fields: dict[str, Any] = {}
    if options and options.pytest_args:
        fields["pytest_args"] = list(options.pytest_args)
    if options and options.timeout_seconds is not None:
        fields["timeout"] = f"{options.timeout_seconds:g}"
    return fields


def _counted(file: BinaryIO, on_progress: Progress | None) -> BinaryIO:
    return cast(BinaryIO, CountingReader(file, on_progress)) if on_progress else file

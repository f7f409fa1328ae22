"""What a submission is made of: an upload that can be sent again, and the form of a zip. No retries."""

import os
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Protocol
from uuid import uuid4

from ci_client._http import Body, Http, ServerEvent
from ci_client.blobs import Packed
from ci_common.arguments import require_short
from ci_common.job_terms import DEFAULT_POOL, JobOptions, Priority

Progress = Callable[[int, int], None]  # bytes sent, bytes in all
_CHUNK = 1 << 16


class Upload(Protocol):
    """Something a job can be made of; sending it again under the same key makes no second job."""

    def submit(self, http: Http, headers: Mapping[str, str]) -> AbstractContextManager[Any]:
        """Send what there is to send; the context is the accepted job's JSON."""
        ...

    def submit_stream(
        self, http: Http, headers: Mapping[str, str]
    ) -> AbstractContextManager[Iterator[ServerEvent]]:
        """Send what there is to send; the context is the accepted job's events."""
        ...

    @property
    def size(self) -> int:
        """Bytes of its largest request."""
        ...


class ZipUpload:
    """A zip and the form fields beside it, in one request."""

    def __init__(self, file: BinaryIO, options: JobOptions | None, on_progress: Progress | None) -> None:
        if options:
            require_short(options.pytest_args)
        self._file = file
        self._options = options
        self._on_progress = on_progress

    @property
    def size(self) -> int:
        """Bytes of the zip."""
        return self._file.seek(0, os.SEEK_END)

    def submit(self, http: Http, headers: Mapping[str, str]) -> AbstractContextManager[Any]:
        """Send it; the context is the accepted job's JSON."""
        return http.upload("POST", "/submit-async", self._form(), headers)

    def submit_stream(
        self, http: Http, headers: Mapping[str, str]
    ) -> AbstractContextManager[Iterator[ServerEvent]]:
        """Send it; the context is the accepted job's events."""
        return http.upload_stream("/submit-stream", self._form(), headers)

    def _form(self) -> Body:
        boundary = uuid4().hex
        head = "".join(_field(boundary, name, value) for name, value in _form_fields(self._options))
        head += (
            f"--{boundary}\r\n"
            'Content-Disposition: form-data; name="file"; filename="project.zip"\r\n'
            "Content-Type: application/zip\r\n\r\n"
        )
        before, after = head.encode("utf-8", "surrogateescape"), f"\r\n--{boundary}--\r\n".encode()
        length = len(before) + self.size + len(after)
        return Body(f"multipart/form-data; boundary={boundary}", Packed(length, self._chunks(before, after)))

    def _chunks(self, before: bytes, after: bytes) -> Iterable[bytes]:
        size = self.size
        yield before
        self._file.seek(0)
        while chunk := self._file.read(_CHUNK):
            if self._on_progress:
                self._on_progress(self._file.tell(), size)
            yield chunk
        yield after


@contextmanager
def opened(archive: Path | BinaryIO) -> Generator[BinaryIO]:
    """Yield the archive as a file; a path is closed again, a file is the caller's."""
    if not isinstance(archive, Path):
        yield archive
        return
    with archive.open("rb") as file:
        yield file


def _field(boundary: str, name: str, value: str) -> str:
    return f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'


def _form_fields(options: JobOptions | None) -> Iterator[tuple[str, str]]:
    """Yield the form fields beside the file; what was not asked for is left to the server."""
    if options:
        for argument in options.pytest_args:
            yield "pytest_args", argument
        if options.timeout_seconds is not None:
            yield "timeout", f"{options.timeout_seconds:g}"
        if options.fresh:
            yield "fresh", "true"
        if options.priority is not Priority.NORMAL:
            yield "priority", options.priority.value
        if options.max_attempts is not None:
            yield "max_attempts", str(options.max_attempts)
        if options.queue_timeout_seconds is not None:
            yield "queue_timeout", f"{options.queue_timeout_seconds:g}"
        if options.pool != DEFAULT_POOL:
            yield "pool", options.pool

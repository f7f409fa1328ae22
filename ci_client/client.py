"""The client library: submit a project, follow, list and cancel jobs. Everything the `ci` command does goes through it.

    from pathlib import Path
    from ci_client.client import submit_tests_streaming

    for event in submit_tests_streaming(Path.cwd(), server_url="http://localhost:8000"):
        if event["type"] == "log":
            print(event["data"], end="")
        elif event["type"] == "complete":
            raise SystemExit(0 if event["success"] else 1)

`CIClient` gives the same with typed events, and the rest of the API. Failures are raised as the classes of
`ci_common.errors`. A client may be used by several threads; each iterator by one.
"""

import contextlib
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Self, TypeVar, cast
from urllib.parse import quote

from ci_client import config
from ci_client._http import Disconnected, Http, ProtocolError, ServerEvent
from ci_client.following import StreamState, is_last
from ci_client.job_info import JobInfo
from ci_client.retry import NO_ROOM, Retries, RetryPolicy, wait_for_room
from ci_client.tree_upload import TreeUpload
from ci_client.upload import Progress, Upload, ZipUpload, opened
from ci_common.errors import (
    ArchiveTooLarge,
    CIError,
    InvalidOffset,
    InvalidRequest,
    LogPruned,
    NotFound,
    ServerUnreachable,
)
from ci_common.events import ErrorEvent, Position, StreamEvent
from ci_common.job_terms import JobOptions, JobStatus, new_id

T = TypeVar("T")
_PAGE = 500


class CIClient:
    """A connection to one server with one key; a context manager that closes it."""

    def __init__(
        self,
        server_url: str,
        api_key: str,
        *,
        retry: RetryPolicy | None = None,
        on_outage: Callable[[str], None] | None = None,
    ) -> None:
        self._http = Http(server_url, config.check_key(api_key))
        self._policy = retry or RetryPolicy()
        self._on_outage = on_outage
        self.server_url = server_url

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Every connection is closed."""
        self._http.close()

    def submit(
        self,
        archive: Path | BinaryIO,
        options: JobOptions | None = None,
        *,
        idempotency_key: str | None = None,
        on_progress: Progress | None = None,
        on_full: Callable[[str], None] | None = None,
    ) -> str:
        """Submit a zip: as `submit_upload`."""
        with opened(archive) as file:
            upload = ZipUpload(file, options, on_progress)
            return self.submit_upload(upload, idempotency_key=idempotency_key, on_full=on_full)

    def submit_stream(
        self,
        archive: Path | BinaryIO,
        options: JobOptions | None = None,
        *,
        idempotency_key: str | None = None,
        on_progress: Progress | None = None,
        on_full: Callable[[str], None] | None = None,
    ) -> Iterator[StreamEvent]:
        """Submit a zip and follow the job: as `submit_upload_stream`."""
        with opened(archive) as file:
            upload = ZipUpload(file, options, on_progress)
            yield from self.submit_upload_stream(upload, idempotency_key=idempotency_key, on_full=on_full)

    def submit_upload(
        self,
        upload: Upload,
        *,
        idempotency_key: str | None = None,
        on_full: Callable[[str], None] | None = None,
    ) -> str:
        """The job is accepted and durable, and runs on its own; returns its id.

        A broken connection is retried under one Idempotency-Key, so that there is one job at most. With
        `on_full`, which is told so, a full queue is waited out; else TooManyRequests or QueueFull is raised.
        """
        headers = {"Idempotency-Key": idempotency_key or new_id()}
        answer = None
        while answer is None:
            try:
                self._wait_for_room(on_full)
                answer = self._patiently(lambda: self._submit_once(upload, headers))
            except NO_ROOM as error:
                if on_full is None:
                    raise
                wait_for_room(error, on_full)
        return JobInfo.from_json({"status": JobStatus.QUEUED, **answer}).job_id

    def submit_upload_stream(
        self,
        upload: Upload,
        *,
        idempotency_key: str | None = None,
        on_full: Callable[[str], None] | None = None,
    ) -> Iterator[StreamEvent]:
        """Submit and follow: yields the job's id, its states, all of its output and, last, its verdict.

        Output is yielded exactly once whatever happens to connections and servers. Closing the iterator
        leaves the job running. A full queue is as in `submit_upload`.
        """
        headers = {"Idempotency-Key": idempotency_key or new_id()}
        state, retries = StreamState(), self._retries()
        while state.job_id is None:
            try:
                self._wait_for_room(on_full)
                post = self._explained(upload.submit_stream(self._http, headers), upload)
                if (yield from self._read(post, state, retries)):
                    return
            except NO_ROOM as error:
                if on_full is None:
                    raise
                wait_for_room(error, on_full)
        yield from self._follow(state.job_id, state, retries, from_beginning=True)

    def follow(
        self, job_id: str, *, from_beginning: bool = False, position: Position | None = None
    ) -> Iterator[StreamEvent]:
        """Yield a job's events to its verdict: from a position, from the beginning, or only what is new from now on."""
        if position is None and not from_beginning:
            position = self._position_now(job_id)
        state = StreamState(position)
        yield from self._follow(job_id, state, self._retries(), from_beginning=from_beginning)

    def get_job(self, job_id: str) -> JobInfo:
        """Return a job as it stands; raises JobNotFound."""
        return JobInfo.from_json(self._patiently(lambda: self._http.json("GET", _job_path(job_id))))

    def timeline(self, job_id: str) -> list[Mapping[str, Any]]:
        """Return the moments of a job's life as the server sent them; raises JobNotFound."""
        moments = self._patiently(lambda: self._http.json("GET", f"{_job_path(job_id)}/timeline"))
        if not isinstance(moments, list):
            raise ProtocolError("The server sent a timeline this client cannot read.")
        return cast(list[Mapping[str, Any]], moments)

    def list_jobs(self, *, status: Iterable[str] = (), limit: int | None = None) -> Iterator[JobInfo]:
        """Yield the caller's jobs, newest first, page by page; `status` keeps those in one of these states."""
        left = limit
        params: Mapping[str, Any] | None = {"status": list(status)}
        while params is not None and (left is None or left > 0):
            asked = {**params, "limit": _PAGE if left is None else min(left, _PAGE)}
            page = self._patiently(lambda asked=asked: self._http.page("/jobs", asked))
            jobs = [JobInfo.from_json(item) for item in page.items][:left]
            yield from jobs
            left = None if left is None else left - len(jobs)
            params = page.next_params

    def queue(self) -> list[Mapping[str, Any]]:
        """Return the caller's queued jobs as the server sent them, in the order in which they will be claimed."""
        queued = self._patiently(lambda: self._http.json("GET", "/api/queue/jobs"))
        if not isinstance(queued, list):
            raise ProtocolError("The server sent a queue this client cannot read.")
        return cast(list[Mapping[str, Any]], queued)

    def cancel(self, job_id: str) -> JobInfo | None:
        """The job's end is requested (a queued job is over at once); raises JobFinished when it was over already."""
        answer = self._patiently(lambda: self._http.json("DELETE", _job_path(job_id)))
        return JobInfo.from_json(answer) if answer else None

    def log(self, job_id: str) -> Iterator[bytes]:
        """Yield the bytes of a job's log as far as it has been written: of one attempt, the current one."""
        attempt = self.get_job(job_id).attempt
        if attempt == 0:
            return
        offset, retries = 0, self._retries()
        while True:
            try:
                log = self._http.download(f"{_job_path(job_id)}/log", {"attempt": attempt}, offset)
                with log as chunks:
                    for chunk in chunks:
                        retries.progress()
                        offset += len(chunk)
                        yield chunk
                return
            except InvalidOffset:
                if not offset:
                    raise
                return  # it broke exactly at the end
            except (Disconnected, CIError) as error:
                retries.wait(error)

    def _submit_once(self, upload: Upload, headers: Mapping[str, str]) -> Any:
        with self._explained(upload.submit(self._http, headers), upload) as answer:
            return answer

    def _wait_for_room(self, on_full: Callable[[str], None] | None) -> None:
        """There is room in the queue as far as can be known before an archive is sent to find out."""
        while on_full is not None:
            try:
                self._patiently(lambda: self._http.json("GET", "/capacity"))
            except NotFound:
                return  # a server older than the question: only a submission tells
            except NO_ROOM as error:
                wait_for_room(error, on_full)
            else:
                return

    def _follow(
        self, job_id: str, state: StreamState, retries: Retries, *, from_beginning: bool
    ) -> Generator[StreamEvent]:
        while True:
            params = {"from_beginning": "true" if from_beginning else "false"}
            headers = {"Last-Event-ID": str(state.position)} if state.position else {}
            stream = self._http.stream(f"{_job_path(job_id)}/stream", params, headers)
            if (yield from self._read(stream, state, retries)):
                return

    def _read(
        self,
        connection: contextlib.AbstractContextManager[Iterator[ServerEvent]],
        state: StreamState,
        retries: Retries,
    ) -> Generator[StreamEvent, None, bool]:
        """Yield what one connection brings that is new; True after the verdict, False when it is time to reconnect."""
        try:
            with connection as received:
                for message in received:
                    event = state.accept(message)
                    if not isinstance(event, ErrorEvent):
                        retries.progress()
                    if event is None:
                        continue
                    yield event
                    if is_last(event):
                        return True
            raise Disconnected("the server ended the stream before the verdict")
        except (Disconnected, CIError) as error:
            retries.wait(error)
        return False

    def _position_now(self, job_id: str) -> Position | None:
        """Return where new output will begin, so that a reconnect cannot skip what comes meanwhile.

        None where nothing can come: the job is over and its log is not kept any more.
        """
        attempt = self.get_job(job_id).attempt
        if attempt == 0:
            return Position(0, 0)
        path = f"{_job_path(job_id)}/log"
        try:
            return Position(attempt, self._patiently(lambda: self._http.size(path, {"attempt": attempt})))
        except LogPruned:
            return None

    @contextlib.contextmanager
    def _explained(self, sending: contextlib.AbstractContextManager[T], upload: Upload) -> Generator[T]:
        """What breaks an upload is told: a server that refuses one may hang up before we read why."""
        answered = False
        try:
            with sending as answer:
                answered = True
                yield answer
        except Disconnected as error:
            if error.after_contact and not answered:
                self._raise_refusal(upload)
            raise

    def _raise_refusal(self, upload: Upload) -> None:
        size = upload.size
        try:
            limit = self._http.json("GET", "/info")["limits"]["max_upload_bytes"]
        except (Disconnected, NotFound, ServerUnreachable, TypeError, KeyError):
            return  # as unreachable as before, or a server without this page
        if size > limit:
            raise ArchiveTooLarge(
                f"The archive has {size} bytes, the server takes {limit}: see ci submit test --dry-run."
            )

    def _patiently(self, request: Callable[[], T]) -> T:
        retries = self._retries()
        while True:
            try:
                return request()
            except (Disconnected, CIError) as error:
                retries.wait(error)

    def _retries(self) -> Retries:
        return Retries(self._policy, self.server_url, self._on_outage)


def submit_tests_streaming(
    root: Path,
    server_url: str | None = None,
    api_key: str | None = None,
    *,
    options: JobOptions | None = None,
) -> Iterator[dict[str, Any]]:
    """Submit the project in a directory and yield its events as the JSON objects of the wire, the verdict last.

    Server and key come from the arguments, else from the environment, else from `~/.ci/config`.
    """
    connection = config.resolve(config.Flags(server=server_url, api_key=api_key))
    compress = not config.is_loopback(connection.server_url)
    with (
        TreeUpload(root, options, compress=compress) as upload,
        CIClient(connection.server_url, connection.api_key) as client,
    ):
        for event in client.submit_upload_stream(upload):
            yield event.to_json()


def _job_path(job_id: str) -> str:
    if not job_id:
        raise InvalidRequest("The job id is empty: `ci list` shows the ids of your jobs.")
    return f"/jobs/{quote(job_id, safe='')}"

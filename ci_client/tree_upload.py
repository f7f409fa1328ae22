"""A project as an upload: what changed since the server last took it goes up, in one request if that is little."""

import struct
import threading
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

from ci_client import file_index
from ci_client._http import Body, Http, ProtocolError, ServerEvent, json_body
from ci_client.blobs import Blob, FileChanged, Packed, pack
from ci_client.listing import offered_by_git
from ci_client.scan import Scan, now, scan
from ci_client.second_look import look_again
from ci_client.selection import LookAhead, select_files
from ci_client.sender import Sender
from ci_client.upload import Progress, ZipUpload
from ci_common.arguments import require_short
from ci_common.errors import MethodNotAllowed, MissingBlobs, NotFound
from ci_common.job_terms import DEFAULT_POOL, JobOptions, Priority

T = TypeVar("T")
_CONTENT_TYPE = "application/vnd.ci.submission"
_LENGTH = struct.Struct(">I")
_ROUNDS = 5  # submissions in a row, each with what the one before lacked


def _ignore(*_: Any) -> None:
    """Nobody wants to know."""


@dataclass(frozen=True, slots=True)
class Told:
    """Who hears of what while a project goes up."""

    warning: Callable[[str], None] = _ignore
    detail: Callable[[str], None] = _ignore  # for those who asked for more
    progress: Progress = _ignore


class _NotAsTree(Exception):
    """The project goes as a zip: the server is too old, or a file never stands still."""


class TreeUpload:
    """Sends a project by its changes; where that cannot be, as a zip. A context manager.

    Sending again after something broke goes on where it stood. When this is left, what was learnt of the files is in
    the index of the project.
    """

    def __init__(
        self,
        root: Path,
        options: JobOptions | None = None,
        *,
        compress: bool = True,
        include_ignored: bool = False,
        told: Told | None = None,
    ) -> None:
        self._root = root
        self._options = options or JobOptions()
        require_short(self._options.pytest_args)  # now, and not once everything was sent
        self._compress = compress
        self._include_ignored = include_ignored
        self._told = told or Told()
        self._warned: set[str] = set()
        self._index: file_index.FileIndex | None = None
        self._accepted: file_index.FileIndex | None = (
            None  # of a tree that the server has, beside what is `present`
        )
        self._scan: Scan | None = None
        self._saving: threading.Thread | None = None
        self._present: set[bytes] = set()  # what the server has, as far as is known
        self._inline: list[Blob] = []  # what goes with the submission
        self._zip: ZipUpload | None = None
        self._closing = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._scan and not self._saving:
            self._keep_index("")
        if self._saving:
            self._saving.join()
        self._closing.close()

    @property
    def size(self) -> int:
        """Bytes of the request that asks for the job."""
        return self._zip.size if self._zip else sum(blob.size for blob in self._inline)

    def submit(self, http: Http, headers: Mapping[str, str]) -> AbstractContextManager[Any]:
        """Send what changed; the context is the accepted job's JSON."""
        return self._submitted(
            http,
            lambda: http.upload("POST", "/submit-tree", self._body(), headers),
            lambda archive: archive.submit(http, headers),
        )

    def submit_stream(
        self, http: Http, headers: Mapping[str, str]
    ) -> AbstractContextManager[Iterator[ServerEvent]]:
        """Send what changed; the context is the accepted job's events."""
        return self._submitted(
            http,
            lambda: http.upload_stream("/submit-tree", self._body(), headers),
            lambda archive: archive.submit_stream(http, headers),
        )

    @contextmanager
    def _submitted(
        self,
        http: Http,
        as_tree: Callable[[], AbstractContextManager[T]],
        as_zip: Callable[[ZipUpload], AbstractContextManager[T]],
    ) -> Generator[T]:
        with ExitStack() as stack:
            if self._zip is None:
                try:
                    answer = self._in_rounds(http, stack, as_tree)
                except _NotAsTree as reason:
                    self._told.detail(f"Sending a zip: {reason}.")
                    answer = stack.enter_context(as_zip(self._packed()))
            else:
                answer = stack.enter_context(as_zip(self._zip))
            yield answer

    def _in_rounds(self, http: Http, stack: ExitStack, request: Callable[[], AbstractContextManager[T]]) -> T:
        """Return the answer to a submission that lacked nothing in the end; raises _NotAsTree."""
        for rounds_left in reversed(range(_ROUNDS)):
            try:
                self._prepare(http)
                answer = stack.enter_context(request())
            except FileChanged as change:
                self._look_again(change, rounds_left)
            except MissingBlobs as error:
                self._learn(error, rounds_left)
            except (NotFound, MethodNotAllowed) as error:
                raise _NotAsTree("the server takes no trees") from error
            else:
                self._keep_index(http.identity)
                return answer
        raise AssertionError("the last round ends by an answer or an error")

    def _prepare(self, http: Http) -> None:
        """The project has been looked at, and all but what goes inline is with the server."""
        sender = Sender(http, self._present, compress=self._compress, on_progress=self._told.progress)
        if self._scan is None:
            # While the tree is looked at, which takes no network.
            threading.Thread(target=http.prepare, daemon=True, name="connect").start()
            self._look(http, sender)
        else:
            with sender:
                for blob in self._scan.blobs():
                    sender.add(blob)
        self._inline = sender.inline

    def _look(self, http: Http, sender: Sender) -> None:
        began = now()
        ahead = LookAhead(self._root, self._known(http))
        quick = self._accepted is not None and not self._include_ignored
        offered = offered_by_git(self._root) if quick else None
        with sender:
            found = None if offered is None else look_again(ahead, offered, began, sender.add)
            self._scan = found or self._whole(ahead, offered, began, sender)
        self._told.detail(f"{len(self._scan.index.files)} files, {self._scan.files_read} of them read.")

    def _whole(self, ahead: LookAhead, offered: list[str] | None, began: int, sender: Sender) -> Scan:
        """Return what a look at every file found."""
        self._believe()
        selection = select_files(
            self._root, include_ignored=self._include_ignored, ahead=ahead, offered=offered
        )
        self._warn(selection.warnings)
        found = scan(selection, ahead.index, began, sender.add, self._present)
        self._warn(found.warnings)
        return found

    def _known(self, http: Http) -> file_index.FileIndex:
        if self._index is None:
            self._index = file_index.load(self._root)
            if self._index.accepted_by == http.identity:
                self._accepted = self._index
        return self._index

    def _believe(self) -> None:
        """What the server took with the last tree is among what it has."""
        if self._accepted:
            self._present |= self._accepted.blobs()
            self._accepted = None

    def _body(self) -> Body:
        assert self._scan is not None, "submitted once it has been looked at"
        asked: dict[str, Any] = {"root": self._scan.tree.root.hex(), "pytest_args": self._options.pytest_args}
        if self._options.timeout_seconds is not None:
            asked["timeout"] = self._options.timeout_seconds
        if self._options.fresh:
            asked["fresh"] = True
        if self._options.priority is not Priority.NORMAL:
            asked["priority"] = self._options.priority.value
        if self._options.max_attempts is not None:
            asked["max_attempts"] = self._options.max_attempts
        if self._options.queue_timeout_seconds is not None:
            asked["queue_timeout"] = self._options.queue_timeout_seconds
        if self._options.pool != DEFAULT_POOL:
            asked["pool"] = self._options.pool
        head = json_body(asked)
        records = pack(self._inline, compress=self._compress)
        self._told.detail(f"Sending {records.length} bytes with the submission.")
        content = (_LENGTH.pack(len(head)) + head, *records.chunks)
        return Body(_CONTENT_TYPE, Packed(sum(map(len, content)), self._reported(content)))

    def _reported(self, content: tuple[bytes, ...]) -> Iterator[bytes]:
        whole = b"".join(content)
        self._told.progress(0, len(whole))
        yield whole
        self._told.progress(len(whole), len(whole))

    def _look_again(self, change: FileChanged, rounds_left: int) -> None:
        if not rounds_left:
            raise _NotAsTree(f"{change.path} changes all the time") from change
        self._told.detail(f"{change.path} changed while it was sent; looking again.")
        self._scan = None

    def _learn(self, error: MissingBlobs, rounds_left: int) -> None:
        """What the server lacks is not taken for present any more; raises the error when that does not help."""
        assert self._scan is not None, "submitted once it has been looked at"
        try:
            lacking = {bytes.fromhex(digest) for digest in error.extra["missing"]}
        except (KeyError, TypeError, ValueError):
            raise ProtocolError("The server lacks files, and does not say which.") from error
        if not rounds_left:
            raise error
        self._believe()
        sent = {blob.digest for blob in self._inline}
        # Below a listing that it lacks, the server does not know what else it lacks: all is asked for.
        self._present = sent if lacking & self._scan.index.listings() else self._present | sent
        self._present -= lacking

    def _packed(self) -> ZipUpload:
        """The project is a zip in a temporary file, for this and every further attempt."""
        from ci_client.archive import build_archive  # only servers without trees need it

        archive = build_archive(self._root, compress=self._compress, include_ignored=self._include_ignored)
        self._zip = ZipUpload(self._closing.enter_context(archive).file, self._options, self._told.progress)
        self._warn(archive.warnings)
        return self._zip

    def _warn(self, warnings: tuple[str, ...]) -> None:
        for warning in warnings:
            if warning not in self._warned:
                self._warned.add(warning)
                self._told.warning(warning)

    def _keep_index(self, accepted_by: str) -> None:
        """The index is being saved for the next submission, beside what goes on."""
        assert self._scan is not None, "submitted once it has been looked at"
        index = self._scan.index
        index.accepted_by = accepted_by
        self._saving = threading.Thread(target=self._save, args=(index,), daemon=True, name="index")
        self._saving.start()

    def _save(self, index: file_index.FileIndex) -> None:
        try:
            file_index.save(self._root, index)
        except OSError as error:
            self._told.detail(f"What was learnt of the files cannot be kept: {error}")

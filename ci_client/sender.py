"""The blobs of one tree on their way: few go with the submission, many ahead of it while the tree is still read."""

from typing import TYPE_CHECKING, Any, Self

from ci_client._http import Http
from ci_client.blobs import Blob
from ci_client.upload import Progress

if TYPE_CHECKING:
    from ci_client.bulk import BulkUpload

_INLINE = 1 << 20  # bytes that go with the submission itself, without asking what is missing
_BATCH = 4 << 20  # bytes of blobs that are asked for and sent together
_BATCH_BLOBS = 5_000


class Sender:
    """Takes the blobs of a tree one by one; a context manager that ends when all but the inline ones are sent."""

    def __init__(self, http: Http, present: set[bytes], *, compress: bool, on_progress: Progress) -> None:
        self.inline: list[Blob] = []  # complete when this has ended
        self._http = http
        self._present = present  # what the server has, as far as is known; grows
        self._compress = compress
        self._on_progress = on_progress
        self._seen: set[bytes] = set()
        self._waiting: list[Blob] = []
        self._waiting_bytes = 0
        self._bulk: BulkUpload | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: Any, *rest: object) -> None:
        if self._bulk is None:
            self.inline = self._waiting
            return
        if kind is None:
            self._flush(self._bulk)
        self._bulk.__exit__(kind, *rest)

    def add(self, blob: Blob) -> None:
        """The blob goes up, unless the server has it."""
        if blob.digest in self._present or blob.digest in self._seen:
            return
        self._seen.add(blob.digest)
        self._waiting.append(blob)
        self._waiting_bytes += blob.size
        limit = _INLINE if self._bulk is None else _BATCH
        if self._waiting_bytes > limit or len(self._waiting) > _BATCH_BLOBS:
            self._flush(self._bulk or self._begun())

    def _begun(self) -> "BulkUpload":
        from ci_client.bulk import BulkUpload  # most submissions do without

        self._bulk = BulkUpload(
            self._http,
            compress=self._compress,
            on_present=self._present.update,
            on_progress=self._on_progress,
        )
        self._bulk.__enter__()
        return self._bulk

    def _flush(self, bulk: "BulkUpload") -> None:
        batch, self._waiting, self._waiting_bytes = self._waiting, [], 0
        bulk.put(batch)

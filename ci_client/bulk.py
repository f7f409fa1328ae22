"""Many blobs at once: asks what the server lacks, and sends that over several connections.

Bounded in memory by the batches that wait; no knowledge of trees.
"""

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Self

from ci_client._http import Body, Http, json_body
from ci_client.blobs import CONTENT_TYPE, SMALL, Blob, Packed, pack
from ci_client.upload import Progress

_ASKED = 10_000  # hashes per question
_STREAMS = 2


class BulkUpload:
    """Takes batches of blobs, which are with the server when this ends; a context manager."""

    def __init__(
        self,
        http: Http,
        *,
        compress: bool,
        on_present: Callable[[Iterable[bytes]], None],
        on_progress: Progress,
    ) -> None:
        self._http = http
        self._compress = compress
        self._on_present = on_present
        self._on_progress = on_progress
        self._sent = self._total = 0
        self._lock = threading.Lock()
        self._batches: queue.Queue[list[Blob] | None] = queue.Queue(maxsize=_STREAMS)
        self._error: Exception | None = None
        self._threads = [
            threading.Thread(target=self._work, daemon=True, name="upload") for _ in range(_STREAMS)
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: Any, *_: object) -> None:
        for _thread in self._threads:
            self._batches.put(None)
        for thread in self._threads:
            thread.join()
        if kind is None:
            self._raise_error()

    def put(self, blobs: list[Blob]) -> None:
        """The blobs are on their way; waits while enough others are. Raises what went wrong with earlier ones."""
        self._raise_error()
        self._batches.put(blobs)

    def _raise_error(self) -> None:
        if self._error:
            raise self._error

    def _work(self) -> None:
        while (batch := self._batches.get()) is not None:
            if self._error:
                continue  # whoever puts must not wait for ever
            try:
                self._send_missing(batch)
            except Exception as error:  # noqa: BLE001 - carried over to the thread that puts
                self._error = error

    def _send_missing(self, batch: list[Blob]) -> None:
        for start in range(0, len(batch), _ASKED):
            asked = batch[start : start + _ASKED]
            missing = self._missing(asked)
            self._on_present([blob.digest for blob in asked if blob.digest not in missing])
            lacking = [blob for blob in asked if blob.digest in missing]
            self._moved(total=sum(blob.size for blob in lacking))
            for bundle in _bundles(lacking):
                self._send(bundle)

    def _missing(self, blobs: list[Blob]) -> set[bytes]:
        question = json_body({"sha256": [blob.digest.hex() for blob in blobs]})
        body = Body("application/json", Packed(len(question), (question,)))
        with self._http.upload("POST", "/blobs/missing", body) as answer:
            return {bytes.fromhex(digest) for digest in answer["missing"]}

    def _send(self, bundle: list[Blob]) -> None:
        packed = pack(bundle, compress=self._compress)
        with self._http.upload("PUT", "/blobs", Body(CONTENT_TYPE, packed)):
            self._on_present([blob.digest for blob in bundle])
            self._moved(sent=sum(blob.size for blob in bundle))

    def _moved(self, *, sent: int = 0, total: int = 0) -> None:
        with self._lock:
            self._sent += sent
            self._total += total
            self._on_progress(self._sent, self._total)


def _bundles(blobs: Iterable[Blob]) -> Iterator[list[Blob]]:
    """Yield the blobs in lists for one request each: several small ones, or one that is big."""
    bundle: list[Blob] = []
    size = 0
    for blob in blobs:
        if bundle and size + blob.size > SMALL:
            yield bundle
            bundle, size = [], 0
        bundle.append(blob)
        size += blob.size
    if bundle:
        yield bundle

"""Objects in a bucket of S3, or of whatever speaks its protocol; the one module that knows `obstore`.

Credentials, region and endpoint are those of the environment (`AWS_ACCESS_KEY_ID`, …), as every tool for S3 has them:
they are no settings of ours, and no sentence of ours shows them.
"""

import os
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

import obstore
from obstore.exceptions import BaseError, PermissionDeniedError, UnauthenticatedError
from obstore.store import S3Store

from ci_common.errors import StorageUnavailable
from ci_common.stores import StoredItem
from ci_persistence.objects import Objects

if TYPE_CHECKING:  # where obstore's own types live only
    from obstore import ObjectMeta
    from obstore.store import ClientConfig, RetryConfig

_PIECE: Final = 8 * 1024**2  # bytes of an upload that go at once, and four of those at a time
_READ: Final = 1024**2
_TRIES: "RetryConfig" = {"max_retries": 4, "retry_timeout": timedelta(seconds=20)}
_ENDPOINTS: Final = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")


class S3Objects(Objects):
    """The objects below `s3://bucket/prefix`."""

    def __init__(self, url: str) -> None:
        """Nothing is asked of the bucket yet. Raises StorageUnavailable where the environment lacks what is needed."""
        self._bucket = urlsplit(url).netloc
        endpoint = next((found for name in _ENDPOINTS if (found := os.environ.get(name))), "")
        # Without TLS only where the operator wrote an endpoint without it: a test's, or one on this host.
        client: ClientConfig = {"connect_timeout": "5s", "timeout": "300s"}
        client["allow_http"] = endpoint.startswith("http://")
        with self._translated():
            self._store = S3Store.from_url(url, client_options=client, retry_config=_TRIES)

    def put(self, name: str, source: Path) -> None:
        # The request is signed with the hash of what it brings, so the bucket refuses bytes that changed on their way.
        with self._translated():
            obstore.put(self._store, name, source, chunk_size=_PIECE, max_concurrency=4)

    def fetch(self, name: str, target: Path) -> None:
        with self._translated(), target.open("wb") as file:
            found = obstore.get(self._store, name)
            for piece in found.stream(min_chunk_size=_READ):
                file.write(piece)
            if file.tell() != found.meta["size"]:
                raise StorageUnavailable(f"Only a part of {name} came from bucket {self._bucket}.")

    def exists(self, name: str) -> bool:
        with self._translated():
            try:
                obstore.head(self._store, name)
            except FileNotFoundError:
                # A missing bucket is answered in the same way, and without a body that says so.
                self.check()
                return False
        return True

    def delete(self, name: str) -> None:
        with self._translated():
            obstore.delete(self._store, name)

    def items(self, folder: str) -> Iterator[StoredItem]:
        now = datetime.now(UTC)
        with self._translated():
            for batch in self._listed(f"{folder}/"):
                for one in batch:
                    age = max(0.0, (now - one["last_modified"]).total_seconds())
                    yield StoredItem(one["path"].rpartition("/")[2], one["size"], age)

    def check(self) -> None:
        with self._translated():
            next(self._listed("check/"), None)

    def _listed(self, prefix: str) -> "Iterator[Sequence[ObjectMeta]]":
        # obstore's list is also of types of a library that is not installed, which no checker can know.
        return obstore.list(self._store, prefix)  # pyright: ignore[reportUnknownMemberType]

    @contextmanager
    def _translated(self) -> Generator[None]:
        """What goes wrong is StorageUnavailable, with a sentence of ours; an absent object is no such thing."""
        try:
            yield
        except FileNotFoundError as error:
            if "NoSuchBucket" in str(error):
                raise self._unavailable(_no_bucket(self._bucket)) from error
            raise
        except (PermissionDeniedError, UnauthenticatedError) as error:
            raise self._unavailable(_refused(self._bucket)) from error
        except (BaseError, ValueError) as error:
            raise self._unavailable(_said(str(error), self._bucket)) from error

    def _unavailable(self, detail: str) -> StorageUnavailable:
        return StorageUnavailable(
            detail, public_detail="The place where this server keeps its files does not answer."
        )


def _said(text: str, bucket: str) -> str:
    """Return what is wrong: a listing's error has the answer of the bucket in its text only."""
    if "NoSuchBucket" in text:
        return _no_bucket(bucket)
    if "403 Forbidden" in text or "401 Unauthorized" in text:
        return _refused(bucket)
    # Its first line only, and not all of that: an answer may tell what was signed, and with which key.
    first = text.partition("\n")[0].partition("<")[0]
    return f"Bucket {bucket} cannot be used now: {first[:300]}"


def _no_bucket(bucket: str) -> str:
    return f"There is no bucket {bucket}: make it, or correct CI_STORAGE_URL (and AWS_ENDPOINT_URL)."


def _refused(bucket: str) -> str:
    return (
        f"Bucket {bucket} refuses our credentials: see to AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, and that "
        "they may list, read, write and delete there."
    )

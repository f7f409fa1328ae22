"""An endpoint of S3's protocol in this process: as much of it as is used here, over memory.

It stands for the service, not for code of ours: `tests/unit/test_objects.py` runs the same suite against a bucket
elsewhere when `CI_TEST_S3_URL` names one.
"""

import hashlib
import re
import threading
import uuid
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Final
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape, unescape

KEY_ID: Final = "AKIDTEST"
SECRET: Final = "a-secret-that-is-shown-nowhere"


@dataclass
class FakeS3:
    """What the endpoint holds, and how it behaves."""

    url: str = ""
    buckets: dict[str, dict[str, bytes]] = field(default_factory=lambda: {"bucket": {}})
    fails: bool = False  # each request is answered with 503
    requests: list[str] = field(default_factory=list[str])
    uploads: dict[str, dict[int, bytes]] = field(default_factory=dict[str, dict[int, bytes]])

    @property
    def objects(self) -> dict[str, bytes]:
        return self.buckets["bucket"]

    def environment(self, **changes: str) -> dict[str, str]:
        """Return the variables by which a client finds it."""
        found = {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": KEY_ID,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_REGION": "us-east-1",
        }
        return found | changes


@contextmanager
def s3_endpoint() -> Generator[FakeS3]:
    """It answers in this context."""
    fake = FakeS3()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"fake": fake}))
    fake.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield fake
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    fake: FakeS3
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # head and body in one packet
    disable_nagle_algorithm = True

    def log_message(self, format: str, *args: object) -> None: ...  # noqa: A002 - the library's name

    def _handle(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = urlsplit(self.path)
        bucket, _, key = unquote(parts.path).lstrip("/").partition("/")
        query = {name: values[0] for name, values in parse_qs(parts.query, keep_blank_values=True).items()}
        self.fake.requests.append(f"{self.command} {self.path}")
        signed = f"Credential={KEY_ID}/" in self.headers.get("Authorization", "")
        sent = self.headers.get("x-amz-content-sha256", "")
        if self.fake.fails:
            self._error(503, "SlowDown")
        elif not signed:
            self._error(403, "InvalidAccessKeyId")
        elif sent != hashlib.sha256(body).hexdigest():
            self._error(400, "XAmzContentSHA256Mismatch")
        elif bucket not in self.fake.buckets:
            self._error(404, "NoSuchBucket")
        else:
            getattr(self, f"_{self.command.lower()}")(self.fake.buckets[bucket], key, query, body)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _handle  # noqa: N815 - the names of the library

    def _get(self, objects: dict[str, bytes], key: str, query: dict[str, str], body: bytes) -> None:
        if "list-type" in query:
            self._list(objects, query)
        elif (data := objects.get(key)) is None:
            self._error(404, "NoSuchKey")
        else:
            self._answer(200, data, etag=True)

    _head = _get

    def _put(self, objects: dict[str, bytes], key: str, query: dict[str, str], body: bytes) -> None:
        if "uploadId" in query:
            self.fake.uploads[query["uploadId"]][int(query["partNumber"])] = body
        else:
            objects[key] = body
        self._answer(200, b"", etag=True)

    def _post(self, objects: dict[str, bytes], key: str, query: dict[str, str], body: bytes) -> None:
        if "delete" in query:
            keys = [unescape(found) for found in re.findall(r"<Key>(.*?)</Key>", body.decode())]
            for one in keys:
                objects.pop(one, None)
            deleted = "".join(f"<Deleted><Key>{escape(one)}</Key></Deleted>" for one in keys)
            self._answer(200, f"<DeleteResult>{deleted}</DeleteResult>".encode())
        elif "uploads" in query:
            upload = uuid.uuid4().hex
            self.fake.uploads[upload] = {}
            said = f"<InitiateMultipartUploadResult><UploadId>{upload}</UploadId></InitiateMultipartUploadResult>"
            self._answer(200, said.encode())
        else:
            parts = self.fake.uploads.pop(query["uploadId"])
            objects[key] = b"".join(parts[number] for number in sorted(parts))
            said = "<CompleteMultipartUploadResult><ETag>x</ETag></CompleteMultipartUploadResult>"
            self._answer(200, said.encode())

    def _delete(self, objects: dict[str, bytes], key: str, query: dict[str, str], body: bytes) -> None:
        self.fake.uploads.pop(query.get("uploadId", ""), None) if "uploadId" in query else objects.pop(
            key, None
        )
        self._answer(204, b"")

    def _list(self, objects: dict[str, bytes], query: dict[str, str]) -> None:
        """Two at a time, so that whoever lists must come again."""
        after = query.get("continuation-token", "")
        names = sorted(name for name in objects if name.startswith(query.get("prefix", "")) and name > after)
        some, more = names[:2], len(names) > 2
        now = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%S.000Z}"
        contents = "".join(
            f"<Contents><Key>{escape(name)}</Key><LastModified>{now}</LastModified><ETag>x</ETag>"
            f"<Size>{len(objects[name])}</Size></Contents>"
            for name in some
        )
        token = f"<NextContinuationToken>{escape(some[-1])}</NextContinuationToken>" if more else ""
        said = (
            f"<ListBucketResult><KeyCount>{len(some)}</KeyCount>"
            f"<IsTruncated>{str(more).lower()}</IsTruncated>{token}{contents}</ListBucketResult>"
        )
        self._answer(200, said.encode())

    def _error(self, status: int, code: str) -> None:
        key = self.headers.get("Authorization", "")
        said = f"<Error><Code>{code}</Code><Message>no</Message><StringToSign>{escape(key)}</StringToSign></Error>"
        self._answer(status, said.encode())

    def _answer(self, status: int, body: bytes, *, etag: bool = False) -> None:
        self.send_response(status)
        if etag:
            self.send_header("ETag", '"x"')
            self.send_header("Last-Modified", f"{datetime.now(UTC):%a, %d %b %Y %H:%M:%S GMT}")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

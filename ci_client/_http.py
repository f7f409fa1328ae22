"""HTTP as this client needs it; the only module that knows httpx.

Problem documents become the exceptions of `ci_common.errors`; anything that breaks on the way becomes
`Disconnected`, which says nothing about whether the server acted. No redirect is followed: the key goes to
the server it was meant for and to no other.
"""

import json
import ssl
import sys
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO, cast
from urllib.parse import urlsplit

from ci_client.config import is_loopback
from ci_common.errors import (
    ArchiveTooLarge,
    CIError,
    Forbidden,
    InternalError,
    InvalidRequest,
    LogPruned,
    ServerUnreachable,
    TooManyRequests,
    Unauthorized,
    Unavailable,
    errors_by_code,
)

if "httpx" not in sys.modules:
    # Why: httpx imports its own command line (rich, pygments) where it can, which doubles its import time;
    # a None entry makes that import fail, which httpx provides for.
    cast(dict[str, Any], sys.modules)["httpx._main"] = None
import httpx
from httpx_sse import EventSource

PING_SECONDS = 15.0
_TIMEOUT = httpx.Timeout(10.0, read=2 * PING_SECONDS + 5.0, write=60.0, pool=None)
# Why longer: between the last byte of an upload and the answer the server syncs and checks the archive.
_UPLOAD_TIMEOUT = httpx.Timeout(10.0, read=90.0, write=60.0, pool=None)
_NO_CONTACT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.ProxyError)
_MAX_PROBLEM_BYTES = 1 << 20
_PARTIAL_CONTENT = 206

# What a gateway before the server may say in its own words.
_BY_STATUS: Mapping[int, type[CIError]] = {
    401: Unauthorized,
    403: Forbidden,
    410: LogPruned,  # the answer to a HEAD has no body that says so
    413: ArchiveTooLarge,
    429: TooManyRequests,
    502: Unavailable,
    503: Unavailable,
    504: Unavailable,
}

Params = Mapping[str, str | int | Sequence[str]]


class Disconnected(Exception):
    """The connection could not be made, or broke after contact; what the server did meanwhile is unknown."""

    def __init__(self, detail: str, *, after_contact: bool = True) -> None:
        super().__init__(detail)
        self.after_contact = after_contact


class ProtocolError(InternalError):
    """What answers breaks the protocol; asking again would bring the same."""


@dataclass(frozen=True, slots=True)
class ServerEvent:
    """One event of a stream as it came: its JSON object and the id in force."""

    data: Mapping[str, Any]
    id: str


@dataclass(frozen=True, slots=True)
class Page:
    """One page of a listing and the parameters of the next, if there is one."""

    items: list[Mapping[str, Any]]
    next_params: dict[str, str] | None


class Http:
    """One server and one key."""

    def __init__(self, server_url: str, api_key: str) -> None:
        # Why: loading certificates takes 50 ms; where no TLS can occur an empty context does (and trusts nobody).
        plain = urlsplit(server_url).scheme == "http"
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT) if plain else httpx.create_ssl_context()
        self._client = httpx.Client(
            base_url=server_url,
            headers={"Authorization": f"Bearer {api_key}", "User-Agent": "ci-client"},
            timeout=_TIMEOUT,
            verify=context,
            follow_redirects=False,
            # A proxy cannot reach this machine's loopback.
            mounts={"all://": None} if is_loopback(server_url) else None,
        )
        self.server_url = server_url

    def close(self) -> None:
        """Every connection is closed."""
        self._client.close()

    def json(self, method: str, path: str, params: Params | None = None) -> Any:
        """Return the JSON document the server answers with, None for an empty answer."""
        with self._open(method, path, params=params) as response:
            return _json_of(response)

    def page(self, path: str, params: Params) -> Page:
        """Return one page of a listing."""
        with self._open("GET", path, params=params) as response:
            items = _json_of(response)
            if not isinstance(items, list):
                raise _not_ours(response)
            following = response.links.get("next", {}).get("url")
            # Only its parameters are taken: the server must not send the key elsewhere by a link.
            next_params = dict(httpx.URL(following).params) if following else None
            return Page(cast(list[Mapping[str, Any]], items), next_params)

    @contextmanager
    def upload(
        self, path: str, file: BinaryIO, fields: Mapping[str, Any], headers: Mapping[str, str]
    ) -> Generator[Any]:
        """Send a form with one file in it and yield the answer's JSON document."""
        with self._open_upload(path, file, fields, headers) as response:
            yield _json_of(response)

    @contextmanager
    def upload_stream(
        self, path: str, file: BinaryIO, fields: Mapping[str, Any], headers: Mapping[str, str]
    ) -> Generator[Iterator[ServerEvent]]:
        """Send a form with one file in it and yield the events of the answer."""
        with self._open_upload(path, file, fields, headers) as response:
            yield _events(response)

    @contextmanager
    def stream(
        self, path: str, params: Params, headers: Mapping[str, str]
    ) -> Generator[Iterator[ServerEvent]]:
        """Yield the events of a stream."""
        accept = {"Accept": "text/event-stream", "Cache-Control": "no-store", **headers}
        with self._open("GET", path, params=params, headers=accept) as response:
            yield _events(response)

    def size(self, path: str, params: Params) -> int:
        """Return how many bytes a document has."""
        with self._open("HEAD", path, params=params, headers={"Accept-Encoding": "identity"}) as response:
            length = response.headers.get("content-length", "")
            if not length.isdigit():
                raise ProtocolError(f"The server does not say how long {path} is.")
            return int(length)

    @contextmanager
    def download(self, path: str, params: Params, offset: int) -> Generator[Iterator[bytes]]:
        """Yield the bytes of a document from `offset` on."""
        headers = {"Range": f"bytes={offset}-"} if offset else {}
        # Identity: offsets count the bytes of the document, not of a compressed form of it.
        headers["Accept-Encoding"] = "identity"
        with self._open("GET", path, params=params, headers=headers) as response:
            if offset and response.status_code != _PARTIAL_CONTENT:
                raise ProtocolError("The server ignored the range that was asked for.")
            yield response.iter_bytes()

    @contextmanager
    def _open(self, method: str, path: str, **options: Any) -> Generator[httpx.Response]:
        try:
            with self._client.stream(method, path, **options) as response:
                if not response.is_success:
                    raise _problem(response)
                yield response
        except httpx.RequestError as error:
            after_contact = not isinstance(error, _NO_CONTACT)
            raise Disconnected(str(error) or type(error).__name__, after_contact=after_contact) from error

    @contextmanager
    def _open_upload(
        self, path: str, file: BinaryIO, fields: Mapping[str, Any], headers: Mapping[str, str]
    ) -> Generator[httpx.Response]:
        file.seek(0)
        form = {"file": ("project.zip", file, "application/zip")}
        with self._open(
            "POST", path, data=fields, files=form, headers=headers, timeout=_UPLOAD_TIMEOUT
        ) as response:
            yield response


def _events(response: httpx.Response) -> Iterator[ServerEvent]:
    if not response.headers.get("content-type", "").startswith("text/event-stream"):
        raise _not_ours(response)
    for event in EventSource(response).iter_sse():
        if event.data:
            yield ServerEvent(_object(event.data), event.id)


def _object(text: str) -> Mapping[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise ProtocolError(f"The server sent an event that is no JSON: {text[:80]!r}") from error
    if not isinstance(value, dict):
        raise ProtocolError(f"The server sent an event that is no object: {text[:80]!r}")
    return cast(dict[str, Any], value)


def _json_of(response: httpx.Response) -> Any:
    body = response.read()
    if not body:
        return None
    try:
        return json.loads(body)
    except ValueError as error:
        raise _not_ours(response) from error


def _problem(response: httpx.Response) -> CIError:
    """Return the exception a problem document stands for: the class of its `code`."""
    document = _problem_document(response)
    code = str(document.get("code", ""))
    cls = errors_by_code().get(code)
    if cls is None and not code:
        return _not_ours(response)
    if cls is None:  # a code younger than this client
        cls = InvalidRequest if response.status_code < 500 else InternalError
    detail = str(document.get("detail") or document.get("title") or f"HTTP {response.status_code}")
    members = {name: document[name] for name in ("rule", "request_id") if document.get(name)}
    return cls(detail, retry_after=_retry_after(response), **members)


def _problem_document(response: httpx.Response) -> Mapping[str, Any]:
    body = bytearray()
    for chunk in response.iter_bytes():
        body += chunk
        if len(body) > _MAX_PROBLEM_BYTES:
            return {}
    try:
        document = json.loads(body)
    except ValueError:
        return {}
    return cast(dict[str, Any], document) if isinstance(document, dict) else {}


def _not_ours(response: httpx.Response) -> CIError:
    """Return the error for an answer that no server of ours gives: a proxy's page, another service, a redirect."""
    where, status = response.url.copy_with(query=None), response.status_code
    if response.has_redirect_location:
        location = response.headers["location"]
        return ServerUnreachable(
            f"The server redirects {where} to {location}: name that address by --server."
        )
    if cls := _BY_STATUS.get(status):
        return cls(f"{where} answers: {status} {response.reason_phrase}.", retry_after=_retry_after(response))
    return ServerUnreachable(f"{where} answers ({status}), but not as a CI server: is --server right?")


def _retry_after(response: httpx.Response) -> int | None:
    value = response.headers.get("retry-after", "")
    return int(value) if value.isascii() and value.isdigit() else None

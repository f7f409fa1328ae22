"""HTTP as this client needs it: requests with a key, and what the answers mean.

Problem documents become the exceptions of `ci_common.errors`; anything that breaks on the way becomes
`Disconnected`, which says nothing about whether the server acted. No redirect is followed: the key goes to
the server it was meant for and to no other.
"""

import json
import re
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, cast
from urllib.parse import parse_qsl, urlencode, urlsplit

from ci_client._connections import Body, Connections, Disconnected, Response
from ci_client.sse import EventTooLong, events_of
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

__all__ = ["Body", "Disconnected", "Http", "Page", "ProtocolError", "ServerEvent"]

PING_SECONDS = 15.0
_PATIENCE = 2 * PING_SECONDS + 5.0
# Why longer: between the last byte of an upload and the answer the server syncs and checks what came.
_UPLOAD_PATIENCE = 90.0
_MAX_PROBLEM_BYTES = 1 << 20
_MAX_DOCUMENT_BYTES = 16 << 20  # a page of a thousand jobs has one
_LONGEST_WAIT = 3600  # seconds, whatever a server asks for
_PARTIAL_CONTENT = 206
_NEXT_LINK = re.compile(r'<([^>]*)>\s*;[^,]*\brel="?next\b')

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
_NO_JSON = (ValueError, RecursionError)  # the second for what is nested deeper than anybody's
_MEMBERS = (
    "rule",
    "request_id",
    "missing",
    "size",
    "limit",
)  # of problem documents, that this client has a use for

Params = Mapping[str, str | int | Sequence[str]]


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
        headers = {
            "Authorization": f"Bearer {api_key}",
            "User-Agent": "ci-client",
            "Accept": "*/*",
            # Offsets count the bytes of a document, not of a compressed form of it.
            "Accept-Encoding": "identity",
        }
        self._connections = Connections(server_url, headers)
        self.server_url = server_url
        # Who asks whom, without telling the key.
        self.identity = sha256(f"{server_url}\0{api_key}".encode()).hexdigest()

    def close(self) -> None:
        """Every connection is closed."""
        self._connections.close()

    def prepare(self) -> None:
        """A connection is open, if the server can be reached."""
        self._connections.prepare()

    def json(
        self, method: str, path: str, params: Params | None = None, headers: Mapping[str, str] | None = None
    ) -> Any:
        """Return the JSON document the server answers with, None for an empty answer."""
        with self._open(method, path, params, headers) as response:
            return _json_of(response)

    def page(self, path: str, params: Params) -> Page:
        """Return one page of a listing."""
        with self._open("GET", path, params) as response:
            items = _json_of(response)
            if not isinstance(items, list):
                raise _not_ours(response)
            following = _NEXT_LINK.search(response.headers.get("link", ""))
            # Only its parameters are taken: the server must not send the key elsewhere by a link.
            next_params = dict(parse_qsl(urlsplit(following[1]).query)) if following else None
            return Page(cast(list[Mapping[str, Any]], items), next_params)

    @contextmanager
    def upload(
        self,
        method: str,
        path: str,
        body: Body,
        headers: Mapping[str, str] | None = None,
        patience: float = _UPLOAD_PATIENCE,
    ) -> Generator[Any]:
        """Send something and yield the answer's JSON document; `patience`: seconds the server may say nothing."""
        with self._open(method, path, None, headers, body, patience) as response:
            yield _json_of(response)

    @contextmanager
    def upload_stream(
        self, path: str, body: Body, headers: Mapping[str, str]
    ) -> Generator[Iterator[ServerEvent]]:
        """Send something and yield the events of the answer."""
        with self._open("POST", path, None, {"Accept": "text/event-stream", **headers}, body) as response:
            yield _events(response)

    @contextmanager
    def stream(
        self, path: str, params: Params, headers: Mapping[str, str]
    ) -> Generator[Iterator[ServerEvent]]:
        """Yield the events of a stream."""
        accept = {"Accept": "text/event-stream", "Cache-Control": "no-store", **headers}
        with self._open("GET", path, params, accept) as response:
            yield _events(response)

    def size(self, path: str, params: Params) -> int:
        """Return how many bytes a document has."""
        with self._open("HEAD", path, params) as response:
            length = response.headers.get("content-length", "")
            if not length.isdigit():
                raise ProtocolError(f"The server does not say how long {path} is.")
            return int(length)

    @contextmanager
    def download(
        self, path: str, params: Params, offset: int, headers: Mapping[str, str] | None = None
    ) -> Generator[Iterator[bytes]]:
        """Yield the bytes of a document from `offset` on."""
        wanted = {"Range": f"bytes={offset}-"} if offset else {}
        with self._open("GET", path, params, {**wanted, **(headers or {})}) as response:
            if offset and response.status != _PARTIAL_CONTENT:
                raise ProtocolError("The server ignored the range that was asked for.")
            yield response.pieces()

    @contextmanager
    def _open(
        self,
        method: str,
        path: str,
        params: Params | None = None,
        headers: Mapping[str, str] | None = None,
        body: Body | None = None,
        upload_patience: float = _UPLOAD_PATIENCE,
    ) -> Generator[Response]:
        target = f"{path}?{urlencode(params, doseq=True)}" if params else path
        patience = upload_patience if body else _PATIENCE
        with self._connections.request(method, target, headers or {}, body, patience) as response:
            if not response.is_success:
                raise _problem(response)
            yield response


def json_body(document: Any) -> bytes:
    """Return a document as it travels."""
    return json.dumps(document, separators=(",", ":")).encode()


def _events(response: Response) -> Iterator[ServerEvent]:
    if not response.headers.get("content-type", "").startswith("text/event-stream"):
        raise _not_ours(response)
    try:
        for event in events_of(response.pieces()):
            if event.data:
                yield ServerEvent(_object(event.data), event.id)
    except EventTooLong as error:
        raise ProtocolError(f"The server sent an event without an end: {error}.") from error


def _object(text: str) -> Mapping[str, Any]:
    try:
        value = json.loads(text)
    except _NO_JSON as error:
        raise ProtocolError(f"The server sent an event that is no JSON: {text[:80]!r}") from error
    if not isinstance(value, dict):
        raise ProtocolError(f"The server sent an event that is no object: {text[:80]!r}")
    return cast(dict[str, Any], value)


def _json_of(response: Response) -> Any:
    body = _read(response, _MAX_DOCUMENT_BYTES)
    if body is None:
        raise ProtocolError(f"The server's answer is longer than {_MAX_DOCUMENT_BYTES} bytes.")
    if not body:
        return None
    try:
        return json.loads(body)
    except _NO_JSON as error:
        raise _not_ours(response) from error


def _read(response: Response, limit: int) -> bytes | None:
    """Return the whole body, None where it is longer than that."""
    body = bytearray()
    for piece in response.pieces():
        body += piece
        if len(body) > limit:
            return None
    return bytes(body)


def _problem(response: Response) -> CIError:
    """Return the exception a problem document stands for: the class of its `code`."""
    document = _problem_document(response)
    code = str(document.get("code", ""))
    cls = errors_by_code().get(code)
    if cls is None and not code:
        return _not_ours(response)
    if cls is None:  # a code younger than this client
        cls = InvalidRequest if response.status < 500 else InternalError
    detail = str(document.get("detail") or document.get("title") or f"HTTP {response.status}")
    members = {name: document[name] for name in _MEMBERS if document.get(name) is not None}
    return cls(detail, retry_after=_retry_after(response), **members)


def _problem_document(response: Response) -> Mapping[str, Any]:
    body = _read(response, _MAX_PROBLEM_BYTES)
    try:
        document = json.loads(body or b"null")
    except _NO_JSON:
        return {}
    return cast(dict[str, Any], document) if isinstance(document, dict) else {}


def _not_ours(response: Response) -> CIError:
    """Return the error for an answer that no server of ours gives: a proxy's page, another service, a redirect."""
    where, status = response.url.partition("?")[0], response.status
    location = response.headers.get("location")
    if location and 300 <= status < 400:
        return ServerUnreachable(
            f"The server redirects {where} to {location}: name that address by --server."
        )
    if cls := _BY_STATUS.get(status):
        return cls(f"{where} answers: {status} {response.reason}.", retry_after=_retry_after(response))
    return ServerUnreachable(f"{where} answers ({status}), but not as a CI server: is --server right?")


def _retry_after(response: Response) -> int | None:
    value = response.headers.get("retry-after", "")[:16]
    return min(int(value), _LONGEST_WAIT) if value.isascii() and value.isdigit() else None

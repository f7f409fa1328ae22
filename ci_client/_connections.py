"""Connections to one server, kept open and used again; the only module that knows `http.client`.

What breaks is a `Disconnected`. Proxies are those of the environment, as for curl; certificates those of SSL_CERT_FILE
or SSL_CERT_DIR, else of certifi. Nothing here knows what the answers mean.
"""

import http.client
import os
import selectors
import socket
import sys
import threading
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import SplitResult, unquote, urlsplit

from ci_client.blobs import Packed
from ci_client.config import is_loopback
from ci_common.errors import InvalidRequest

if TYPE_CHECKING:
    import ssl

_CONNECT_SECONDS = 10.0
_WRITE_SECONDS = 60.0
_PIECE = 1 << 16
_KEPT = 4  # idle connections


class Disconnected(Exception):
    """The connection could not be made, or broke after contact; what the server did meanwhile is unknown."""

    def __init__(self, detail: str, *, after_contact: bool = True) -> None:
        super().__init__(detail)
        self.after_contact = after_contact


class Body(NamedTuple):
    """What a request carries."""

    content_type: str
    content: Packed


class Response:
    """An answer whose head has come; its body is read as it comes."""

    def __init__(self, response: http.client.HTTPResponse, url: str) -> None:
        self.status = response.status
        self.reason = response.reason
        self.headers = {name.lower(): value for name, value in response.getheaders()}
        self.url = url
        self._response = response

    @property
    def is_success(self) -> bool:
        """Whether the server did what it was asked."""
        return 200 <= self.status < 300

    def pieces(self) -> Iterator[bytes]:
        """Yield the body as it comes; raises Disconnected when it ends early."""
        with _breaking():
            yield from self._live_pieces() if self._response.chunked else self._stored_pieces()

    def _live_pieces(self) -> Iterator[bytes]:
        while piece := self._response.read1(_PIECE):
            yield piece

    def _stored_pieces(self) -> Iterator[bytes]:
        while piece := self._response.read(_PIECE):
            yield piece
        if self._response.length:
            raise Disconnected("the server ended its answer before it was whole")


class Connections:
    """Opens connections to one server as they are needed; used by any number of threads."""

    def __init__(self, server_url: str, headers: Mapping[str, str]) -> None:
        self._server = urlsplit(server_url)
        self._headers = headers
        self._proxy = _proxy_of(self._server, server_url)
        self._context = _tls_context() if self._server.scheme == "https" else None
        self._idle: list[http.client.HTTPConnection] = []
        self._is_closed = False
        self._lock = threading.Lock()

    def close(self) -> None:
        """Every idle connection is closed, and one that is in use with its answer."""
        with self._lock:
            idle, self._idle, self._is_closed = self._idle, [], True
        for connection in idle:
            connection.close()

    def prepare(self) -> None:
        """A connection is open, where one can be had: the next request need not wait for it."""
        with suppress(Disconnected):  # the request finds out again, and says so
            self._give_back(self._take())

    @contextmanager
    def request(
        self, method: str, target: str, headers: Mapping[str, str], body: Body | None, patience: float
    ) -> Generator[Response]:
        """Yield the answer to a request; `patience` is how long the server may say nothing."""
        connection = self._take()
        try:
            with _breaking():
                response = self._exchange(connection, method, target, headers, body, patience)
            yield Response(response, self._url(target))
            if response.isclosed() and connection.sock is not None:
                self._give_back(connection)
                return
        except BaseException:
            connection.close()
            raise
        connection.close()  # what is left of the answer nobody wants to read

    def _exchange(
        self,
        connection: http.client.HTTPConnection,
        method: str,
        target: str,
        headers: Mapping[str, str],
        body: Body | None,
        patience: float,
    ) -> http.client.HTTPResponse:
        connection.sock.settimeout(_WRITE_SECONDS)
        try:
            self._send(connection, method, target, headers, body)
        except ConnectionError:
            return _early_answer(connection)
        connection.sock.settimeout(patience)
        return connection.getresponse()

    def _send(
        self,
        connection: http.client.HTTPConnection,
        method: str,
        target: str,
        headers: Mapping[str, str],
        body: Body | None,
    ) -> None:
        path = self._server.path.rstrip("/") + target
        plain_proxy = self._proxy is not None and self._context is None
        connection.putrequest(method, self._url(target) if plain_proxy else path, skip_accept_encoding=True)
        every = {**self._headers, **(_proxy_headers(self._proxy) if plain_proxy else {}), **headers}
        if body is not None:
            every |= {"Content-Type": body.content_type, "Content-Length": str(body.content.length)}
        elif method not in ("GET", "HEAD"):
            every["Content-Length"] = "0"
        for name, value in every.items():
            connection.putheader(name, value)
        connection.endheaders()
        for piece in body.content.chunks if body is not None else ():
            connection.send(piece)

    def _url(self, target: str) -> str:
        return f"{self._server.scheme}://{self._server.netloc}{self._server.path.rstrip('/')}{target}"

    def _take(self) -> http.client.HTTPConnection:
        while True:
            with self._lock:
                connection = self._idle.pop() if self._idle else None
            if connection is None:
                return self._connected()
            if not _has_ended(connection.sock):
                return connection
            connection.close()

    def _give_back(self, connection: http.client.HTTPConnection) -> None:
        with self._lock:
            if len(self._idle) < _KEPT and not self._is_closed:
                self._idle.append(connection)
                return
        connection.close()

    def _connected(self) -> http.client.HTTPConnection:
        connection = self._unconnected()
        try:
            connection.connect()
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise Disconnected(str(error) or type(error).__name__, after_contact=False) from error
        return connection

    def _unconnected(self) -> http.client.HTTPConnection:
        to = self._proxy or self._server
        host = to.hostname or ""
        if self._context is None:
            return http.client.HTTPConnection(host, to.port or 80, timeout=_CONNECT_SECONDS)
        port = to.port or (80 if self._proxy else 443)
        connection = http.client.HTTPSConnection(host, port, timeout=_CONNECT_SECONDS, context=self._context)
        if self._proxy:
            connection.set_tunnel(
                self._server.hostname or "", self._server.port or 443, dict(_proxy_headers(self._proxy))
            )
        return connection


@contextmanager
def _breaking() -> Generator[None]:
    """Whatever breaks on the way is a Disconnected."""
    try:
        yield
    except (OSError, http.client.HTTPException) as error:
        raise Disconnected(str(error) or type(error).__name__) from error


def _early_answer(connection: http.client.HTTPConnection) -> http.client.HTTPResponse:
    """Return what a server said before it hung up on a request that was not sent to its end."""
    connection.sock.settimeout(_CONNECT_SECONDS)
    return connection.getresponse()


def _has_ended(sock: socket.socket) -> bool:
    """Tell whether the server has hung up meanwhile: between answers there is nothing else to read."""
    with selectors.DefaultSelector() as selector:
        selector.register(sock, selectors.EVENT_READ)
        return bool(selector.select(0))


def _tls_context() -> "ssl.SSLContext":
    import ssl  # slow to import and to set up: only where TLS is spoken

    file, directory = os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR")
    if file or directory:
        return ssl.create_default_context(cafile=file, capath=directory)
    import certifi

    return ssl.create_default_context(cafile=certifi.where())


def _proxy_of(server: SplitResult, server_url: str) -> SplitResult | None:
    """Return the proxy the environment names for this server; never one for this very machine."""
    named = any(name.lower().endswith("_proxy") for name in os.environ)
    if is_loopback(server_url) or not (named or sys.platform in ("win32", "darwin")):
        return None
    from urllib.request import getproxies, proxy_bypass  # slow to import, seldom needed

    proxies = getproxies()
    proxy = proxies.get(server.scheme) or proxies.get("all")
    if not proxy or proxy_bypass(server.hostname or ""):
        return None
    parts = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    if parts.scheme != "http" or not parts.hostname:
        raise InvalidRequest(f"The proxy {proxy} of the environment is not one of HTTP: http://host:port")
    return parts


def _proxy_headers(proxy: SplitResult | None) -> Mapping[str, str]:
    if proxy is None or not proxy.username:
        return {}
    from base64 import b64encode

    secret = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}"
    return {"Proxy-Authorization": f"Basic {b64encode(secret.encode()).decode()}"}

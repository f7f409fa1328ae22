"""The Docker SDK, synchronous: the only module that imports `docker`, and where its errors become ours.

`DockerEngine` hands out the SDK's low-level client, inside a context that translates what it raises, and
opens streams, each over a client of its own. Every call is bounded in time.
"""

import http.client
import socket
import threading
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager, suppress
from typing import Any, Final, TypeVar
from urllib.parse import quote

import docker  # pyright: ignore[reportMissingTypeStubs]
import docker.constants  # pyright: ignore[reportMissingTypeStubs]
import docker.errors  # pyright: ignore[reportMissingTypeStubs]
import docker.utils  # pyright: ignore[reportMissingTypeStubs]
import requests
import urllib3.exceptions

from ci_common.errors import EngineUnavailable
from ci_controller.container_runtime import ContainerError, ContainerGone

_OPEN_STREAM_SECONDS: Final = 5.0  # until the engine has answered with headers
_TRANSFER_BYTES: Final = 1 << 16
_USUAL_SOCKET: Final = "unix:///var/run/docker.sock"

# A 500 that says one of these is about the engine or its host, not about the container it was asked for.
_ENGINE_TROUBLE: Final = (
    "containerd.sock",
    "transport is closing",
    "connection error: desc",
    "context deadline exceeded",
    "no space left on device",
)
_TRANSPORT_ERRORS: Final = (
    requests.RequestException,
    urllib3.exceptions.HTTPError,
    http.client.HTTPException,
    OSError,
)

Result = TypeVar("Result")


class ContainerConflict(ContainerError):
    """The state of a container, or another container, does not allow it."""


class DockerEngine:
    """The engine that DOCKER_HOST names, or the one at its usual socket; connects when first asked."""

    def __init__(self, timeout: float, pool_size: int) -> None:
        self._timeout = timeout
        self._pool_size = pool_size
        self._client: Any = None
        self._connecting = threading.Lock()
        self._streams: set[EngineStream] = set()

    def ask(self, question: Callable[[Any], Result]) -> Result:
        """Return the answer to something about the engine as a whole; whatever fails is EngineUnavailable."""
        with _engine_errors():
            return question(self._connected())

    def find(self, question: Callable[[Any], Result]) -> Result | None:
        """Return the answer to a question about one thing, None where the engine knows no such thing."""

        def asked(client: Any) -> Result | None:
            try:
                return question(client)
            except (docker.errors.NotFound, docker.errors.NullResource):
                return None
            except docker.errors.APIError as error:
                if error.status_code != 400:
                    raise
                return None  # what is no proper name names nothing

        return self.ask(asked)

    def act(self, container: str, action: Callable[[Any], Result]) -> Result:
        """Return the result of a call about one container; raises also ContainerGone and ContainerError."""
        client = self.ask(lambda client: client)
        with _container_errors(container):
            return action(client)

    def follow(self, path: str, params: Mapping[str, Any], container: str | None = None) -> "EngineStream":
        """Return the answer to a GET that does not end, over a client of its own."""
        return self._open("get", path, params, container, {}, None)

    def read(self, path: str, params: Mapping[str, Any], container: str) -> "EngineStream":
        """Return the answer to a GET that ends by itself; reading it raises when it stalls or is cut off."""
        return self._open("get", path, params, container, {}, self._timeout)

    def attach_input(self, container: str) -> "EngineStream":
        """Return the way to the container's standard input, over a client of its own."""
        path = f"/containers/{quote(container, safe='')}/attach"
        upgrade = {"Connection": "Upgrade", "Upgrade": "tcp"}
        return self._open("post", path, {"stdin": 1, "stream": 1}, container, upgrade, None)

    def abort_streams(self) -> None:
        """Whoever reads from a stream or sends to one stops."""
        for stream in tuple(self._streams):
            stream.abort()

    def close(self) -> None:
        """Every connection is closed; streams that somebody still reads have ended."""
        for stream in tuple(self._streams):
            stream.close()
        with self._connecting:
            if self._client is not None:
                self._client.close()
                self._client = None

    def _connected(self) -> Any:
        with self._connecting:
            if self._client is None:
                self._client = self._new_client(self._api_version())
            return self._client

    def _new_client(self, version: str) -> Any:
        environment: dict[str, Any] = docker.utils.kwargs_from_env()  # pyright: ignore
        address = environment.get("base_url", _USUAL_SOCKET)
        _knock(address)
        new: Any = docker.APIClient
        client = new(**environment, version=version, timeout=self._timeout, max_pool_size=self._pool_size)
        # A socket of this host needs no proxy, and looking for one takes a fifth of a call's time [measured].
        client.trust_env = not _is_local(address)
        return client

    def _api_version(self) -> str:
        # Not by `version="auto"`: an engine that does not answer then leaves a client nobody can close.
        with closing(self._new_client(docker.constants.MINIMUM_DOCKER_API_VERSION)) as client:
            return client.version(api_version=False)["ApiVersion"]

    def _open(
        self,
        method: str,
        path: str,
        params: Mapping[str, Any],
        container: str | None,
        headers: Mapping[str, str],
        stall_seconds: float | None,
    ) -> "EngineStream":
        version = self.ask(lambda client: client.api_version)
        errors = _engine_errors() if container is None else _container_errors(container)
        with errors, ExitStack() as on_failure:
            client = self._new_client(version)
            on_failure.callback(client.close)
            url = f"{client.base_url}/v{version}{path}"
            limits = (self._timeout, _OPEN_STREAM_SECONDS)
            response = client.request(
                method, url, params=params, headers=headers, stream=True, timeout=limits
            )
            _raise_refusal(response)
            on_failure.pop_all()
        return EngineStream(client, response, self._streams, stall_seconds)


class EngineStream:
    """A connection to the engine that stays open: what it sends can be read, bytes can be sent to it.

    Where it may go on for ever, its transport's failures are ends, not errors: such an end proves nothing anyway.
    Where its end means something (`stall_seconds` without a byte are a failure then), they are errors.
    """

    def __init__(
        self, client: Any, response: Any, register: "set[EngineStream]", stall_seconds: float | None
    ) -> None:
        self._client = client
        self._response = response
        self._register = register
        self._socket = _socket_of(response)
        self._socket.settimeout(stall_seconds)
        self._must_end_well = stall_seconds is not None
        self._reading = threading.Lock()
        self._closed = False
        register.add(self)

    def chunks(self) -> Iterator[bytes]:
        """Yield what comes until it ends or the stream is closed, by whatever thread; may raise EngineUnavailable."""
        received: Iterator[bytes] = self._response.raw.stream(_TRANSFER_BYTES)
        while True:
            with self._reading:
                chunk = self._next(received)
            if chunk is None:
                return
            yield chunk

    def send(self, data: memoryview, timeout: float) -> int:
        """Return how many bytes of `data` were taken; raises TimeoutError when none were, for that long."""
        self._socket.settimeout(timeout)
        return self._socket.send(data[:_TRANSFER_BYTES])

    def end_input(self) -> None:
        """The other side sees the end of what was sent, as soon as it has read all of it."""
        with suppress(OSError):  # it left first
            self._socket.shutdown(socket.SHUT_WR)

    def abort(self) -> None:
        """Whoever reads from it or sends to it, in whatever thread, stops."""
        self._closed = True
        with suppress(OSError):  # it was not connected any more
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """The connection is gone and a thread that read from it has stopped."""
        self.abort()
        with self._reading:  # never close a descriptor that another thread reads from
            self._register.discard(self)
            self._response.close()
            self._socket.close()
            self._client.close()

    def _next(self, received: Iterator[bytes]) -> bytes | None:
        if self._closed:
            return None
        try:
            return next(received, None)
        except _TRANSPORT_ERRORS as error:
            if self._must_end_well and not self._closed:
                raise _unavailable(error) from error
            return None


def _knock(address: str) -> None:
    """Something listens at a Unix socket; the SDK itself leaves a socket open when nothing does."""
    if _is_local(address):
        with socket.socket(socket.AF_UNIX) as knocking:
            knocking.settimeout(_OPEN_STREAM_SECONDS)
            knocking.connect(address.removeprefix("unix://"))


def _is_local(address: str) -> bool:
    return address.startswith("unix://")


def _socket_of(response: Any) -> socket.socket:
    """Return the socket under a streamed response; neither requests nor urllib3 has a public way to it."""
    return response.raw._fp.fp.raw._sock  # the SDK reaches for it in the same way


def _raise_refusal(response: Any) -> None:
    try:
        response.raise_for_status()
    except requests.HTTPError as error:
        with closing(response):  # not before its body, the engine's explanation, was read
            docker.errors.create_api_error_from_http_exception(error)  # pyright: ignore


@contextmanager
def _engine_errors() -> Generator[None]:
    """What the SDK raises in a call about the engine as a whole comes out as EngineUnavailable."""
    try:
        yield
    except (docker.errors.DockerException, *_TRANSPORT_ERRORS) as error:
        raise _unavailable(error) from error


@contextmanager
def _container_errors(container: str) -> Generator[None]:
    """What the SDK raises in a call about one container comes out as one of the seam's three errors."""
    try:
        yield
    except docker.errors.APIError as error:
        raise _refusal(container, error) from error
    except (docker.errors.DockerException, *_TRANSPORT_ERRORS) as error:
        raise _unavailable(error) from error


def _refusal(container: str, error: Any) -> Exception:
    status: int = error.response.status_code
    said = str(error.explanation or error)
    if status == 404 and "no such container" in said.lower():
        return ContainerGone(container)
    if status > 500 or (status == 500 and any(word in said for word in _ENGINE_TROUBLE)):
        return EngineUnavailable(f"The Docker engine failed: {said}")
    return ContainerConflict(said) if status == 409 else ContainerError(said)


def _unavailable(error: Exception) -> EngineUnavailable:
    """Return the one error for an engine that cannot be used, with the way out."""
    said = str(error)
    if "Permission denied" in said:
        way_out = "run this as a user who may use Docker (group `docker`)"
    elif "timed out" in said:
        way_out = "it hangs: look at its log, restart it"
    else:
        way_out = "start it (`systemctl start docker`), or name another one in DOCKER_HOST"
    return EngineUnavailable(f"The Docker engine does not answer: {way_out}. ({said})")

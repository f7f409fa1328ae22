"""What is done with the engine's endless answers: a container's output, and the engine's events."""

import json
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from types import MappingProxyType
from typing import Final
from urllib.parse import quote

import structlog

from ci_common.errors import EngineUnavailable
from ci_controller import labels
from ci_controller.docker_engine import DockerEngine, EngineStream

log = structlog.get_logger(__name__)

_HEADER_BYTES: Final = 8  # the engine's framing of output: stream, three zeros, length
_EVENTS: Final = ["create", "start", "die", "destroy"]
_FIRST_PAUSE: Final = 0.1  # seconds before a lost watch reconnects
_LONGEST_PAUSE: Final = 5.0
_OUTPUT: Final = MappingProxyType({"stdout": 1, "stderr": 1})


class Demultiplexer:
    """Takes the engine's framing off a container's output, however it was cut on its way."""

    def __init__(self) -> None:
        self._header = bytearray()
        self._payload_left = 0

    def feed(self, data: bytes) -> bytes:
        """Return the payload in `data`: standard output and standard error, as they came."""
        payload: list[bytes] = []
        position = 0
        while position < len(data):
            if self._payload_left:
                piece = data[position : position + self._payload_left]
                self._payload_left -= len(piece)
                payload.append(piece)
            else:
                piece = data[position : position + _HEADER_BYTES - len(self._header)]
                self._take_header(piece)
            position += len(piece)
        return b"".join(payload)

    def _take_header(self, piece: bytes) -> None:
        self._header += piece
        if len(self._header) == _HEADER_BYTES:
            self._payload_left = int.from_bytes(self._header[4:], "big")
            self._header.clear()


@contextmanager
def followed_output(engine: DockerEngine, container: str) -> Generator[Iterator[bytes]]:
    """The container's output can be read from its beginning until it ends or the context is left."""
    with _reading(engine.follow(_output_path(container), {**_OUTPUT, "follow": 1}, container)) as output:
        yield output


@contextmanager
def present_output(engine: DockerEngine, container: str) -> Generator[Iterator[bytes]]:
    """The output that the engine has now can be read; raises EngineUnavailable when not all of it comes."""
    with _reading(engine.read(_output_path(container), {**_OUTPUT, "follow": 0}, container)) as output:
        yield output


def _output_path(container: str) -> str:
    return f"/containers/{quote(container, safe='')}/logs"


@contextmanager
def _reading(stream: EngineStream) -> Generator[Iterator[bytes]]:
    try:
        yield _payloads(stream)
    finally:
        stream.close()


def _payloads(stream: EngineStream) -> Iterator[bytes]:
    demultiplexer = Demultiplexer()
    for chunk in stream.chunks():
        payload = demultiplexer.feed(chunk)
        if payload:
            yield payload


class StreamHolder:
    """Makes a stream that one thread opens and uses abortable by another, at any moment."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._stream: EngineStream | None = None
        self._aborted = False

    def take(self, stream: EngineStream) -> bool:
        """Return whether the stream is still wanted; from now on `abort` ends it."""
        with self._lock:
            self._stream = stream
            return not self._aborted

    def abort(self) -> None:
        """The stream, present or to come, is of no use any more."""
        with self._lock:
            self._aborted = True
            if self._stream is not None:
                self._stream.abort()


class Watch:
    """A thread that calls back at each change of one installation's containers, until it is closed."""

    def __init__(self, engine: DockerEngine, instance_id: str, on_change: Callable[[], None]) -> None:
        self._engine = engine
        self._params = {
            "filters": json.dumps(
                {
                    "type": ["container"],
                    "event": _EVENTS,
                    "label": [f"{labels.INSTANCE}={instance_id}"],
                }
            )
        }
        self._on_change = on_change
        self._closed = threading.Event()
        self._holder = StreamHolder()
        self._thread = threading.Thread(target=self._run, name="docker-watch", daemon=True)

    def start(self) -> None:
        """The thread runs; it reconnects by itself."""
        self._thread.start()

    def close(self) -> None:
        """The thread has ended; waits for a pending connection attempt at most."""
        self._closed.set()
        self._holder.abort()
        self._thread.join()

    def _run(self) -> None:
        pause = _FIRST_PAUSE
        while not self._closed.is_set():
            connected = self._watch_until_lost()
            if not connected and pause == _FIRST_PAUSE:
                log.warning("the engine's events are lost")
            pause = _FIRST_PAUSE if connected else min(2 * pause, _LONGEST_PAUSE)
            self._closed.wait(pause)

    def _watch_until_lost(self) -> bool:
        """Return whether there was a connection at all."""
        try:
            stream = self._engine.follow("/events", self._params)
        except EngineUnavailable:
            return False  # whoever asks the engine for the truth reports that it does not answer
        try:
            if self._holder.take(stream):
                self._on_change()  # what happened before the connection stood was seen by nobody
                for _ in stream.chunks():
                    self._on_change()
        finally:
            stream.close()
        return True

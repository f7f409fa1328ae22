"""uvicorn's HTTP/1.1 protocol with the deadlines it lacks: slow heads, stalled readers, too many connections.

`ci-server` uses it; `uvicorn --http ci_server.http_protocol:GuardedProtocol ci_server.app:app` does too. The limits
come from the app, through the state its lifespan hands to the server.
"""

import asyncio
import contextlib
import json
import socket
import struct
import uuid
from typing import Any

import structlog
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
from uvicorn.server import ServerState

from ci_common.errors import CIError, InvalidRequest, Unavailable
from ci_server.connections import STATE_KEY, ConnectionLimits
from ci_server.problems import MEDIA_TYPE, problem_document
from ci_server.settings import ServerSettings

_MAX_HEAD_BYTES = 64 * 1024  # as uvicorn's other protocol; the parser itself knows no end
_FORGET = struct.pack("ii", 1, 0)  # struct linger: on, for no time at all
_BAD_REQUEST = 400
_HEAD_TOO_LARGE = 431

_log = structlog.stdlib.get_logger("ci_server.connections")


class GuardedProtocol(HttpToolsProtocol):
    """One connection, closed for good when it takes longer than it may."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        # Why: a connection that becomes a web socket would leave these deadlines; no route of ours is one.
        self.ws_protocol_class = None
        self._limits: ConnectionLimits = app_state.get(STATE_KEY) or ConnectionLimits(ServerSettings())
        self._address = ""
        self._admitted = False
        self._head_bytes = 0
        self._head_deadline: asyncio.TimerHandle | None = None
        self._send_deadline: asyncio.TimerHandle | None = None

    # -- the life of the connection ------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """The connection waits for its first request, or is refused with a problem document."""
        super().connection_made(transport)
        self._address = self.client[0] if self.client else ""
        self._admitted = self._limits.admit(self._address)
        if not self._admitted:
            self._refuse(Unavailable("Too many connections are open here; try again in a moment."), 503)
            return
        _give_up_unacknowledged_data(transport, self._limits.timeouts.send)
        _send_at_once(transport)
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing of the connection is left, its place in the count included."""
        self._head_arrived()
        self._reader_moves()
        if self._admitted:
            self._admitted = False
            self._limits.release(self._address)
        super().connection_lost(exc)

    # -- heads ---------------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        cycle: Any = self.cycle  # None before the first request, whatever uvicorn's annotation says
        if cycle is None or cycle.response_complete:
            # Also the rest of a body that nobody waits for: it, too, must end and be followed by a head.
            self._expect_head()
        is_rest_of_body = cycle is not None and cycle.more_body
        super().data_received(data)
        if self._head_deadline is not None and not is_rest_of_body:
            self._head_bytes += len(data)
            if self._head_bytes > _MAX_HEAD_BYTES and not self.transport.is_closing():
                self._refuse(InvalidRequest("The head of the request is too large."), _HEAD_TOO_LARGE)

    def on_headers_complete(self) -> None:
        self._head_arrived()
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:
        """The caller hears in our shape that this is no HTTP."""
        self._refuse(InvalidRequest(msg), _BAD_REQUEST)

    def _expect_head(self) -> None:
        if self._head_deadline is None:
            self._head_bytes = 0
            self._head_deadline = self.loop.call_later(self._limits.timeouts.head, self._too_slow)

    def _head_arrived(self) -> None:
        if self._head_deadline is not None:
            self._head_deadline.cancel()
            self._head_deadline = None

    def _too_slow(self) -> None:
        self._head_deadline = None
        _log.info("slow_client_dropped", client=self._address, bytes=self._head_bytes)
        self.transport.abort()

    # -- readers -------------------------------------------------------------------------------------------

    def pause_writing(self) -> None:
        """More waits for the reader than is kept for one; it has until the deadline to take some of it."""
        super().pause_writing()
        if self._send_deadline is None:
            self._send_deadline = self.loop.call_later(self._limits.timeouts.send, self._stalled)

    def resume_writing(self) -> None:
        self._reader_moves()
        super().resume_writing()

    def _reader_moves(self) -> None:
        if self._send_deadline is not None:
            self._send_deadline.cancel()
            self._send_deadline = None

    def _stalled(self) -> None:
        self._send_deadline = None
        _log.info("stalled_reader_dropped", client=self._address)
        # close() would wait for the reader to take what is left, for ever; and so would the kernel with what
        # it holds, unless it is told to forget it.
        with contextlib.suppress(OSError):
            self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _FORGET)
        self.transport.abort()

    # -- answers without the app ---------------------------------------------------------------------------

    def _refuse(self, error: CIError, status: int) -> None:
        self._head_arrived()
        request_id = uuid.uuid4().hex
        _log.warning("refused", status=status, request_id=request_id, client=self._address, why=error.detail)
        document = json.dumps({**problem_document(error, request_id), "status": status}).encode()
        head = f"content-type: {MEDIA_TYPE}\r\ncontent-length: {len(document)}\r\n"
        if isinstance(error, Unavailable):
            head += "retry-after: 1\r\n"
        self.transport.write(
            b"".join((STATUS_LINE[status], head.encode(), b"connection: close\r\n\r\n", document))
        )
        self.transport.close()


def _send_at_once(transport: asyncio.Transport) -> None:
    """What is written goes out now, not when what went before was acknowledged: that can take 40 ms.

    Event loops see to it themselves, but not at an inherited socket (`--fd`), which uvicorn takes for a Unix socket.
    """
    connection = transport.get_extra_info("socket")
    with contextlib.suppress(OSError):  # a Unix socket does so anyway
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _give_up_unacknowledged_data(transport: asyncio.Transport, seconds: float) -> None:
    """The kernel ends the connection when its peer has acknowledged nothing of what was sent for that long.

    It covers what the deadlines here cannot see: a peer that vanished, and one that takes nothing while less
    waits than we would notice. It comes later than they do, because it ends the connection without telling the peer.
    """
    connection = transport.get_extra_info("socket")
    with contextlib.suppress(OSError):  # a Unix socket has no such thing
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(2 * seconds * 1000))

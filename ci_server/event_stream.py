"""Job events as server-sent events: framing, pings, limits per user, and an orderly end at SIGTERM."""

import asyncio
import contextlib
import json
from collections import Counter
from collections.abc import AsyncGenerator, Generator
from functools import lru_cache

import structlog
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from ci_common.errors import CIError, InternalError, TooManyRequests
from ci_common.events import ErrorEvent, LogEvent, StatusEvent, StreamEvent
from ci_server.stream_end import Shutdown, StreamEnd

MEDIA_TYPE = "text/event-stream"
_HEADERS = {"Cache-Control": "no-cache, no-store", "X-Accel-Buffering": "no"}
# No `data:`, so parsers hand it to nobody; EventSource takes the hint when to come back.
_FAREWELL = b": this server is going down, resume with Last-Event-ID\nretry: 250\n\n"
_PING = b": ping\n\n"

_log = structlog.stdlib.get_logger("ci_server.streams")


class StreamSlots:
    """Counts the open streams of each user at this process, or what else may be open for long."""

    def __init__(self, per_user: int, what: str = "streams") -> None:
        self._per_user = per_user
        self._what = what
        self._open: Counter[str] = Counter()

    @contextlib.contextmanager
    def hold(self, user_id: str) -> Generator[None, None, None]:
        """One slot of the user is taken while in the block; raises TooManyRequests when there is none."""
        if self._open[user_id] >= self._per_user:
            raise TooManyRequests(
                f"You have {self._per_user} {self._what} open, which is the limit; close one.", retry_after=5
            )
        self._open[user_id] += 1
        try:
            yield
        finally:
            self._open[user_id] -= 1
            if not self._open[user_id]:
                del self._open[user_id]


class JobStream(StreamingResponse):
    """The response that carries a job's events; what `held` holds is let go when the stream is over.

    A reader that takes nothing is the protocol's to drop (`ci_server.http_protocol`): it sees what waits to be sent.
    """

    def __init__(
        self,
        events: AsyncGenerator[StreamEvent, None],
        *,
        end: StreamEnd,
        shutdown: Shutdown,
        held: contextlib.ExitStack,
        ping_interval: float,
        headers: dict[str, str],
        **log_context: object,
    ) -> None:
        super().__init__(frames(events, shutdown), media_type=MEDIA_TYPE, headers={**_HEADERS, **headers})
        self._end = end
        self._shutdown = shutdown
        self._held = held
        self._ping_interval = ping_interval
        self._log_context = log_context

    async def __call__(self, _scope: Scope, receive: Receive, send: Send) -> None:
        with (
            self._held,
            self._shutdown.ends(self._end),
            structlog.contextvars.bound_contextvars(**self._log_context),
        ):
            await send(
                {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
            )
            async with self._accompanied(receive, send):
                async for data in self.body_iterator:
                    await send({"type": "http.response.body", "body": data, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    @contextlib.asynccontextmanager
    async def _accompanied(self, receive: Receive, send: Send) -> AsyncGenerator[None, None]:
        """While in the block there are pings, and a reader that leaves ends the stream."""
        companion = asyncio.create_task(self._ping_until_left(receive, send))
        try:
            yield
        finally:
            companion.cancel()
            await asyncio.wait([companion])

    async def _ping_until_left(self, receive: Receive, send: Send) -> None:
        while True:
            try:
                async with asyncio.timeout(self._ping_interval):
                    message = await receive()
            except TimeoutError:
                await send({"type": "http.response.body", "body": _PING, "more_body": True})
            else:
                if message["type"] == "http.disconnect":
                    self._end.come()
                    return


async def frames(
    events: AsyncGenerator[StreamEvent, None], shutdown: Shutdown
) -> AsyncGenerator[bytes, None]:
    """Yield the events as they go over the wire; what goes wrong on the way becomes an `error` event."""
    async with contextlib.aclosing(events):
        try:
            async for event in events:
                yield frame(event)
        except CIError as error:
            if error.http_status >= 500:
                _log.warning("stream_failed", code=error.code, detail=error.detail)
            yield frame(ErrorEvent(error.code, error.public_detail))
        except Exception:  # noqa: BLE001 - logged in full; a broken connection would tell the reader less
            _log.exception("stream_failed")
            yield frame(ErrorEvent(InternalError.code, "The stream failed; resume it with Last-Event-ID."))
    if shutdown.has_begun:
        yield _FAREWELL


def frame(event: StreamEvent) -> bytes:
    """Return one event as bytes. Its JSON is ASCII on one line, so no log text can forge a field."""
    return _log_frame(event) if isinstance(event, LogEvent) else _frame(event)


@lru_cache(maxsize=8)  # viewers of one job are sent the same pieces, one after another
def _log_frame(event: LogEvent) -> bytes:
    return _frame(event)


def _frame(event: StreamEvent) -> bytes:
    position = event.position if isinstance(event, LogEvent | StatusEvent) else None
    identity = f"id: {position}\n" if position is not None else ""
    return f"{identity}data: {json.dumps(event.to_json())}\n\n".encode()

"""Job events as server-sent events: framing, pings, stalled readers, limits per user, and an orderly end at SIGTERM."""

import contextlib
import json
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Generator
from functools import lru_cache

import anyio
import structlog
from sse_starlette import EventSourceResponse
from sse_starlette.sse import SendTimeoutError
from starlette.types import Receive, Scope, Send

from ci_common.errors import CIError, InternalError, TooManyRequests
from ci_common.events import ErrorEvent, LogEvent, StatusEvent, StreamEvent
from ci_server.settings import ServerSettings

_HEADERS = {"Cache-Control": "no-cache, no-store", "X-Accel-Buffering": "no"}
# No `data:`, so parsers hand it to nobody; EventSource takes the hint when to come back.
_FAREWELL = b": this server is going down, resume with Last-Event-ID\nretry: 250\n\n"
_SHUTDOWN_GRACE = 1.0  # seconds in which the generator says its farewell

_log = structlog.stdlib.get_logger("ci_server.streams")


class StreamSlots:
    """Counts the open streams of each user at this process."""

    def __init__(self, per_user: int) -> None:
        self._per_user = per_user
        self._open: Counter[str] = Counter()

    @contextlib.contextmanager
    def hold(self, user_id: str) -> Generator[None, None, None]:
        """One slot of the user is taken while in the block; raises TooManyRequests when there is none."""
        if self._open[user_id] >= self._per_user:
            raise TooManyRequests(
                f"You have {self._per_user} streams open, which is the limit; close one.", retry_after=5
            )
        self._open[user_id] += 1
        try:
            yield
        finally:
            self._open[user_id] -= 1
            if not self._open[user_id]:
                del self._open[user_id]


class JobStream(EventSourceResponse):
    """The response that carries a job's events; what `held` holds is let go when the stream is over."""

    def __init__(
        self,
        events: AsyncGenerator[StreamEvent, None],
        *,
        stop: anyio.Event,
        held: contextlib.ExitStack,
        settings: ServerSettings,
        headers: dict[str, str] | None = None,
        **log_context: object,
    ) -> None:
        super().__init__(  # pyright: ignore[reportUnknownMemberType] - sse-starlette has a bare dict there
            frames(events, stop),
            headers={**_HEADERS, **(headers or {})},
            ping=settings.stream_ping_interval,
            sep="\n",
            send_timeout=settings.stream_send_timeout,
            shutdown_event=stop,
            shutdown_grace_period=_SHUTDOWN_GRACE,
        )
        self._held = held
        self._log_context = log_context

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._held, structlog.contextvars.bound_contextvars(**self._log_context):
            try:
                await super().__call__(scope, receive, send)
            except SendTimeoutError:
                _log.info("stalled_reader_dropped", path=scope["path"])


async def frames(events: AsyncGenerator[StreamEvent, None], stop: anyio.Event) -> AsyncIterator[bytes]:
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
    if stop.is_set():
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

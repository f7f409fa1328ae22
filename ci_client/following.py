"""What a reader of a job's stream has seen: makes one stream of several that overlap. Pure."""

from typing import NoReturn, TypeVar

from ci_client._http import Disconnected, ProtocolError, ServerEvent
from ci_common.errors import CIError, InternalError, errors_by_code
from ci_common.events import (
    CompleteEvent,
    ErrorEvent,
    JobIdEvent,
    LogEvent,
    Position,
    StatusEvent,
    StreamEvent,
    parse_event,
)

_Said = TypeVar("_Said", StatusEvent, ErrorEvent)
_MAX_GAPS = 5  # times in a row that asking again is worth it


class StreamState:
    """Where a reader stands, over any number of connections."""

    def __init__(self, position: Position | None = None) -> None:
        self.job_id: str | None = None
        self.position = position  # None: nothing read yet, and no place named by the server
        self._last_said: StatusEvent | ErrorEvent | None = None
        self._gaps = 0

    def accept(self, received: ServerEvent) -> StreamEvent | None:
        """Return what is new in an event, None where nothing is.

        Raises Disconnected when output was skipped (asking again from where we stand cures that), and the
        error itself when the server says that this stream is over for good.
        """
        event = _parse(received)
        match event:
            case JobIdEvent():
                is_new, self.job_id = self.job_id is None, event.job_id
                return event if is_new else None
            case LogEvent() if event.position.attempt > 0:
                return self._new_output(event)
            case StatusEvent():
                return self._new_status(event, _position(received))
            case ErrorEvent():
                _raise_if_final(event)
                return self._unless_repeated(event)
            case _:
                return event

    def _new_output(self, event: LogEvent) -> LogEvent | None:
        end, start = event.position, event.position.offset - len(event.data)
        seen = self.position
        if seen is None:
            expected = start  # the server chose where this reader begins
        elif end.attempt == seen.attempt:
            expected = seen.offset
        elif end.attempt > seen.attempt:
            expected = 0
        else:
            return None  # a late piece of an attempt that was given up
        if start > expected:
            self._report_gap(f"The server left out its output between byte {expected} and {start}.")
        fresh = event.data[expected - start :]
        if not fresh:
            return None
        self.position, self._gaps = end, 0
        return LogEvent(fresh, end)

    def _report_gap(self, message: str) -> NoReturn:
        self._gaps += 1
        raise Disconnected(message) if self._gaps < _MAX_GAPS else ProtocolError(message)

    def _new_status(self, event: StatusEvent, position: Position | None) -> StatusEvent | None:
        if self.position is None:
            self.position = position
        return self._unless_repeated(event)

    def _unless_repeated(self, event: _Said) -> _Said | None:
        """Return an event unless it says what the last one of its kind said: each connection begins with one."""
        if event == self._last_said:
            return None
        self._last_said = event
        return event


def is_last(event: StreamEvent) -> bool:
    """Tell whether nothing follows this event."""
    return isinstance(event, CompleteEvent)


def _parse(received: ServerEvent) -> StreamEvent | None:
    try:
        return parse_event(received.data, _position(received))
    except ValueError as error:
        raise ProtocolError(f"The server speaks another language than this client: {error}") from error


def _position(received: ServerEvent) -> Position | None:
    try:
        return Position.parse(received.id)
    except ValueError:
        return None  # a server without positions: nothing can be resumed, nothing is compared


def _raise_if_final(event: ErrorEvent) -> None:
    cls: type[CIError] = errors_by_code().get(event.code, InternalError)
    if 400 <= cls.http_status < 500:
        raise cls(event.message)

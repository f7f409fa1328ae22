"""What a reader makes of several overlapping streams: one, without gap or repeat."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ci_client._http import Disconnected, ProtocolError, ServerEvent
from ci_client.following import StreamState
from ci_common.errors import Unauthorized
from ci_common.events import ErrorEvent, LogEvent, Position, StatusEvent
from ci_common.job_terms import JobStatus

LOG = bytes(range(256)) * 2


def log_event(data: bytes, position: Position) -> ServerEvent:
    return ServerEvent(LogEvent(data, position).to_json(), str(position))


def status(name: str, attempt: int = 1, id: str = "") -> ServerEvent:  # noqa: A002 - the wire's word
    return ServerEvent({"type": "status", "status": name, "attempt": attempt, "message": None}, id)


def read(state: StreamState, *events: ServerEvent) -> bytes:
    seen = [state.accept(event) for event in events]
    return b"".join(event.data for event in seen if isinstance(event, LogEvent))


@given(st.lists(st.tuples(st.integers(0, len(LOG)), st.integers(1, 100)), max_size=40))
def test_any_pieces_of_a_log_in_any_order_give_its_beginning(pieces: list[tuple[int, int]]) -> None:
    state, got = StreamState(Position(1, 0)), b""
    for start, length in pieces:
        data = LOG[start : start + length]
        gap = start > len(got)
        try:
            got += read(state, log_event(data, Position(1, start + len(data))))
        except (Disconnected, ProtocolError):
            assert gap
        else:
            assert not gap
        assert got == LOG[: len(got)]


def test_a_new_attempt_starts_at_its_beginning() -> None:
    state = StreamState(Position(1, 10))
    with pytest.raises(Disconnected, match="between byte 0 and 5"):
        read(state, log_event(b"later", Position(2, 10)))
    assert read(state, log_event(b"first", Position(2, 5))) == b"first"


def test_late_output_of_a_lost_attempt_is_dropped() -> None:
    state = StreamState(Position(2, 5))
    assert read(state, log_event(b"x" * 20, Position(1, 20))) == b""


def test_the_server_chooses_where_a_reader_without_position_begins() -> None:
    state = StreamState()
    assert read(state, log_event(b"new", Position(1, 1003)), log_event(b"er", Position(1, 1005))) == b"newer"


def test_an_id_on_a_status_event_names_the_place() -> None:
    state = StreamState()
    state.accept(status("running", id="1:100"))
    assert state.position == Position(1, 100)


def test_a_server_that_keeps_leaving_output_out_is_given_up() -> None:
    state = StreamState(Position(1, 0))
    hole = log_event(b"later", Position(1, 50))
    for _ in range(4):
        with pytest.raises(Disconnected):
            state.accept(hole)
    with pytest.raises(ProtocolError, match="left out"):
        state.accept(hole)


def test_a_state_is_told_once_however_often_a_connection_begins() -> None:
    state = StreamState()
    told = [state.accept(status(name)) for name in ("queued", "queued", "running", "running")]
    assert [event for event in told if event] == [
        StatusEvent(JobStatus.QUEUED, 1),
        StatusEvent(JobStatus.RUNNING, 1),
    ]


def test_an_error_that_a_new_connection_may_cure_is_passed_on() -> None:
    error = ServerEvent({"type": "error", "code": "database_busy", "message": "busy"}, "")
    assert StreamState().accept(error) == ErrorEvent("database_busy", "busy")


def test_a_withdrawn_key_ends_the_stream() -> None:
    with pytest.raises(Unauthorized, match="revoked"):
        StreamState().accept(ServerEvent({"type": "error", "code": "unauthorized", "message": "revoked"}, ""))


@pytest.mark.parametrize(
    "data",
    [
        {"type": "status"},
        {"type": "log", "data_base64": "?"},
        {"type": "complete", "success": True, "reason": "x"},
    ],
)
def test_nonsense_is_no_reason_to_ask_again(data: dict[str, Any]) -> None:
    with pytest.raises(ProtocolError):
        StreamState().accept(ServerEvent(data, ""))


def test_events_younger_than_this_client_are_skipped() -> None:
    assert StreamState().accept(ServerEvent({"type": "test_result", "name": "x"}, "")) is None

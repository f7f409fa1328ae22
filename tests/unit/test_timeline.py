"""Where a job's time went: moments of database and container in one order, spans between them, and bars."""

import asyncio
import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from ci_client._http import ProtocolError
from ci_client.waterfall import Span, spans_of, waterfall
from ci_common.models import JobEvent
from ci_controller.log_recorder import LogRecorder
from ci_persistence.log_store import FileLogStore
from ci_server.timeline import attempts_of, timeline
from tests.support.ci_command import ci_environment, run_ci
from tests.support.framed import FramedOutput
from tests.support.http_peer import JOB_ID, KEY, Answer, HttpPeer
from tests.support.server import Account, Site

START = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
START_MS = int(START.timestamp() * 1000)


def later(milliseconds: int) -> datetime:
    return START + timedelta(milliseconds=milliseconds)


ROWS = [
    JobEvent("submitted", START),
    JobEvent("claimed", later(10), {"attempt": 1}),
    JobEvent("running", later(30), {"attempt": 1}),
    JobEvent("completed", later(900), {"success": True}),
]
_EVENTS: list[dict[str, Any]] = [
    {"type": "begun", "data": {}, "at": START_MS + 50},
    {"type": "phase", "data": {"name": "install", "title": "numpy"}, "at": START_MS + 60},
    {"type": "phase", "data": {"name": "test", "title": "pytest"}, "at": START_MS + 500},
    {"type": "end", "data": {"first_output_at": START_MS + 600}, "at": START_MS + 880},
]
# What an attempt of that job would leave in its `.events`.
SAID = b"".join(json.dumps({"offset": 0, **event}).encode() + b"\n" for event in _EVENTS)
TYPES = [
    "submitted",
    "claimed",
    "running",
    "begun",
    "phase",
    "phase",
    "first_output",
    "session_end",
    "completed",
]


def types(moments: Sequence[dict[str, Any]]) -> list[str]:
    return [moment["type"] for moment in moments]


def test_the_moments_of_row_and_container_are_in_one_order() -> None:
    moments = timeline(ROWS, {1: SAID})
    assert types(moments) == TYPES
    assert moments[0] == {
        "at": "2026-01-02T03:04:05.000000Z",
        "type": "submitted",
        "attempt": None,
        "data": {},
    }
    assert moments[6] == {
        "at": "2026-01-02T03:04:05.600000Z",
        "type": "first_output",
        "attempt": 1,
        "data": {},
    }


@pytest.mark.parametrize(
    "line",
    [
        b'{"offset": 0, "type": "begun", "data": {}}',  # of a harness that does not say when
        b'{"offset": 0, "type": "begun", "da',
        b"[]",
        b"\xff",
        b'{"type": "x", "data": [], "at": 1e300}',
        b'{"type": "x", "data": {}, "at": "now"}',
        b'{"type": "end", "data": [], "at": 5}',
        pytest.param(b"[" * 200_000, id="deep"),
    ],
)
def test_lines_that_say_no_moment_are_left_out(line: bytes) -> None:
    assert types(timeline(ROWS, {1: line + b"\n" + SAID})) == TYPES


def test_only_attempts_that_a_container_ran_for_are_asked() -> None:
    tries = [JobEvent("running", START, {"attempt": number}) for number in range(1, 31)]
    assert attempts_of(ROWS) == [1]
    assert attempts_of(tries) == list(range(21, 31))
    assert attempts_of([]) == []


def test_what_a_harness_dates_is_recorded_and_read_again(tmp_path: Path) -> None:
    run = FramedOutput()
    run.dated_event("phase", START_MS + 60, name="test").output(b"x").trailer(
        at=START_MS + 880, first_output_at=START_MS + 600
    )
    store = FileLogStore(tmp_path)
    writer = store.writer("job", 1)
    events = b""
    for _ in range(2):  # reading again changes nothing
        recorder = LogRecorder(writer, 1000)
        recorder.feed(run.bytes())
        recorder.finish()
        events = store.read_events("job", 1, 10_000)
        found = types(timeline(ROWS, {1: events}))
        assert found == [
            "submitted",
            "claimed",
            "running",
            "phase",
            "first_output",
            "session_end",
            "completed",
        ]
    writer.close()
    assert store.read_events("job", 1, 10) == events[:10]
    assert store.read_events("job", 2, 10) == b""


async def test_the_route_gives_the_moments_of_an_attempt(
    site: Site, ada: Account, http: httpx.AsyncClient
) -> None:
    job = await site.queue_job(ada)
    attempt = await site.hands.start()
    writer = site.stores.logs.writer(job.id, 1)
    writer.append_event(SAID)
    writer.close()
    await site.hands.finish(attempt)
    response = await http.get(f"/jobs/{job.id}/timeline")
    assert response.status_code == 200
    assert sorted(types(response.json())) == sorted(TYPES)


async def test_what_containers_said_is_read_beside_the_event_loop(
    site: Site, ada: Account, http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = await site.finished_job(ada, b"1 passed\n")
    on_the_loop, read = list[bool](), FileLogStore.read_events

    def seen(store: FileLogStore, job_id: str, attempt: int, length: int) -> bytes:
        on_the_loop.append(asyncio._get_running_loop() is not None)  # pyright: ignore[reportPrivateUsage]
        return read(store, job_id, attempt, length)

    monkeypatch.setattr(FileLogStore, "read_events", seen)
    assert (await http.get(f"/jobs/{job.id}/timeline")).status_code == 200
    assert on_the_loop == [False]


async def test_a_queued_job_has_one_moment(site: Site, ada: Account, http: httpx.AsyncClient) -> None:
    job = await site.queue_job(ada)
    assert types((await http.get(f"/jobs/{job.id}/timeline")).json()) == ["submitted"]


def test_spans_lie_between_moments_and_say_what_was_under_way() -> None:
    spans = spans_of(timeline(ROWS, {1: SAID}))
    assert [(span.label, span.took_ms) for span in spans] == [
        ("waiting in the queue", 10),
        ("getting a container", 20),
        ("sending the tree", 20),
        ("preparing", 10),
        ("installing: numpy", 440),
        ("starting pytest", 100),
        ("pytest", 280),
        ("recording the verdict", 20),
    ]
    assert spans[0].to_json() == {
        "label": "waiting in the queue",
        "start_ms": 0.0,
        "end_ms": 10.0,
        "attempt": None,
        "begins": "submitted",
        "ends": "claimed",
        "took_ms": 10.0,
    }


@pytest.mark.parametrize(
    "moments", [[{"at": "soon"}, {}], [{}, {}], [5, 6], [{"at": "2026-01-01T00:00:00Z"}] * 2]
)
def test_a_timeline_that_cannot_be_read_is_an_error_of_the_protocol(moments: list[Any]) -> None:
    with pytest.raises(ProtocolError):
        spans_of(moments)


def test_bars_stand_one_behind_the_other() -> None:
    spans = [
        Span("first", 0, 500, None, "submitted", "claimed"),
        Span("a label that is \x1b[31mmuch too long", 500, 1000, 1, "claimed", "completed"),
    ]
    first, second, whole = waterfall(spans, 70)
    assert first == f"{'first':<28} {'0.0 ms':>9} {'500.0 ms':>9} {'█' * 10}"
    assert second.endswith(f"{' ' * 10}{'█' * 10}")
    assert "\x1b" not in second
    assert whole.split() == ["in", "all", "1.00", "s"]


@pytest.mark.parametrize("columns", [0, 20, 80, 100, 1000])
def test_lines_are_as_wide_as_the_screen_or_as_wide_as_they_must(columns: int) -> None:
    widest = max(len(line) for line in waterfall(spans_of(timeline(ROWS, {1: SAID})), columns))
    assert widest <= max(columns, 60)


def test_colour_is_only_there_where_asked_for() -> None:
    spans = spans_of(timeline(ROWS, {1: SAID}))
    assert "\x1b[36m" in "".join(waterfall(spans, 80, colour=True))
    assert "\x1b" not in "".join(waterfall(spans, 80))


def test_an_unfinished_job_says_what_is_under_way() -> None:
    *_, last = waterfall(spans_of(timeline(ROWS[:3], {})), 80)
    assert last.endswith("(so far: sending the tree)")
    assert list(waterfall(spans_of(timeline(ROWS[:1], {})), 80)) == ["Nothing has happened to this job yet."]


@pytest.mark.parametrize("flags", [(), ("--json",)])
def test_the_command_shows_the_spans(tmp_path: Path, flags: tuple[str, ...]) -> None:
    with HttpPeer() as peer:
        peer.script.faults.append(Answer(200, json.dumps(timeline(ROWS, {1: SAID})).encode()))
        environment = ci_environment(peer.url, KEY)
        done = run_ci("status", JOB_ID, "--timing", *flags, environment=environment, cwd=tmp_path)
        assert peer.requests("GET", f"/jobs/{JOB_ID}/timeline")
    assert done.returncode == 0, done.stderr
    if flags:
        assert [span["label"] for span in json.loads(done.stdout)][:2] == [
            "waiting in the queue",
            "getting a container",
        ]
    else:
        assert "installing: numpy" in done.stdout.decode()
        assert b"\x1b" not in done.stdout

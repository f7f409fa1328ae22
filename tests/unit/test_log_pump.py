"""The log pump: what stands in the log is what the harness wrote, whatever was cut, lost, killed or read twice."""

import json
import os
import queue
import threading
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from ci_common.errors import EngineUnavailable
from ci_common.log_limits import LOG_SLACK, most_log_bytes
from ci_common.stores import LogWriter
from ci_controller.container_runtime import ContainerSpec, ExitState, start_and_feed
from ci_controller.frames import Outcome
from ci_controller.log_pump import LogPump, PumpEvent, PumpEventKind, drained, read_result
from ci_controller.log_recorder import (
    BEGINS_LATE,
    ENDS_EARLY,
    MISMATCH,
    OVER_LIMIT,
    LogRecorder,
    PumpResult,
)
from ci_persistence.log_store import FileLogStore
from tests.support.fake_runtime import FakeContainerRuntime, Step
from tests.support.framed import FramedOutput, framed

LIMIT = 10 * 1024**2
SECONDS = 10


@pytest.fixture
def store(tmp_path: Path) -> FileLogStore:
    return FileLogStore(tmp_path / "logs")


@pytest.fixture
def writer(store: FileLogStore) -> Iterator[LogWriter]:
    with _writing(store) as writer:
        yield writer


@contextmanager
def _writing(store: FileLogStore) -> Generator[LogWriter]:
    writer = store.writer("job", 1)
    try:
        yield writer
    finally:
        writer.close()


def _record(writer: LogWriter, data: bytes, limit: int = LIMIT) -> PumpResult:
    """One whole reading."""
    recorder = LogRecorder(writer, limit)
    recorder.feed(data)
    recorder.finish()
    return recorder.result


def _log(writer: LogWriter) -> bytes:
    return writer.read(0, writer.size())


def _events(root: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (root / "logs/job/1.events").read_text().splitlines()]


# -- one reading -------------------------------------------------------------------------------------------


def test_the_log_is_what_was_written(writer: LogWriter) -> None:
    result = _record(writer, framed([b"one\n", b"\xff\x00 two", b"\n"]).bytes())
    assert _log(writer) == b"one\n\xff\x00 two\n"
    assert result.trailer is not None
    assert result.trailer.outcome is Outcome.TESTS_RAN
    assert replace(result, trailer=None) == PumpResult(None, True, 11, truncated=False, over_limit=False)


def test_events_stand_at_their_place_in_the_text(writer: LogWriter, tmp_path: Path) -> None:
    run = FramedOutput().event("phase", name="install").output(b"12345").event("begun").trailer()
    _record(writer, run.bytes())
    assert _events(tmp_path) == [
        {"offset": 0, "type": "phase", "data": {"name": "install"}},
        {"offset": 5, "type": "begun", "data": {}},
    ]


def test_lines_that_are_no_frames_become_text(writer: LogWriter) -> None:
    run = FramedOutput().output(b"a\n").stray(b"Fatal Python error\n").output(b"b\n").trailer()
    result = _record(writer, run.bytes() + b"and a rest")
    assert _log(writer) == b"a\nFatal Python error\nb\nand a rest"
    assert not result.truncated


def test_a_gap_in_the_numbers_is_marked(writer: LogWriter) -> None:
    run = FramedOutput().output(b"a\n").output(b"lost\n").output(b"lost\n").output(b"b\n")
    del run.lines[1:3]
    result = _record(writer, run.bytes())
    assert _log(writer) == b"a\n\n[ci] The engine lost output here: 2 parts of it.\nb\n"
    assert result.truncated


def test_a_trailer_that_does_not_match_is_marked(writer: LogWriter) -> None:
    result = _record(writer, FramedOutput().output(b"abc").trailer(log_bytes=5).bytes())
    assert b"not complete: 3 bytes came of 5" in _log(writer)
    assert result.truncated


def test_a_trailer_with_another_hash_is_marked(writer: LogWriter) -> None:
    result = _record(writer, FramedOutput().output(b"abc").trailer(log_sha256="0" * 64).bytes())
    assert result.truncated
    assert b"not complete" in _log(writer)


def test_beyond_the_limit_nothing_is_kept_but_the_trailer_is_seen(writer: LogWriter) -> None:
    result = _record(writer, framed([b"x" * 10_000] * 200).bytes(), limit=1000)
    assert _log(writer) == b"x" * (1000 + LOG_SLACK) + OVER_LIMIT
    assert len(_log(writer)) <= most_log_bytes(1000)  # as much as a server takes of an agent
    assert (result.over_limit, result.truncated) == (True, True)
    assert result.trailer is not None


# -- readings after others -----------------------------------------------------------------------------------


def test_reading_again_changes_nothing(writer: LogWriter, tmp_path: Path) -> None:
    data = framed([b"one\n", b"two\n"]).bytes()
    first, events = _record(writer, data), _events(tmp_path)
    assert _record(writer, data) == first
    assert _log(writer) == b"one\ntwo\n"
    assert _events(tmp_path) == events


def test_reading_again_over_the_limit_changes_nothing(writer: LogWriter) -> None:
    data = framed([b"x" * 10_000] * 200).bytes()
    first, log = _record(writer, data, limit=1000), _log(writer)
    assert _record(writer, data, limit=1000) == first
    assert _log(writer) == log


def test_what_differs_from_an_earlier_reading_comes_behind_it_once(writer: LogWriter) -> None:
    writer.write(0, b"one\ntwX\nmore")
    data = framed([b"one\n", b"two\n"]).bytes()
    first = _record(writer, data)
    expected = b"one\ntwX\nmore" + MISMATCH + b"o\n"
    assert (_log(writer), first.truncated) == (expected, True)
    assert _record(writer, data) == first
    assert _log(writer) == expected


def test_marks_within_the_output_itself_do_not_stop_a_reading(writer: LogWriter) -> None:
    stood = b"one\n" + MISMATCH * 2000 + b"end"
    writer.write(0, stood)
    assert _record(writer, framed([b"two\n"]).bytes()).truncated
    assert _log(writer) == stood + MISMATCH + b"two\n"


def test_more_than_the_trailer_vouches_for_is_kept_and_marked(writer: LogWriter) -> None:
    writer.write(0, b"one\nand more")
    result = _record(writer, framed([b"one\n"]).bytes())
    assert (_log(writer), result.truncated) == (b"one\nand more" + ENDS_EARLY, True)


def _numbered(first: int, last: int) -> bytes:
    run = FramedOutput()
    for number in range(1, last + 1):
        run.output(f"{number}\n".encode())
    return b"".join(run.lines[first - 1 :])


def test_a_reading_that_begins_late_takes_nothing_back(writer: LogWriter) -> None:
    _record(writer, _numbered(1, 10))
    stood = _log(writer)
    first = _record(writer, _numbered(7, 11))
    assert (_log(writer), first.truncated) == (stood + BEGINS_LATE + b"7\n8\n9\n10\n11\n", True)
    longer = _record(writer, _numbered(7, 12))
    assert (_log(writer), longer.truncated) == (stood + BEGINS_LATE + b"7\n8\n9\n10\n11\n12\n", True)


def test_a_first_reading_that_begins_late_is_marked_and_can_be_repeated(writer: LogWriter) -> None:
    first = _record(writer, _numbered(7, 8))
    assert (_log(writer), first.truncated) == (
        b"\n[ci] The engine lost output here: 6 parts of it.\n7\n8\n",
        True,
    )
    assert _record(writer, _numbered(7, 8)) == first
    assert _log(writer).count(b"[ci]") == 1


def test_a_mark_is_found_wherever_it_stands(writer: LogWriter) -> None:
    """Also across the edge of a search's reads."""
    for size in (64 * 1024 - 5, 128 * 1024, 192 * 1024 + 5):
        writer.write(writer.size(), b"y" * (size - writer.size()))
        _record(writer, _numbered(2, 2))
        found = _log(writer)
        _record(writer, _numbered(2, 2))
        assert _log(writer) == found


def test_what_the_engine_says_twice_stands_once_and_what_it_skipped_is_marked(writer: LogWriter) -> None:
    result = _record(writer, _numbered(1, 5) + _numbered(3, 5) + _numbered(8, 9))
    gap = b"\n[ci] The engine lost output here: 2 parts of it.\n"
    assert (_log(writer), result.truncated) == (b"1\n2\n3\n4\n5\n" + gap + b"8\n9\n", True)


def test_a_log_that_was_cut_meanwhile_is_written_again(store: FileLogStore, tmp_path: Path) -> None:
    with _writing(store) as writer:
        writer.write(0, b"one\ntwo\n")
        recorder = LogRecorder(writer, LIMIT)
        os.truncate(tmp_path / "logs" / "job" / "1.log", 2)
        recorder.feed(framed([b"one\n", b"two\n"]).bytes())
        recorder.finish()
        assert (_log(writer), recorder.result.truncated) == (b"one\ntwo\n", False)


def test_what_was_appended_for_a_mismatch_is_no_output_of_the_job(writer: LogWriter) -> None:
    limit = 1024**2
    _record(writer, FramedOutput().output(b"x" * limit).bytes(), limit)
    _record(writer, FramedOutput().output(b"y" * limit).bytes(), limit)
    result = _record(writer, FramedOutput().output(b"z" * limit).bytes(), limit)
    assert (result.truncated, result.over_limit) == (True, False)


def test_a_trailer_counts_once_everything_before_it_is_written(store: FileLogStore) -> None:
    writer = store.writer("job", 1)
    recorder = LogRecorder(writer, LIMIT)
    writer.close()
    with pytest.raises(OSError, match="descriptor"):
        recorder.feed(FramedOutput().output(b"one\n").trailer().bytes())
    assert recorder.result.trailer is None


def test_what_the_engine_has_lost_since_is_kept_and_marked_once(writer: LogWriter) -> None:
    run = FramedOutput().output(b"one\n").output(b"two\n")
    _record(writer, run.bytes())
    first = _record(writer, run.lines[0])
    assert (_log(writer), first.truncated) == (b"one\ntwo\n" + ENDS_EARLY, True)
    _record(writer, run.lines[0])
    assert _log(writer) == b"one\ntwo\n" + ENDS_EARLY


chunks = st.lists(st.binary(max_size=200), max_size=20)


@given(
    parts=chunks, cuts=st.lists(st.integers(0, 10_000), max_size=8), crashes=st.lists(st.integers(0, 10_000))
)
def test_any_chunking_and_any_crashes_give_the_bytes(
    tmp_path_factory: pytest.TempPathFactory, parts: list[bytes], cuts: list[int], crashes: list[int]
) -> None:
    root = tmp_path_factory.mktemp("root")
    store = FileLogStore(root / "logs")
    data = framed(parts).bytes()
    for crash in crashes[:4]:  # a reading that dies there, having written what was complete
        with _writing(store) as writer:
            LogRecorder(writer, LIMIT).feed(data[:crash])
    with _writing(store) as writer:
        recorder, last = LogRecorder(writer, LIMIT), 0
        for cut in [*sorted(cut % (len(data) + 1) for cut in cuts), len(data)]:
            recorder.feed(data[last:cut])
            last = cut
        recorder.finish()
        assert _log(writer) == b"".join(parts)
        assert replace(recorder.result, trailer=None) == PumpResult(
            None, begun=True, log_bytes=len(b"".join(parts)), truncated=False, over_limit=False
        )
    assert [event["type"] for event in _events(root)] == ["begun"]


@given(parts=chunks, torn=st.integers(0, 5000))
def test_a_write_that_was_torn_by_a_crash_is_completed(
    tmp_path_factory: pytest.TempPathFactory, parts: list[bytes], torn: int
) -> None:
    store = FileLogStore(tmp_path_factory.mktemp("logs"))
    text = b"".join(parts)
    with _writing(store) as writer:
        writer.write(0, text[:torn])
        result = _record(writer, framed(parts).bytes())
        assert (_log(writer), result.truncated) == (text, False)


# -- the thread ----------------------------------------------------------------------------------------------


SPEC = ContainerSpec(name="c", image_id="sha256:" + "0" * 64, command=("x",), labels={})


class Bench:
    """A fake engine with one container whose output a pump reads."""

    def __init__(self, writer: LogWriter, *steps: Step) -> None:
        self.runtime = FakeContainerRuntime(script=lambda fed: steps)
        self.writer = writer
        self.container = ""
        self.told: queue.Queue[PumpEvent] = queue.Queue()

    async def run(self) -> "Bench":
        self.container = await self.runtime.create(SPEC)
        await start_and_feed(self.runtime, self.container, [])
        return self

    def pump(self, limit: int = LIMIT) -> LogPump:
        pump = LogPump(self.runtime, self.writer, self.container, log_limit=limit, on_event=self.told.put)
        pump.start()
        return pump

    def next_kind(self) -> PumpEventKind:
        return self.told.get(timeout=SECONDS).kind


async def test_the_pump_tells_what_it_sees_and_ends(writer: LogWriter) -> None:
    bench = await Bench(writer, framed([b"text\n"]).bytes()).run()
    pump = bench.pump()
    kinds = [bench.next_kind() for _ in range(3)]
    assert kinds == [PumpEventKind.BEGUN, PumpEventKind.LAST_WORD, PumpEventKind.ENDED]
    assert pump.result is not None
    assert drained(pump.result, ExitState(0), None)
    assert _log(writer) == b"text\n"
    pump.close()
    await bench.runtime.close()


async def test_closing_a_pump_ends_its_thread_and_leaves_the_log(writer: LogWriter) -> None:
    bench = await Bench(
        writer, FramedOutput().event("begun").output(b"text\n").bytes(), threading.Event()
    ).run()
    pump = bench.pump()
    assert bench.next_kind() is PumpEventKind.BEGUN
    pump.close()
    assert pump.result is None
    assert _log(writer) == b"text\n"
    assert bench.told.empty()
    await bench.runtime.close()


async def test_an_engine_that_leaves_ends_the_pump_without_a_verdict(writer: LogWriter) -> None:
    whole = FramedOutput().event("begun").output(b"text\n").output(b"more\n").bytes()
    bench = await Bench(writer, whole[:-5], threading.Event()).run()
    pump = bench.pump()
    assert bench.next_kind() is PumpEventKind.BEGUN
    bench.runtime.down = True
    assert bench.next_kind() is PumpEventKind.ENDED
    pump.close()
    assert _log(writer) == b"text\n"  # the cut line is not text: it may come whole the next time
    assert not drained(pump.result, None, pump.result)
    bench.runtime.down = False
    await bench.runtime.close()


async def test_a_pump_that_cannot_read_says_why(writer: LogWriter) -> None:
    bench = await Bench(writer).run()
    bench.runtime.down = True
    pump = bench.pump()
    assert bench.next_kind() is PumpEventKind.ENDED
    pump.close()
    assert isinstance(pump.error, EngineUnavailable)
    bench.runtime.down = False
    await bench.runtime.close()


async def test_an_error_nobody_expected_is_an_error_of_the_pump(writer: LogWriter) -> None:
    bench = await Bench(writer, threading.Event()).run()
    bench.runtime.containers["c"].output.append(cast("bytes", "no bytes"))
    with capture_logs() as logged:
        pump = bench.pump()
        assert bench.next_kind() is PumpEventKind.ENDED
        pump.close()
    assert isinstance(pump.error, TypeError)
    assert [entry["log_level"] for entry in logged] == ["error"]
    await bench.runtime.close()


async def test_a_pump_tells_of_a_log_that_grows_beyond_its_limit(writer: LogWriter) -> None:
    run = FramedOutput().output(b"x" * LOG_SLACK).output(b"y" * 100)
    bench = await Bench(writer, run.bytes(), threading.Event()).run()
    pump = bench.pump(limit=50)
    assert bench.next_kind() is PumpEventKind.OVER_LIMIT
    pump.close()
    await bench.runtime.close()


async def test_an_exited_container_is_read_in_one_pass(writer: LogWriter) -> None:
    bench = await Bench(writer, FramedOutput().output(b"text\n").bytes(), b"Killed", ExitState(137)).run()
    first = read_result(bench.runtime, writer, bench.container, LIMIT)
    assert not drained(first, ExitState(137), None)
    second = read_result(bench.runtime, writer, bench.container, LIMIT)
    assert drained(second, ExitState(137), first)
    assert _log(writer) == b"text\nKilled"
    await bench.runtime.close()


EMPTY = PumpResult(None, begun=False, log_bytes=0, truncated=False, over_limit=False)


def test_nothing_is_drained_while_the_container_runs() -> None:
    assert not drained(EMPTY, None, EMPTY)


def test_nothing_is_drained_before_a_reading_ended() -> None:
    assert not drained(None, ExitState(0), EMPTY)


def test_two_different_readings_prove_nothing() -> None:
    assert not drained(replace(EMPTY, log_bytes=1), ExitState(0), EMPTY)

"""FrameDecoder: the same frames however the bytes were cut, and nothing a job prints ever becomes one."""

import base64
import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ci_controller.frames import (
    MAX_LINE,
    EventFrame,
    Frame,
    FrameDecoder,
    Outcome,
    OutputFrame,
    StrayOutput,
    TrailerFrame,
)


def line(number: int, kind: str, **fields: Any) -> bytes:
    return json.dumps({"n": number, "t": kind, **fields}).encode() + b"\n"


def output(number: int, data: bytes) -> bytes:
    return line(number, "o", d=base64.b64encode(data).decode())


def decode(*chunks: bytes) -> list[Frame]:
    decoder = FrameDecoder()
    frames = [frame for chunk in chunks for frame in decoder.feed(chunk)]
    return frames + decoder.finish()


TRAILER: dict[str, Any] = {"outcome": "tests_ran", "log_bytes": 3, "log_sha256": "ab"}

PIECES = st.one_of(
    st.binary(max_size=60),
    st.just(b"\n"),
    st.builds(output, st.integers(-1, 6), st.binary(max_size=40)),
    st.integers(1, 6).map(lambda number: line(number, "e", k="phase", d={"name": "test"})),
    st.integers(1, 6).map(lambda number: line(number, "end", **TRAILER)),
    st.integers(MAX_LINE - 2, 2 * MAX_LINE + 2).map(lambda size: b"x" * size),
)


@given(st.lists(PIECES, max_size=8).map(b"".join), st.lists(st.integers(0, 2**16), max_size=6))
def test_frames_do_not_depend_on_where_the_bytes_were_cut(stream: bytes, cuts: list[int]) -> None:
    edges = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    chunks = [stream[start:end] for start, end in itertools.pairwise(edges)]
    assert decode(*chunks) == decode(stream)


@given(st.binary(max_size=2000))
def test_no_byte_of_stray_output_is_lost(stream: bytes) -> None:
    found = decode(stream)
    assert b"".join(frame.data for frame in found if isinstance(frame, StrayOutput)) == stream


def test_each_kind_of_frame_is_decoded() -> None:
    fields = TRAILER | {"exit_code": 1, "session_finished": True, "collection_errors": 2, "message": "m"}
    stream = output(1, b"\xff\n") + line(2, "e", k="phase", d={"name": "x"}) + line(3, "end", **fields)
    assert decode(stream) == [
        OutputFrame(1, b"\xff\n"),
        EventFrame(2, "phase", {"name": "x"}),
        TrailerFrame(3, Outcome.TESTS_RAN, 3, "ab", 1, None, True, 2, "m"),
    ]


def test_frames_may_say_when() -> None:
    stream = line(1, "e", k="begun", d={}, at=5) + line(2, "end", **TRAILER, at=9, first_output_at=7)
    event, trailer = decode(stream)
    assert event == EventFrame(1, "begun", {}, 5)
    assert isinstance(trailer, TrailerFrame)
    assert (trailer.at, trailer.first_output_at) == (9, 7)


@pytest.mark.parametrize(
    "forged",
    [
        b"Traceback (most recent call last):\n",
        b'{"n":1}\n',
        b'{"n":1,"t":"o"}\n',
        b'{"n":1,"t":"o","d":"***"}\n',
        b'{"n":"1","t":"o","d":""}\n',
        b'{"n":true,"t":"o","d":""}\n',
        b'{"n":0,"t":"o","d":""}\n',
        b'{"n":1,"t":["o"],"d":""}\n',
        b'{"n":1,"t":"e","k":"phase","d":[]}\n',
        b'{"n":1,"t":"end","outcome":"fine","log_bytes":0,"log_sha256":""}\n',
        b'{"n":1,"t":"end","outcome":"tests_ran","log_bytes":-1,"log_sha256":""}\n',
        b'{"n":1,"t":"end","outcome":"tests_ran","log_bytes":0,"log_sha256":"","exit_code":"0"}\n',
        b'{"n":' + b"[" * 10_000 + b"\n",
        b'{"n":' + b"9" * 10_000 + b"}\n",
        b'{"n":1,"t":"o","d":"\xff"}\n',
    ],
)
def test_a_line_that_is_no_frame_is_stray(forged: bytes) -> None:
    assert decode(forged) == [StrayOutput(forged)]


def test_a_line_longer_than_any_frame_is_stray_to_its_end() -> None:
    forged = b" " * MAX_LINE + output(1, b"a")
    assert decode(forged) == [StrayOutput(forged[:MAX_LINE]), StrayOutput(forged[MAX_LINE:])]


def test_a_frame_that_came_before_is_dropped_and_a_gap_stays_visible() -> None:
    again = output(1, b"a") + line(2, "e", k="begun", d={})
    frames = decode(again + again + output(2, b"b") + output(4, b"c"))
    assert frames == [OutputFrame(1, b"a"), EventFrame(2, "begun", {}), OutputFrame(4, b"c")]


def test_a_last_frame_that_came_before_is_dropped_without_its_newline_too() -> None:
    assert decode(output(1, b"a") + output(1, b"a").rstrip()) == [OutputFrame(1, b"a")]


def test_a_last_line_without_newline_is_not_forgotten() -> None:
    assert decode(output(1, b"a") + b"dying") == [OutputFrame(1, b"a"), StrayOutput(b"dying")]

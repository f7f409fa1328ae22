"""The engine's framing of output comes off whatever way it was cut."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from ci_controller.docker_streams import Demultiplexer


def _frame(stream: int, payload: bytes) -> bytes:
    return bytes([stream, 0, 0, 0]) + len(payload).to_bytes(4, "big") + payload


frames = st.lists(st.tuples(st.sampled_from([1, 2]), st.binary(max_size=300)), max_size=10)


@given(frames=frames, cuts=st.lists(st.integers(0, 4000), max_size=20))
def test_any_cutting_gives_the_payload(frames: list[tuple[int, bytes]], cuts: list[int]) -> None:
    data = b"".join(_frame(stream, payload) for stream, payload in frames)
    edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    demultiplexer = Demultiplexer()
    got = b"".join(demultiplexer.feed(data[start:end]) for start, end in itertools.pairwise(edges))
    assert got == b"".join(payload for _, payload in frames)


def test_a_payload_is_handed_on_before_its_frame_is_complete() -> None:
    demultiplexer = Demultiplexer()
    data = _frame(1, b"abcdef")
    assert demultiplexer.feed(data[:5]) == b""
    assert demultiplexer.feed(data[5:11]) == b"abc"
    assert demultiplexer.feed(data[11:]) == b"def"

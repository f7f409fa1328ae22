"""Logs in frames: any part of the text for the price of its frames, and nothing believed of a damaged file."""

import hashlib
import os
import shutil
import struct
import subprocess
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ci_persistence.log_frames import FRAME_BYTES, DamagedFrames, FramedText, compress

TEXT = b"".join(b"tests/test_%d.py::test_it PASSED\n" % number for number in range(24_500))
assert len(TEXT) > 3 * FRAME_BYTES
FOOTER_BYTES = 9
# Decodes to a gigabyte, wherever a decoder is let: bytes that a library made, for a table that lies about them.
_HUGE = 1 << 30


@pytest.fixture(scope="module")
def framed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("framed"), TEXT)


def write(folder: Path, text: bytes) -> Path:
    (folder / "plain").write_bytes(text)
    with (folder / "plain").open("rb") as source, (folder / "framed").open("wb") as target:
        seal = compress(source.fileno(), target.fileno())
    assert (seal.size, seal.sha256) == (len(text), hashlib.sha256(text).hexdigest())
    return folder / "framed"


@contextmanager
def opened(path: Path) -> Generator[FramedText]:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        yield FramedText(descriptor)
    finally:
        os.close(descriptor)


@given(offset=st.integers(0, len(TEXT) + 5), length=st.integers(0, 2 * FRAME_BYTES))
@example(offset=FRAME_BYTES - 1, length=2)
@example(offset=FRAME_BYTES, length=FRAME_BYTES)
@example(offset=len(TEXT) - 1, length=10)
def test_every_part_is_the_text_there(framed: Path, offset: int, length: int) -> None:
    with opened(framed) as text:
        assert text.size == len(TEXT)
        assert text.read(offset, length) == TEXT[offset : offset + length]


@pytest.mark.parametrize("size", [0, 1, FRAME_BYTES - 1, FRAME_BYTES, FRAME_BYTES + 1])
def test_texts_of_any_size_come_back(size: int, tmp_path: Path) -> None:
    data = os.urandom(size)
    with opened(write(tmp_path, data)) as text:
        assert (text.size, b"".join(text.pieces())) == (size, data)


def test_a_part_reads_only_its_frames(framed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(framed) as text:
        asked = list[int]()
        pread = os.pread

        def counting(descriptor: int, length: int, offset: int) -> bytes:
            data = pread(descriptor, length, offset)
            asked.append(len(data))
            return data

        monkeypatch.setattr(os, "pread", counting)
        text.read(len(TEXT) - 100, 100)
        last = sum(asked)
        assert 0 < last < framed.stat().st_size / 3
        text.read(len(TEXT) - 300, 100)
        assert sum(asked) == last, "the frame read last is kept"


def test_the_tools_of_others_read_it(framed: Path) -> None:
    tool = shutil.which("zstd")
    if tool is None:
        pytest.skip("zstd is not installed here")
    assert subprocess.run([tool, "-dc", framed], capture_output=True, check=True).stdout == TEXT


@settings(max_examples=40)
@given(place=st.integers(0, 20_000), flip=st.integers(1, 255))
def test_no_changed_byte_goes_unnoticed(
    framed: Path, tmp_path_factory: pytest.TempPathFactory, place: int, flip: int
) -> None:
    data = bytearray(framed.read_bytes())
    data[place % len(data)] ^= flip
    damaged = tmp_path_factory.mktemp("damaged") / "framed"
    damaged.write_bytes(data)
    try:
        with opened(damaged) as text:
            read = b"".join(text.pieces())
    except DamagedFrames:
        return
    assert read == TEXT, "bits that nobody reads"


@pytest.mark.parametrize("kept", [0, 1, FOOTER_BYTES, 100, -1])
def test_a_file_that_was_cut_off_is_damaged(framed: Path, tmp_path: Path, kept: int) -> None:
    (tmp_path / "cut").write_bytes(framed.read_bytes()[:kept])
    with pytest.raises(DamagedFrames), opened(tmp_path / "cut"):
        pass


@pytest.mark.parametrize("said", [1, FRAME_BYTES, 1024 * 1024, 1024 * 1024 + 1, _HUGE])
def test_a_frame_that_decodes_to_more_than_is_said_of_it_stops_there(said: int, tmp_path: Path) -> None:
    frame = bomb()
    table = struct.pack("<II", len(frame), said) + struct.pack("<IBI", 1, 0, 0x8F92EAB1)
    path = tmp_path / "bomb"
    path.write_bytes(frame + struct.pack("<II", 0x184D2A5E, len(table)) + table)
    with pytest.raises(DamagedFrames), opened(path) as text:
        text.read(0, said)


def bomb() -> bytes:
    """Return a frame of some kilobytes that is 64 MiB of zeros."""
    from ci_persistence.log_frames import zstd

    return zstd.compress(bytes(64 * 1024**2))

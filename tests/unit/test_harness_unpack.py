"""unpack: what the controller writes comes out as it was, and anything else is an error and never a file elsewhere."""

import hashlib
import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ci_controller.archive_tar import tar_stream
from ci_controller.harness.ending import Ended
from ci_controller.harness.intake import Feed, Tree, unpack
from tests.support.harness import MemoryArchive

LETTERS = st.characters(exclude_characters="/\0", exclude_categories=("Cs",))
NAMES = st.text(LETTERS, min_size=1, max_size=60).filter(lambda name: name not in {".", ".."})
PATHS = st.lists(NAMES, min_size=1, max_size=4).map("/".join)


class Records:
    """The records of a tree, as a feed has them."""

    def __init__(self, data: bytes, piece: int) -> None:
        self._left = iter([*_tree_records(data, piece)])

    def record(self) -> tuple[bytes, bytes]:
        return next(self._left)


def _tree_records(data: bytes, piece: int) -> Iterator[tuple[bytes, bytes]]:
    for start in range(0, len(data), piece):
        yield b"T", data[start : start + piece]
    yield b"E", json.dumps({"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}).encode()


def unpacked(data: bytes, folder: Path, piece: int = 1000) -> dict[str, tuple[bytes, int]]:
    """Return the files that a tar leaves in a workspace, with their modes."""
    workspace = folder / "workspace"
    unpack(Tree(cast(Feed, Records(data, piece))), str(workspace))
    found = [path for path in workspace.rglob("*") if path.is_file()]
    return {
        path.relative_to(workspace).as_posix(): (path.read_bytes(), path.stat().st_mode & 0o777)
        for path in found
    }


def a_tar(**fields: object) -> bytes:
    member = tarfile.TarInfo("file")
    for name, value in fields.items():
        setattr(member, name, value)
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        tar.addfile(member)
    return stream.getvalue()


@given(st.dictionaries(PATHS, st.binary(max_size=1500), max_size=6), st.integers(1, 3000))
def test_every_file_comes_out_as_it_went_in(drawn: dict[str, bytes], piece: int) -> None:
    # What is a file and a directory, or too long for a file system, is for the tests of the harness.
    paths = [path for path in drawn if all(len(part.encode()) <= 255 for part in path.split("/"))]
    files = {path: drawn[path] for path in paths if not any(one.startswith(f"{path}/") for one in paths)}
    with TemporaryDirectory() as folder:
        found = unpacked(b"".join(tar_stream(MemoryArchive(files))), Path(folder), piece)
    assert {path: data for path, (data, _) in found.items()} == files


def test_modes_are_kept(tmp_path: Path) -> None:
    found = unpacked(b"".join(tar_stream(MemoryArchive({"run.sh": "x", "text": "y" * 3000}))), tmp_path)
    assert found == {"run.sh": (b"x", 0o755), "text": (b"y" * 3000, 0o644)}


def test_a_tar_that_is_cut_off_is_damaged_wherever_that_is(tmp_path: Path) -> None:
    long = "directory/" * 12 + "file.py"
    whole = b"".join(tar_stream(MemoryArchive({long: b"x" * 600})))
    for number, end in enumerate(range(0, len(whole) - 1024, 100)):
        with pytest.raises(Ended, match="The tree arrived damaged: it is cut off"):
            unpacked(whole[:end], tmp_path / str(number))


def test_a_changed_header_is_damaged(tmp_path: Path) -> None:
    whole = b"".join(tar_stream(MemoryArchive({"a" * 120: b"x" * 600})))
    for at in (*range(0, 512, 5), *range(1024, 1536, 5)):
        changed = whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :]
        with pytest.raises(Ended):
            unpacked(changed, tmp_path / str(at))


@pytest.mark.parametrize(
    "fields",
    [
        {"type": tarfile.CHRTYPE},
        {"type": tarfile.FIFOTYPE},
        {"type": tarfile.CONTTYPE},
        {"name": "a/../../b"},
        {"name": "/" + "a" * 150},
        {"name": "../" * 50 + "a"},
        {"pax_headers": {"comment": "none of ours"}},
        {"pax_headers": {"size": "-1"}},
        {"uname": "someone", "pax_headers": {"path": "a\0b"}},
    ],
    ids=str,
)
def test_what_no_controller_writes_is_refused(tmp_path: Path, fields: dict[str, object]) -> None:
    with pytest.raises(Ended):
        unpacked(a_tar(**fields), tmp_path)
    assert [path for path in tmp_path.rglob("*") if path.name != "workspace"] == []

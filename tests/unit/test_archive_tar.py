"""tar_stream: what tarfile reads out of it is exactly the archive."""

import io
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ci_common.errors import InvalidArchive
from ci_controller.archive_tar import tar_stream
from tests.support.harness import MemoryArchive

NAMES = st.text(st.characters(exclude_characters="/\0", exclude_categories=("Cs",)), min_size=1, max_size=120)
PATHS = st.lists(NAMES.filter(lambda name: name not in {".", ".."}), min_size=1, max_size=4).map("/".join)


def members(archive: MemoryArchive) -> list[tuple[tarfile.TarInfo, bytes]]:
    stream = io.BytesIO(b"".join(tar_stream(archive)))
    with tarfile.open(fileobj=stream, mode="r:") as tar:
        return [(info, file.read() if (file := tar.extractfile(info)) else b"") for info in tar]


@given(st.dictionaries(PATHS, st.binary(max_size=1500), max_size=6))
def test_every_file_comes_out_as_it_went_in(files: dict[str, bytes]) -> None:
    found = {info.name: data for info, data in members(MemoryArchive(files)) if info.isreg()}
    assert found == files


def test_directories_come_once_and_before_what_is_in_them() -> None:
    names = [info.name for info, _ in members(MemoryArchive({"a/b/c.py": "", "a/b/d.py": "", "a/e.py": ""}))]
    assert names == ["a", "a/b", "a/b/c.py", "a/b/d.py", "a/e.py"]


def test_modes_are_kept_and_nobody_owns_anything() -> None:
    (script, _), (text, _) = members(MemoryArchive({"run.sh": "x", "text": "y"}))
    assert (script.mode, text.mode) == (0o755, 0o644)
    assert (script.uid, script.gid, script.uname, script.mtime) == (0, 0, "", 0)


@given(PATHS, st.sampled_from([0, 1, 511, 512, 8**11 - 1, 8**11]), st.booleans())
def test_the_header_is_the_one_that_tarfile_writes(path: str, size: int, executable: bool) -> None:
    name = f"{path}.sh" if executable else path
    head = next(
        tar_stream(MemoryArchive({name.rpartition("/")[2]: b""}, sizes={name.rpartition("/")[2]: size}))
    )
    info = tarfile.TarInfo(name.rpartition("/")[2])
    info.size, info.mode = size, 0o755 if name.endswith(".sh") else 0o644
    assert head == info.tobuf(tarfile.PAX_FORMAT, "utf-8", "strict")


def test_the_stream_ends_on_a_block() -> None:
    assert len(b"".join(tar_stream(MemoryArchive({"a": b"x" * 513})))) == 512 + 1024 + 1024


@pytest.mark.parametrize(("declared", "word"), [(2, "larger"), (4, "smaller")])
def test_an_entry_of_another_size_than_declared_is_refused(declared: int, word: str) -> None:
    with pytest.raises(InvalidArchive, match=word):
        list(tar_stream(MemoryArchive({"a": b"123"}, sizes={"a": declared})))

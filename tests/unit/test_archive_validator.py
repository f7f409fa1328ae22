"""What the one judge of archives takes and refuses."""

import io
import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest

from ci_common.errors import InvalidArchive
from ci_persistence.archive_rules import ArchiveLimits
from ci_persistence.archive_validator import open_archive
from tests.support.archives import HOSTILE, Item, build, zip_of

LIMITS = ArchiveLimits(entries=20, ratio=200, total_bytes=2_000_000)


def read_all(data: bytes, directory: Path, limits: ArchiveLimits = LIMITS) -> dict[str, tuple[int, bytes]]:
    path = directory / "archive.zip"
    path.write_bytes(data)
    with open_archive(path, limits) as archive:
        archive.verify()
        found: dict[str, tuple[int, bytes]] = {}
        for entry in archive.entries:
            with archive.open(entry) as reader:
                found[entry.path] = (entry.mode, reader.read())
        return found


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_archive_is_refused_with_the_rule_it_breaks(name: str, tmp_path: Path) -> None:
    data, rule = HOSTILE[name]
    with pytest.raises(InvalidArchive) as refused:
        read_all(data, tmp_path)
    assert refused.value.extra["rule"] == rule
    assert refused.value.detail.endswith(".")


def test_files_come_out_as_they_went_in_sorted_by_path(tmp_path: Path) -> None:
    files = {"tests/test_a.py": b"def test(): pass\n", "b.bin": bytes(range(256)) * 3000, "a.txt": b""}
    found = read_all(zip_of(files), tmp_path)
    assert {path: data for path, (_, data) in found.items()} == files
    assert list(found) == sorted(files)


@pytest.mark.parametrize(
    ("mode", "expected"),
    [(0o100600, 0o644), (0o100755, 0o755), (0o104755, 0o755), (0o100010, 0o755), (0, 0o644)],
)
def test_only_two_modes_come_out(mode: int, expected: int, tmp_path: Path) -> None:
    assert read_all(build(Item(mode=mode)), tmp_path)["a.txt"][0] == expected


def test_directories_are_accepted_and_dropped(tmp_path: Path) -> None:
    assert list(read_all(build(Item(b"d/", b"", 0o040755), Item(b"d/a")), tmp_path)) == ["d/a"]


def test_an_archive_may_have_a_comment_and_hold_an_archive(tmp_path: Path) -> None:
    inner = zip_of({"a": b"b"})
    assert read_all(build(Item(b"inner.zip", inner), comment=b"d3adbeef"), tmp_path)["inner.zip"][1] == inner


def test_small_files_may_compress_as_well_as_they_like(tmp_path: Path) -> None:
    zeros = bytes(900_000)
    assert read_all(build(Item(data=zeros, method=8)), tmp_path)["a.txt"][1] == zeros


def test_reading_counts_and_sums_again(tmp_path: Path) -> None:
    path = tmp_path / "archive.zip"
    path.write_bytes(build(Item(crc=1)))
    with open_archive(path, LIMITS) as archive:  # the structure is fine, the bytes are not
        entry = archive.entries[0]
        with archive.open(entry) as reader, pytest.raises(InvalidArchive, match="checksum"):
            reader.read()


def test_two_files_can_be_read_at_once(tmp_path: Path) -> None:
    path = tmp_path / "archive.zip"
    path.write_bytes(zip_of({"a": b"1" * 100_000, "b": b"2" * 100_000}))
    with open_archive(path, LIMITS) as archive:
        first, second = archive.entries
        with archive.open(first) as one, archive.open(second) as two:
            pieces = [(one.read(1000), two.read(1000)) for _ in range(100)]
    assert set(pieces) == {(b"1" * 1000, b"2" * 1000)}


class Pipe(io.RawIOBase):
    """An output that cannot seek, so that writers use data descriptors."""

    def __init__(self) -> None:
        self.data = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: object, /) -> int:
        piece = bytes(data)  # pyright: ignore[reportArgumentType]
        self.data += piece
        return len(piece)


def test_python_streams_are_accepted(tmp_path: Path) -> None:
    pipe = Pipe()
    with zipfile.ZipFile(pipe, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/b.py", b"pass\n" * 500)
        with archive.open("wide", "w", force_zip64=True) as wide:
            wide.write(b"w" * 100)
    found = read_all(bytes(pipe.data), tmp_path)
    assert {path: len(data) for path, (_, data) in found.items()} == {"a/b.py": 2500, "wide": 100}


def test_more_entries_than_16_bits_count_are_accepted(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for number in range(65_600):
            archive.writestr(f"{number // 1000}/{number}", b"")
    path = tmp_path / "archive.zip"
    path.write_bytes(buffer.getvalue())
    with open_archive(path, ArchiveLimits(100_000, 200, 1)) as archive:
        assert len(archive.entries) == 65_600


@pytest.mark.skipif(shutil.which("zip") is None, reason="Info-ZIP is not installed")
@pytest.mark.parametrize("streamed", [False, True], ids=["file", "pipe"])
def test_info_zip_is_accepted(streamed: bool, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "empty").mkdir(parents=True)
    (tree / "é.txt").write_bytes(b"text\n" * 100)
    script = tree / "run.sh"
    script.write_bytes(b"#!/bin/sh\n")
    script.chmod(0o755)
    target = "-" if streamed else str(tmp_path / "made.zip")
    done = subprocess.run(["zip", "-qr", target, "."], cwd=tree, capture_output=True, check=True)
    found = read_all(done.stdout if streamed else (tmp_path / "made.zip").read_bytes(), tmp_path)
    assert found == {"run.sh": (0o755, b"#!/bin/sh\n"), "é.txt": (0o644, b"text\n" * 100)}


def test_git_archives_are_accepted(tmp_path: Path) -> None:
    def git(*args: str) -> bytes:
        identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
        return subprocess.run(["git", *identity, *args], cwd=tmp_path, capture_output=True, check=True).stdout

    git("init", "-q", ".")
    (tmp_path / "a.py").write_text("pass\n")
    git("add", ".")
    git("commit", "-qm", "first")
    assert list(read_all(git("archive", "--format=zip", "HEAD"), tmp_path)) == ["a.py"]

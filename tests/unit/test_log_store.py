"""The files that hold the output of attempts."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from ci_common.errors import StorageFull
from ci_common.stores import LogWriter
from ci_persistence.log_store import FileLogStore, disk_full_as_storage_full


@pytest.fixture
def store(tmp_path: Path) -> FileLogStore:
    return FileLogStore(tmp_path / "logs")


@pytest.fixture
def writer(store: FileLogStore) -> Iterator[LogWriter]:
    writer = store.writer("job", 1)
    yield writer
    writer.close()


def test_what_is_written_can_be_read_at_once(store: FileLogStore, writer: LogWriter) -> None:
    writer.write(0, b"hello ")
    writer.write(6, b"world")
    assert store.size("job", 1) == writer.size() == 11
    assert store.read("job", 1, 0, 100) == b"hello world"
    assert store.read("job", 1, 6, 3) == writer.read(6, 3) == b"wor"
    assert store.read("job", 1, 11, 5) == b""


def test_a_log_that_does_not_exist_is_empty(store: FileLogStore) -> None:
    assert store.size("job", 1) == 0
    assert store.read("job", 1, 0, 10) == b""


def test_a_second_writer_continues_and_may_repeat(store: FileLogStore, writer: LogWriter) -> None:
    writer.write(0, b"hello ")
    successor = store.writer("job", 1)
    successor.write(0, b"hello world")
    writer.write(0, b"hello ")  # a stale one rewrites equal bytes
    assert store.read("job", 1, 0, 100) == b"hello world"
    successor.close()


def test_attempts_have_logs_of_their_own(store: FileLogStore, writer: LogWriter) -> None:
    writer.write(0, b"first")
    assert store.size("job", 2) == 0


def test_the_logs_of_all_attempts_count(store: FileLogStore, writer: LogWriter) -> None:
    for attempt, size in ((1, 1000), (2, 200)):
        with closing(store.writer("job", attempt)) as one:
            one.write(0, b"x" * size)
    assert [(item.name, item.size) for item in store.items()] == [("job", 1200)]


def test_a_seal_is_size_and_hash_of_the_bytes(store: FileLogStore, writer: LogWriter) -> None:
    data = os.urandom(3_000_000)
    writer.write(0, data)
    seal = writer.seal(truncated=True)
    assert (seal.size, seal.sha256, seal.truncated) == (len(data), hashlib.sha256(data).hexdigest(), True)
    assert not writer.seal().truncated


def test_events_are_appended_or_replaced_as_a_whole(writer: LogWriter, tmp_path: Path) -> None:
    writer.append_event(b'{"n": 1}\n')
    writer.write_events([b'{"n": 2}\n', b'{"n": 3}\n'])
    writer.append_event(b'{"n": 4}\n')
    assert (tmp_path / "logs/job/1.events").read_bytes() == b'{"n": 2}\n{"n": 3}\n{"n": 4}\n'


def test_nothing_is_readable_by_the_world(store: FileLogStore, writer: LogWriter, tmp_path: Path) -> None:
    writer.write_events([])
    modes = {path.name: oct(path.stat().st_mode & 0o7777) for path in (tmp_path / "logs").rglob("*")}
    assert modes == {"job": "0o2750", "1.log": "0o640", "1.events": "0o640"}
    assert (tmp_path / "logs").stat().st_mode & 0o7777 == 0o2750


@pytest.mark.parametrize("job_id", ["", ".", "..", "../x", "a/b", "/etc", "a\0b", "é", "x" * 101, "-x"])
def test_a_job_id_is_never_a_path(job_id: str, store: FileLogStore) -> None:
    with pytest.raises(ValueError, match="not an attempt"):
        store.read(job_id, 1, 0, 1)
    with pytest.raises(ValueError, match="not an attempt"):
        store.writer(job_id, 1)


def test_closing_twice_is_harmless(store: FileLogStore) -> None:
    writer = store.writer("job", 1)
    writer.close()
    writer.close()


def test_a_full_disk_is_storage_full() -> None:
    # The kernel's own full device: every write to it fails as on a disk without room.
    device = Path("/dev/full")
    descriptor = os.open(device, os.O_WRONLY)
    try:
        with pytest.raises(StorageFull), disk_full_as_storage_full(device):
            os.write(descriptor, b"x")
    finally:
        os.close(descriptor)

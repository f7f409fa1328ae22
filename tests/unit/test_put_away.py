"""Logs that are put away after the verdict: less room, the same bytes, and at no moment neither form."""

import asyncio
import errno
import fcntl
import hashlib
import os
from collections.abc import Callable
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import httpx
import pytest
from structlog.testing import capture_logs

from ci_common.clock import utcnow
from ci_common.crash_points import CrashPoint, told_of_crash_points
from ci_common.errors import StorageFull
from ci_common.models import Job, LogSeal
from ci_controller.quiet_logs import QUIET_AFTER, QuietLogs
from ci_persistence import log_store
from ci_persistence.log_frames import FRAME_BYTES
from ci_persistence.log_store import FileLogStore
from tests.support.server import Account, Site

OUTPUT = b"".join(b"tests/test_%d.py::test_it PASSED\n" % number for number in range(20_000))
LATER = QUIET_AFTER + timedelta(seconds=1)


class Died(Exception):
    """What a test makes of a process's death."""


@pytest.fixture
def store(tmp_path: Path) -> FileLogStore:
    return FileLogStore(tmp_path / "logs")


@pytest.fixture
def folder(store: FileLogStore, tmp_path: Path) -> Path:
    write(store, OUTPUT)
    return tmp_path / "logs" / "job"


def write(store: FileLogStore, data: bytes) -> LogSeal:
    with closing(store.writer("job", 1)) as writer:
        writer.write(0, data)
        return writer.seal()


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def at(point: CrashPoint, then: Callable[[], None]) -> Callable[[CrashPoint], None]:
    """Return who does that when the point is reached."""

    def reached(name: CrashPoint) -> None:
        if name == point:
            then()

    return reached


def die() -> None:
    raise Died


def test_it_takes_less_room_and_reads_as_before(store: FileLogStore, folder: Path) -> None:
    before = (folder / "1.log").stat()
    assert list(store.to_put_away()) == [("job", 1)]
    assert store.put_away("job", 1)
    assert names(folder) == {"1.log.zst", "1.events"}
    after = (folder / "1.log.zst").stat()
    assert after.st_size < before.st_size / 5
    assert (after.st_mode, after.st_mtime_ns) == (before.st_mode, before.st_mtime_ns)
    assert list(store.to_put_away()) == []
    assert store.size("job", 1) == len(OUTPUT)
    assert store.read("job", 1, FRAME_BYTES - 10, 20) == OUTPUT[FRAME_BYTES - 10 : FRAME_BYTES + 10]
    assert store.read("job", 1, 0, 10**9) == OUTPUT
    assert store.read("job", 1, len(OUTPUT), 5) == b""


def test_who_reads_already_reads_on(store: FileLogStore, folder: Path) -> None:
    with store.reader("job", 1) as plain:
        start = plain.read(0, 100)
        store.put_away("job", 1)
        with store.reader("job", 1) as compressed:
            store.delete("job")
            assert start + plain.read(100, 10**9) == compressed.read(0, 10**9) == OUTPUT


@pytest.mark.parametrize("size", [0, 1, 4096])
def test_what_is_no_larger_than_a_block_stays(size: int, store: FileLogStore) -> None:
    write(store, bytes(size))
    assert list(store.to_put_away()) == []


@pytest.mark.parametrize(
    "seal",
    [
        LogSeal(len(OUTPUT), hashlib.sha256(b"other").hexdigest()),
        LogSeal(len(OUTPUT) + 1, hashlib.sha256(OUTPUT).hexdigest()),
    ],
)
def test_what_is_not_as_its_seal_says_stays_as_it_is(
    seal: LogSeal, store: FileLogStore, folder: Path
) -> None:
    assert store.put_away("job", 1, seal) is False
    assert names(folder) == {"1.log", "1.events"}
    assert (folder / "1.log").read_bytes() == OUTPUT


def test_what_is_absent_cannot_be_put_away(store: FileLogStore) -> None:
    assert not store.put_away("job", 1)


def test_a_process_that_dies_in_between_leaves_both_and_the_next_one_ends_it(
    store: FileLogStore, folder: Path
) -> None:
    with told_of_crash_points(at("after_log_compressed", die)), pytest.raises(Died):
        store.put_away("job", 1)
    assert names(folder) == {"1.log", "1.log.zst", "1.events"}
    assert store.read("job", 1, 0, 10**9) == OUTPUT
    (folder / "1.log.zst.part").write_bytes(b"of one that died earlier")
    assert store.put_away("job", 1)
    assert names(folder) == {"1.log.zst", "1.events"}
    assert store.read("job", 1, 0, 10**9) == OUTPUT


def test_while_one_process_is_at_it_another_leaves_it_alone(store: FileLogStore, folder: Path) -> None:
    seen = list[bool | None]()

    def meanwhile() -> None:
        seen.append(store.put_away("job", 1))

    with told_of_crash_points(at("after_log_compressed", meanwhile)):
        assert store.put_away("job", 1)
    assert seen == [None]


def test_a_disk_that_does_not_keep_what_was_written_takes_nothing_away(
    store: FileLogStore, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync = os.fsync

    def damaging(descriptor: int) -> None:
        fsync(descriptor)
        if Path(f"/proc/self/fd/{descriptor}").readlink().name.endswith(".part"):
            os.pwrite(descriptor, b"\0\0\0\0", 20)

    monkeypatch.setattr(os, "fsync", damaging)
    with pytest.raises(OSError, match="damaged"):
        store.put_away("job", 1)
    assert names(folder) == {"1.log", "1.events"}
    assert store.read("job", 1, 0, 10**9) == OUTPUT


def test_a_writer_finds_what_stands_and_readers_miss_nothing(store: FileLogStore, folder: Path) -> None:
    store.put_away("job", 1)
    with store.reader("job", 1) as reader, closing(store.writer("job", 1)) as writer:
        assert names(folder) == {"1.log", "1.events"}
        assert writer.size() == len(OUTPUT)
        assert writer.read(0, 10**9) == OUTPUT
        writer.write(len(OUTPUT), b"more")
        assert reader.read(0, 10**9) == OUTPUT
    assert store.read("job", 1, len(OUTPUT), 9) == b"more"
    assert store.put_away("job", 1)
    assert store.read("job", 1, 0, 10**9) == OUTPUT + b"more"


def test_a_log_that_is_put_away_while_a_writer_comes_is_not_hidden_by_an_empty_one(
    store: FileLogStore, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    look = log_store.take_out

    def put_away_behind(path: Path) -> None:
        monkeypatch.undo()
        look(path)
        assert store.put_away("job", 1)

    monkeypatch.setattr(log_store, "take_out", put_away_behind)
    with closing(store.writer("job", 1)) as writer:
        assert writer.read(0, 10**9) == OUTPUT
        writer.write(len(OUTPUT), b"more")
    assert names(folder) == {"1.log", "1.events"}
    assert store.read("job", 1, 0, 10**9) == OUTPUT + b"more"


def test_a_damaged_one_reads_as_far_as_it_is_sound_and_the_log_says_so(
    store: FileLogStore, folder: Path
) -> None:
    store.put_away("job", 1)
    stored = folder / "1.log.zst"
    data = bytearray(stored.read_bytes())
    data[len(data) // 2] ^= 255
    stored.write_bytes(data)
    with capture_logs() as logs:
        assert store.read("job", 1, 0, 100) == OUTPUT[:100]
        with store.reader("job", 1) as reader:
            pieces = [reader.read(at, 4096) for at in range(0, len(OUTPUT), 4096)]
    assert OUTPUT.startswith(b"".join(pieces[: FRAME_BYTES // 4096]))
    assert pieces[-1] == b""
    assert [line["event"] for line in logs] == ["a stored log is damaged"]
    stored.write_bytes(b"nothing of ours")
    assert store.size("job", 1) == 0


# -- links: the directory may belong to another user than the process, which may be root ------------------


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """A file that no link may bring in, or have written."""
    path = tmp_path / "foreign"
    path.write_bytes(b"of somebody else" * 1000)
    return path


def test_a_log_that_is_a_link_is_an_error(store: FileLogStore, folder: Path, foreign: Path) -> None:
    (folder / "1.log").unlink()
    (folder / "1.log").symlink_to(foreign)
    with pytest.raises(OSError, match="symbolic links"):
        store.put_away("job", 1)
    with pytest.raises(OSError, match="symbolic links"):
        store.writer("job", 1)
    assert names(folder) == {"1.log", "1.events"}


@pytest.mark.parametrize("name", ["1.log", "1.log.zst"])
def test_nobody_reads_what_a_link_names(name: str, store: FileLogStore, folder: Path, foreign: Path) -> None:
    (folder / "1.log").unlink()
    (folder / name).symlink_to(foreign)
    (folder / "1.events").unlink()
    (folder / "1.events").symlink_to(foreign)
    with capture_logs() as logs:
        assert_nothing_is_read(store)
    assert {line["event"] for line in logs} == {"a log is no regular file, and is not read"}
    assert [(item.name, item.size < foreign.stat().st_size) for item in store.items()] == [("job", True)]


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir], ids=["pipe", "directory"])
@pytest.mark.parametrize("name", ["1.log", "1.log.zst"])
def test_what_is_no_file_is_no_log_and_nobody_waits_for_it(
    name: str, make: Callable[[Path], None], store: FileLogStore, folder: Path
) -> None:
    (folder / "1.log").unlink()
    (folder / "1.events").unlink()
    for one in (name, "1.events"):
        make(folder / one)
    with capture_logs() as logs:
        assert_nothing_is_read(store)
    assert {line["event"] for line in logs} == {"a log is no regular file, and is not read"}


@pytest.mark.parametrize("name", ["1.log", "1.events"])
def test_no_writer_waits_for_a_pipe(name: str, store: FileLogStore, folder: Path) -> None:
    (folder / name).unlink()
    os.mkfifo(folder / name)
    with pytest.raises(OSError, match=r"(?i)regular file|no such device"):
        store.writer("job", 1)
    if name == "1.log":
        with pytest.raises(OSError, match="regular file"):
            store.put_away("job", 1)


def test_a_directory_that_is_a_link_is_nobodys(store: FileLogStore, folder: Path, tmp_path: Path) -> None:
    """As root one would otherwise read, write and prune where the owner of the logs may not."""
    elsewhere = folder.rename(tmp_path / "elsewhere")
    folder.symlink_to(elsewhere)
    before = {path.name: path.read_bytes() for path in elsewhere.iterdir()}
    assert_nothing_is_read(store)
    assert list(store.items()) == list(store.to_put_away()) == []
    for writing in (store.put_away, store.writer):
        with pytest.raises(OSError, match="Not a directory"):
            writing("job", 1)
    store.delete("job")
    assert not os.path.lexists(folder)
    assert {path.name: path.read_bytes() for path in elsewhere.iterdir()} == before


def assert_nothing_is_read(store: FileLogStore) -> None:
    assert store.size("job", 1) == 0
    assert store.read("job", 1, 0, 100) == store.read_events("job", 1, 100) == b""
    with store.reader("job", 1) as reader:
        assert (reader.size(), reader.read(0, 100)) == (0, b"")


@pytest.mark.parametrize("name", ["1.events", "1.events.new"])
def test_events_are_written_through_no_link(
    name: str, store: FileLogStore, folder: Path, foreign: Path
) -> None:
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(foreign)
    before = foreign.read_bytes(), foreign.stat().st_mode
    with pytest.raises(OSError, match="symbolic links"), closing(store.writer("job", 1)) as writer:
        writer.write_events([b"{}"])
    assert (foreign.read_bytes(), foreign.stat().st_mode) == before


def test_a_link_in_the_place_of_the_compressed_form_is_not_written_through(
    store: FileLogStore, folder: Path, foreign: Path
) -> None:
    (folder / "1.log.zst.part").symlink_to(foreign)
    before = foreign.read_bytes(), foreign.stat().st_mode
    assert store.put_away("job", 1)
    assert (foreign.read_bytes(), foreign.stat().st_mode) == before
    assert not (folder / "1.log.zst").is_symlink()
    assert store.read("job", 1, 0, 10**9) == OUTPUT


# -- by the controller -----------------------------------------------------------------------------------


@pytest.fixture
def quiet(site: Site) -> QuietLogs:
    return QuietLogs(site.repository, site.stores.logs)


async def test_only_logs_of_jobs_that_ended_a_while_ago_are_put_away(
    quiet: QuietLogs, site: Site, ada: Account
) -> None:
    job = await site.finished_job(ada, OUTPUT)
    await site.queue_job(ada)
    running = await site.hands.start()
    site.hands.write(running, OUTPUT)
    unknown = site.settings.data_path / "logs" / "unknown"
    await asyncio.to_thread(unknown.mkdir)
    (unknown / "1.log").write_bytes(OUTPUT)
    assert await quiet.put_away(utcnow()) == 0
    assert await quiet.put_away(utcnow() + LATER) == 1
    assert set(site.stores.logs.to_put_away()) == {(running.job.id, 1), ("unknown", 1)}
    assert site.stores.logs.read(job.id, 1, 0, 10**9) == OUTPUT


async def test_earlier_attempts_are_put_away_with_the_last_one(
    quiet: QuietLogs, site: Site, ada: Account
) -> None:
    job = await site.queue_job(ada)
    first = await site.hands.start()
    site.hands.write(first, OUTPUT[:9999])
    await site.hands.lose(first)
    second = await site.hands.start()
    site.hands.write(second, OUTPUT)
    assert await quiet.put_away(utcnow() + LATER) == 0
    await site.hands.finish(second)
    assert await quiet.put_away(utcnow() + LATER) == 2
    assert site.stores.logs.read(job.id, 1, 0, 10**9) == OUTPUT[:9999]


async def test_a_log_that_is_not_what_its_row_says_stays_and_is_told_of_once(
    quiet: QuietLogs, site: Site, ada: Account
) -> None:
    damaged, good = await site.finished_job(ada, OUTPUT), await site.finished_job(ada, OUTPUT)
    (site.settings.data_path / "logs" / damaged.id / "1.log").write_bytes(OUTPUT[:-1])
    with capture_logs() as logs:
        assert await quiet.put_away(utcnow() + LATER) == 1
        assert await quiet.put_away(utcnow() + LATER) == 0
    assert [(line["event"], line["job"]) for line in logs] == [("a log stays as it was written", damaged.id)]
    assert site.stores.logs.read(good.id, 1, 0, 10**9) == OUTPUT


async def test_a_log_that_another_process_was_at_is_tried_again(
    quiet: QuietLogs, site: Site, ada: Account
) -> None:
    job = await site.finished_job(ada, OUTPUT)
    with (site.settings.data_path / "logs" / job.id / "1.log").open("rb") as other, capture_logs() as logs:
        fcntl.flock(other, fcntl.LOCK_EX)
        assert await quiet.put_away(utcnow() + LATER) == 0
        assert await quiet.put_away(utcnow() + LATER) == 0
    assert [line["why"] for line in logs] == ["another process is at it"]  # once
    assert await quiet.put_away(utcnow() + LATER) == 1


async def test_a_log_that_finds_no_room_holds_up_no_other_and_is_tried_again(
    quiet: QuietLogs, site: Site, ada: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = sorted([(await site.finished_job(ada, OUTPUT)).id, (await site.finished_job(ada, OUTPUT)).id])
    real = os.fsync

    def full(descriptor: int) -> None:
        path = str(Path(f"/proc/self/fd/{descriptor}").readlink())
        if path.endswith(".part") and jobs[0] in path:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageFull):
        await quiet.put_away(utcnow() + LATER)
    assert list(site.stores.logs.to_put_away()) == [(jobs[0], 1)]
    monkeypatch.undo()
    assert await quiet.put_away(utcnow() + LATER) == 1


# -- to readers ------------------------------------------------------------------------------------------


@pytest.fixture
async def job(site: Site, ada: Account) -> Job:
    job = await site.finished_job(ada, OUTPUT)
    assert site.stores.logs.put_away(job.id, 1, LogSeal(job.log_size or 0, job.log_sha256 or ""))
    return job


async def test_the_log_is_served_as_if_nothing_had_happened(job: Job, http: httpx.AsyncClient) -> None:
    path = f"/jobs/{job.id}/log"
    whole = await http.get(path)
    assert (whole.content, whole.headers["etag"]) == (OUTPUT, f'"{job.log_sha256}"')
    assert (await http.head(path)).headers["content-length"] == str(len(OUTPUT))
    at = FRAME_BYTES - 5
    part = await http.get(path, headers={"Range": f"bytes={at}-{at + 9}"})
    assert (part.status_code, part.content) == (206, OUTPUT[at : at + 10])
    assert (await http.get(path, headers={"Range": "bytes=-7"})).content == OUTPUT[-7:]
    behind = await http.get(path, headers={"Range": f"bytes={len(OUTPUT)}-"})
    assert behind.headers["content-range"] == f"bytes */{len(OUTPUT)}"


async def test_a_stream_goes_on_from_its_offset(job: Job, http: httpx.AsyncClient) -> None:
    start = len(OUTPUT) - 1000
    response = await http.get(f"/jobs/{job.id}/stream", headers={"Last-Event-ID": f"1:{start}"})
    assert OUTPUT[start:].splitlines()[-1].decode() in response.text
    assert OUTPUT[:start].splitlines()[-2].decode() not in response.text
    assert f"id: 1:{len(OUTPUT)}" in response.text
    assert '"type": "complete"' in response.text


async def test_damage_is_told_to_who_streams_it(site: Site, job: Job, http: httpx.AsyncClient) -> None:
    stored = site.settings.data_path / "logs" / job.id / "1.log.zst"
    stored.write_bytes(b"nothing of ours")
    response = await http.get(f"/jobs/{job.id}/stream", headers={"Last-Event-ID": "1:0"})
    assert "log_incomplete" in response.text
    assert '"type": "complete"' in response.text

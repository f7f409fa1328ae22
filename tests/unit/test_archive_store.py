"""Uploads on disk: whole and judged, or not there at all."""

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ci_common.errors import ArchiveTooLarge, InvalidArchive
from ci_persistence.archive_rules import ArchiveLimits
from ci_persistence.archive_store import FileArchiveStore
from tests.support.archives import HOSTILE, zip_of

ROOM = 10_000_000
PROJECT = zip_of({"tests/test_a.py": b"def test(): pass\n", "requirements.txt": b"attrs\n"})


@pytest.fixture
def store(tmp_path: Path) -> FileArchiveStore:
    return FileArchiveStore(tmp_path, ArchiveLimits(20, 200, 2_000_000))


async def in_pieces(data: bytes, size: int = 100) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


def names_in(directory: Path) -> list[str]:
    return [path.name for path in directory.iterdir()]


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def test_a_saved_archive_can_be_read(store: FileArchiveStore, tmp_path: Path) -> None:
    saved = await store.save(in_pieces(PROJECT), ROOM)
    assert (saved.size, saved.sha256) == (len(PROJECT), hashlib.sha256(PROJECT).hexdigest())
    with store.open(saved.ref) as archive:
        assert [entry.path for entry in archive.entries] == ["requirements.txt", "tests/test_a.py"]
        assert archive.read("requirements.txt", 100) == b"attrs\n"
        assert archive.read("requirements.txt", 3) is None
        assert archive.read("absent", 100) is None
    assert (tmp_path / saved.ref).stat().st_mode & 0o777 == 0o640


async def test_an_upload_of_exactly_the_limit_passes(store: FileArchiveStore) -> None:
    assert (await store.save(in_pieces(PROJECT), len(PROJECT))).size == len(PROJECT)


async def test_a_larger_upload_is_refused_and_leaves_nothing(store: FileArchiveStore, tmp_path: Path) -> None:
    with pytest.raises(ArchiveTooLarge, match=f"{len(PROJECT) - 1} bytes"):
        await store.save(in_pieces(PROJECT), len(PROJECT) - 1)
    assert not names_in(tmp_path)


@pytest.mark.parametrize("name", HOSTILE)
async def test_a_bad_upload_is_refused_and_leaves_nothing(
    name: str, store: FileArchiveStore, tmp_path: Path
) -> None:
    data, rule = HOSTILE[name]
    with pytest.raises(InvalidArchive) as refused:
        await store.save(in_pieces(data, 10_000), ROOM)
    assert refused.value.extra["rule"] == rule
    assert not names_in(tmp_path)


async def test_a_client_that_goes_away_leaves_nothing(store: FileArchiveStore, tmp_path: Path) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield PROJECT[:50]
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        await store.save(broken(), ROOM)
    assert not names_in(tmp_path)


@pytest.mark.parametrize("turns", range(0, 40, 3))
async def test_a_cancelled_upload_is_whole_or_absent(
    turns: int, store: FileArchiveStore, tmp_path: Path
) -> None:
    descriptors = open_descriptors()
    task = asyncio.create_task(store.save(in_pieces(PROJECT), ROOM))
    for _ in range(turns):
        await asyncio.sleep(0)
    task.cancel()
    try:
        saved = await task
    except asyncio.CancelledError:
        assert not names_in(tmp_path)
    else:
        assert names_in(tmp_path) == [saved.ref]
    assert open_descriptors() == descriptors


async def test_what_is_gone_or_damaged_is_an_invalid_archive(store: FileArchiveStore, tmp_path: Path) -> None:
    saved = await store.save(in_pieces(PROJECT), ROOM)
    (tmp_path / saved.ref).write_bytes(PROJECT[:-30])
    with pytest.raises(InvalidArchive), store.open(saved.ref):
        pass
    store.delete(saved.ref)
    store.delete(saved.ref)
    with pytest.raises(InvalidArchive) as refused, store.open(saved.ref):
        pass
    assert refused.value.extra["rule"] == "gone"


@pytest.mark.parametrize("ref", ["", "../secret.zip", "/etc/passwd", "x.zip", "a" * 32])
def test_a_reference_is_never_a_path(ref: str, store: FileArchiveStore) -> None:
    with pytest.raises(InvalidArchive), store.open(ref):
        pass
    with pytest.raises(InvalidArchive):
        store.delete(ref)


async def test_references_have_ages_and_listing_them_changes_nothing(
    store: FileArchiveStore, tmp_path: Path
) -> None:
    saved = await store.save(in_pieces(PROJECT), ROOM)
    os.utime(tmp_path / saved.ref, (0, os.stat(tmp_path / saved.ref).st_mtime - 500))  # noqa: PTH116
    abandoned = tmp_path / f"{'a' * 32}.zip.part"
    abandoned.write_bytes(b"PK")
    os.utime(abandoned, (0, 0))
    (item,) = store.items()
    ref, age = item.name, item.age
    assert ref == saved.ref
    assert 500 <= age < 600
    assert abandoned.exists()


async def test_unfinished_uploads_are_removed_when_they_are_old(
    store: FileArchiveStore, tmp_path: Path
) -> None:
    saved = await store.save(in_pieces(PROJECT), ROOM)
    abandoned, fresh, foreign = (
        tmp_path / name for name in (f"{'a' * 32}.zip.part", f"{'b' * 32}.zip.part", "mine.part")
    )
    for path in (abandoned, fresh, foreign):
        path.write_bytes(b"PK")
    for path in (abandoned, foreign, tmp_path / saved.ref):
        os.utime(path, (0, 0))
    assert store.remove_unfinished(3600) == [abandoned.name]
    assert sorted(names_in(tmp_path)) == sorted([saved.ref, fresh.name, foreign.name])
    assert store.remove_unfinished(3600) == []


async def test_a_store_whose_directory_is_not_there_yet_makes_it(tmp_path: Path) -> None:
    store = FileArchiveStore(tmp_path / "data" / "archives", ArchiveLimits(20, 200, 2_000_000))
    assert list(store.items()) == store.remove_unfinished(0) == []
    saved = await store.save(in_pieces(PROJECT), ROOM)
    assert names_in(tmp_path / "data" / "archives") == [saved.ref]
    assert oct((tmp_path / "data" / "archives").stat().st_mode & 0o7777) == "0o2770"


async def test_nobody_waits_for_all_that_somebody_else_has_sent(tmp_path: Path) -> None:
    """Judging costs seconds at worst, and two are judged at once: one user's queue is that user's own."""
    store = FileArchiveStore(tmp_path, ArchiveLimits(20, 2000, 2**30))
    costly = zip_of({"zeros": bytes(2**24)})
    others = [asyncio.create_task(store.save(in_pieces(costly, 2**20), ROOM, "eve")) for _ in range(8)]
    await asyncio.wait(others, return_when=asyncio.FIRST_COMPLETED)
    await store.save(in_pieces(PROJECT), ROOM, "ada")
    left = sum(not one.done() for one in others)
    await asyncio.gather(*others)
    assert left > 2

"""Uploads on a shelf: the same semantics in a directory and in a bucket, and what a bucket that fails does."""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from pydantic import ValidationError
from structlog.testing import capture_logs

from ci_admin.local_checks import check_storage
from ci_common.errors import InvalidArchive, InvalidRequest, StorageUnavailable
from ci_common.settings import StorageSettings, read_settings
from ci_persistence.archive_rules import ArchiveLimits
from ci_persistence.archive_store import FileArchiveStore
from ci_persistence.s3_objects import S3Objects
from ci_persistence.shelf import FolderShelf, ObjectShelf, Shelf, Shelve
from tests.support.archives import zip_of
from tests.support.blobs import records
from tests.support.s3 import KEY_ID, SECRET, FakeS3, s3_endpoint
from tests.support.server import Site, client, serving, upload

ROOM = 10**6
LIMITS = ArchiveLimits(20, 200, 2_000_000)
PROJECT = zip_of({"tests/test_a.py": b"def test(): pass\n"})
BUCKET = os.environ.get("CI_TEST_S3_URL", "s3://bucket/some/prefix")


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeS3]:
    with s3_endpoint() as fake:
        if "CI_TEST_S3_URL" not in os.environ:
            for name, value in fake.environment().items():
                monkeypatch.setenv(name, value)
        yield fake


@pytest.fixture(params=["folder", "bucket"])
def shelve(request: pytest.FixtureRequest) -> Shelve:
    if request.param == "folder":
        return FolderShelf
    request.getfixturevalue("s3")
    return partial(ObjectShelf, S3Objects(BUCKET), ROOM)


@pytest.fixture
def bucket(s3: FakeS3) -> Callable[[Path], Shelf]:
    return partial(ObjectShelf, S3Objects(BUCKET), ROOM)


def put(shelf: Shelf, root: Path, name: str, data: bytes) -> None:
    root.mkdir(exist_ok=True)
    (root / f"{name}.part").write_bytes(data)
    shelf.publish(root / f"{name}.part", name)


def read(shelf: Shelf, name: str) -> bytes | None:
    path = shelf.find(name)
    return path.read_bytes() if path else None


async def pieces(data: bytes) -> AsyncIterator[bytes]:
    yield data


# -- what both kinds promise -----------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 20_000_000])
def test_what_was_published_is_found_whole_until_it_is_removed(
    size: int, shelve: Shelve, tmp_path: Path
) -> None:
    data = os.urandom(size)
    shelf, root = shelve(tmp_path / "things"), tmp_path / "things"
    root.mkdir()
    assert (shelf.find("a.zip"), shelf.has("a.zip"), list(shelf.items())) == (None, False, [])
    put(shelf, root, "a.zip", data)
    assert shelf.has("a.zip")
    assert read(shelf, "a.zip") == data
    assert [(item.name, item.size) for item in shelf.items()] == [("a.zip", size)]
    for _ in range(2):
        shelf.remove("a.zip")
        assert (shelf.find("a.zip"), shelf.has("a.zip"), list(shelf.items())) == (None, False, [])
    assert list(root.iterdir()) == []


def test_all_are_listed_with_their_ages(shelve: Shelve, tmp_path: Path) -> None:
    shelf = shelve(tmp_path / "things")
    for number in range(7):
        put(shelf, tmp_path / "things", f"{number}.zip", b"x" * number)
    found = list(shelf.items())
    assert [(item.name, item.size) for item in found] == [(f"{number}.zip", number) for number in range(7)]
    assert all(0 <= item.age < 600 for item in found)
    for item in found:
        shelf.remove(item.name)


async def test_the_store_of_archives_works_on_both(shelve: Shelve, tmp_path: Path) -> None:
    store = FileArchiveStore(tmp_path / "archives", LIMITS, shelve)
    store.check()
    saved = await store.save(pieces(PROJECT), ROOM)
    pack = await store.blobs.receive(pieces(records(b"content")))
    assert [item.name for item in store.items()] == [saved.ref]
    assert [item.name for item in store.blobs.items()] == [pack.name]
    with store.open(saved.ref) as archive:
        assert archive.read("tests/test_a.py", 100) == b"def test(): pass\n"
    os.close(store.blobs.open(pack.name))
    store.delete(saved.ref)
    store.blobs.delete(pack.name)
    with pytest.raises(InvalidArchive), store.open(saved.ref):
        pass
    with pytest.raises(InvalidArchive):
        store.blobs.open(pack.name)
    assert store.blobs.absent([pack.name]) == {pack.name}


async def test_a_bad_upload_leaves_nothing_on_either(shelve: Shelve, tmp_path: Path) -> None:
    store = FileArchiveStore(tmp_path / "archives", LIMITS, shelve)
    with pytest.raises(InvalidArchive):
        await store.save(pieces(b"no zip"), ROOM)
    assert list(store.items()) == []
    assert list((tmp_path / "archives").iterdir()) == []


# -- a bucket --------------------------------------------------------------------------------------------


def test_another_machine_finds_it_and_keeps_a_copy(
    bucket: Callable[[Path], Shelf], s3: FakeS3, tmp_path: Path
) -> None:
    here, there = tmp_path / "here" / "things", tmp_path / "there" / "things"
    for root in (here, there):
        root.mkdir(parents=True)
    put(bucket(here), here, "a.zip", b"data")
    assert read(bucket(there), "a.zip") == b"data"
    assert [path.name for path in there.iterdir()] == ["a.zip"]
    assert (there / "a.zip").stat().st_mode & 0o777 == 0o640
    asked = len(s3.requests)
    assert read(bucket(there), "a.zip") == b"data"
    assert len(s3.requests) == asked, "the copy is enough"


def test_a_directory_that_is_gone_is_no_object_that_is_gone(
    bucket: Callable[[Path], Shelf], tmp_path: Path
) -> None:
    root = tmp_path / "things"
    put(bucket(root), root, "a.zip", b"data")
    (root / "a.zip").unlink()
    root.rmdir()
    with pytest.raises(FileNotFoundError):
        bucket(root).find("a.zip")
    root.mkdir()
    assert read(bucket(root), "a.zip") == b"data"


def test_copies_go_the_longest_unused_first_and_come_again(
    bucket: Callable[[Path], Shelf], tmp_path: Path
) -> None:
    root = tmp_path / "things"
    shelf = bucket(root)
    for number in range(4):
        put(shelf, root, f"{number}.zip", bytes(ROOM // 2))
        age(root / f"{number}.zip", 3600 - number)
    (root / "before.zip").write_bytes(bytes(ROOM))  # of the time when there was no bucket
    age(root / "before.zip", 9999)
    (root / f"0.zip.copy.{'0' * 32}").write_bytes(b"of a process that died")
    age(root / f"0.zip.copy.{'0' * 32}", 9999)
    assert shelf.trim() == 3
    assert {path.name for path in root.iterdir()} == {"2.zip", "3.zip", "before.zip"}
    assert read(shelf, "0.zip") == bytes(ROOM // 2)
    assert shelf.trim() == 1
    assert {path.name for path in root.iterdir()} == {"0.zip", "3.zip", "before.zip"}


def age(path: Path, seconds: float) -> None:
    moment = time.time() - seconds
    os.utime(path, (moment, moment))


def test_a_copy_that_was_used_lately_stays(bucket: Callable[[Path], Shelf], tmp_path: Path) -> None:
    root = tmp_path / "things"
    shelf = bucket(root)
    for number in range(4):
        put(shelf, root, f"{number}.zip", bytes(ROOM // 2))
    assert shelf.trim() == 0


async def test_a_bucket_that_fails_is_told_as_such_and_nothing_is_left(
    bucket: Shelve, s3: FakeS3, tmp_path: Path
) -> None:
    store = FileArchiveStore(tmp_path / "archives", LIMITS, bucket)
    saved = await store.save(pieces(PROJECT), ROOM)
    (tmp_path / "archives" / saved.ref).unlink()
    s3.buckets.clear()
    for refused in (store.check, lambda: list(store.items()), lambda: store.delete(saved.ref)):
        with pytest.raises(StorageUnavailable, match="There is no bucket bucket"):
            refused()
    with pytest.raises(StorageUnavailable), store.open(saved.ref):
        pytest.fail("an archive that is away is not gone")
    with pytest.raises(StorageUnavailable):
        await store.save(pieces(PROJECT), ROOM)
    with pytest.raises(StorageUnavailable):
        store.blobs.absent([f"{'0' * 32}.pack"])
    assert list((tmp_path / "archives").iterdir()) == []


def test_wrong_credentials_are_told_without_showing_any(
    s3: FakeS3, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDWRONG")
    settings = StorageSettings(db_path=tmp_path / "ci.db", storage_url=BUCKET)
    found = check_storage(settings)
    assert (found.name, found.status) == ("storage", "failed")
    assert "refuses our credentials" in found.detail
    shown = f"{found.detail} {found.fix}"
    assert not [secret for secret in ("AKIDWRONG", SECRET, KEY_ID, "Credential=") if secret in shown]


def test_doctor_says_that_a_bucket_is_well(s3: FakeS3, tmp_path: Path) -> None:
    found = check_storage(StorageSettings(db_path=tmp_path / "ci.db", storage_url=BUCKET))
    assert (found.status, found.detail) == ("ok", f"{BUCKET} answers and lets us in")


def test_what_an_endpoint_answers_never_comes_out(s3: FakeS3) -> None:
    s3.fails = True
    with pytest.raises(StorageUnavailable) as refused:
        S3Objects(BUCKET).check()
    assert "cannot be used now" in refused.value.detail
    assert "StringToSign" not in refused.value.detail
    assert "bucket" not in refused.value.public_detail


async def test_a_server_on_a_bucket_takes_a_job_and_says_how_the_bucket_is(site: Site, s3: FakeS3) -> None:
    ada = await site.account()
    settings = site.settings.model_copy(update={"storage_url": BUCKET})
    with serving(settings) as url, capture_logs():
        async with client(url, ada) as http:
            assert (await http.get("/ready")).json()["checks"]["storage"]["status"] == "ok"
            assert (await http.post("/submit-async", files=upload())).status_code == 200
            [stored] = s3.objects
            assert urlsplit(BUCKET).path.strip("/") + "/archives/" in stored
            s3.buckets.clear()
            refused = await http.post("/submit-async", files=upload())
    assert (refused.status_code, refused.json()["code"]) == (503, "storage_unavailable")
    assert "bucket" not in refused.text


async def test_a_server_says_what_ails_its_bucket(site: Site, s3: FakeS3) -> None:
    s3.buckets.clear()
    with serving(site.settings.model_copy(update={"storage_url": BUCKET})) as url:
        async with httpx.AsyncClient(base_url=url) as http:
            first, asked = (await http.get("/ready")).json(), len(s3.requests)
            await asyncio.gather(*(http.get("/ready") for _ in range(5)))
    assert first["checks"]["storage"]["status"] == "degraded"
    assert "does not answer" in first["checks"]["storage"]["message"]
    assert len(s3.requests) == asked, "whoever asks /ready does not ask the bucket"


# -- settings --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("s3://key:secret@bucket", "holds no credentials"),
        ("s3://bucket?secret=1", "holds no credentials"),
        ("s3:///prefix", "is s3://bucket/prefix or file:///"),
        ("gs://bucket", "is s3://bucket/prefix or file:///"),
        ("file://host/path", "is s3://bucket/prefix or file:///"),
        ("file:///other", "name two directories"),
    ],
)
def test_a_wrong_url_is_refused_without_showing_it(url: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match=said) as refused:
        read_settings(StorageSettings, storage_url=url, data_dir=tmp_path)
    assert "secret" not in refused.value.detail
    with pytest.raises(ValidationError):
        StorageSettings(storage_url=url, data_dir=tmp_path)


def test_a_url_of_a_file_names_the_data_directory() -> None:
    settings = read_settings(StorageSettings, storage_url="file:///srv/ci/data")
    assert (settings.data_path, settings.bucket_url) == (Path("/srv/ci/data"), None)
    on_a_server = read_settings(
        StorageSettings, storage_url="file:///srv/ci/data", database_url="postgresql://host/ci"
    )
    assert on_a_server.data_path == Path("/srv/ci/data")

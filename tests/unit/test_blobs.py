"""Trees whose contents come apart: only what is missing goes up, and nothing of it is believed."""

import asyncio
import os
import time
import zlib
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import Request

from ci_common.blobs import BlobPlace
from ci_common.clock import utcnow
from ci_common.crash_points import CrashPoint, told_of_crash_points
from ci_common.errors import ArchiveTooLarge, InvalidArchive, InvalidBlob, MissingBlobs, TooManyRequests
from ci_common.job_terms import Priority, new_id
from ci_common.models import Job, JobFilter
from ci_controller.archive_tar import tar_stream
from ci_controller.pruner import Pruner
from ci_controller.retention import DEFAULT_RETENTION, KeepBlobs
from ci_persistence.archive_rules import ArchiveLimits
from ci_persistence.archive_store import FileArchiveStore
from ci_persistence.backup import back_up
from ci_persistence.factory import open_stores
from ci_persistence.restore import restore
from ci_server.bodies import JsonBodies
from tests.support.blobs import (
    MEDIA,
    TREE_MEDIA,
    entry,
    listing,
    manifest_of,
    record,
    records,
    sha256,
    tree_body,
)
from tests.support.server import Account, Site, client, eventually, make_settings, serving, stream
from tests.support.soak import SOAKING

FILES = 50_000 if SOAKING else 5_000  # of a large project
LIMITS = ArchiveLimits(20, 200, 3_000_000)
CONTENTS: Mapping[str, bytes] = {
    "src/a.py": b"a = 1\n" * 500,
    "src/copy.py": b"a = 1\n" * 500,
    "tests/test_a.py": b"def test_a(): pass\n",
    "empty": b"",
}
TEXT = b"some contents " * 1000


@pytest.fixture
def store(tmp_path: Path) -> FileArchiveStore:
    return FileArchiveStore(tmp_path / "archives", LIMITS)


async def in_pieces(data: bytes, size: int) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


def files_of(site: Site, name: str) -> list[str]:
    return sorted(path.name for path in (site.settings.data_path / name).iterdir())


def age(site: Site) -> None:
    """Everything in the stores was last touched yesterday."""
    yesterday = time.time() - 86_400
    for name in ("blobs", "archives"):
        for path in (site.settings.data_path / name).iterdir():
            os.utime(path, (yesterday, yesterday))


def read_back(site: Site, job: Job) -> dict[str, tuple[int, bytes]]:
    found: dict[str, tuple[int, bytes]] = {}
    with site.stores.archives.open(job.archive_ref) as archive:
        for one in archive.entries:
            with archive.open(one) as reader:
                found[one.path] = (one.mode, reader.read())
    return found


async def only_job(site: Site) -> Job:
    (job,) = (await site.repository.list_jobs(JobFilter())).jobs
    return job


async def put(http: httpx.AsyncClient, *contents: bytes) -> int:
    answer = await http.put("/blobs", content=records(*contents), headers=MEDIA)
    assert answer.status_code == 200, answer.text
    return answer.json()["stored"]


def pruner(site: Site, keep: KeepBlobs | None = None) -> Pruner:
    retention = replace(DEFAULT_RETENTION, blobs=keep or DEFAULT_RETENTION.blobs)
    return Pruner(site.repository, site.stores.logs, site.stores.archives, retention)


# -- what is sent ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 7, 48, 49, 50, 4096, 10**9])
async def test_blobs_are_verified_whatever_pieces_they_come_in(size: int, store: FileArchiveStore) -> None:
    contents = [b"", b"x", TEXT[:100], os.urandom(300), b"x"]
    pack = await store.blobs.receive(in_pieces(records(*contents), size))
    assert [blob.sha256 for blob in pack.blobs] == [sha256(data) for data in contents[:4]]
    assert [item.size for item in store.blobs.items()] == [pack.size] == [sum(b.stored for b in pack.blobs)]


WRONG: dict[str, bytes] = {
    "another hash": record(TEXT, digest=sha256(b"other")),
    "another hash, not packed": record(TEXT, packed=False, digest=sha256(b"other")),
    "larger than declared": record(TEXT, size=len(TEXT) - 1),
    "smaller than declared": record(TEXT, size=len(TEXT) + 1),
    "two sizes": record(TEXT, packed=False, size=5),
    "no zlib": record(TEXT, stored=b"no zlib at all"),
    "raw deflate": record(TEXT, stored=zlib.compress(TEXT)[2:-4]),
    "cut off": record(TEXT)[:-1],
    "cut off inside the stream": record(TEXT, stored=zlib.compress(TEXT)[:-1]),
    "cut off in its head": record(TEXT)[:20],
    "goes on behind its end": record(TEXT, stored=zlib.compress(TEXT) + b"more"),
    "an unknown encoding": record(TEXT, encoding=2),
    "a bomb": record(bytes(2_900_000), stored=zlib.compress(bytes(2_900_000), 9)),
    "a bomb that says it is small": record(bytes(2_900_000), size=10),
    "good, then bad": record(TEXT) + record(b"x", digest=sha256(b"y")),
}


@pytest.mark.parametrize("name", WRONG)
async def test_a_wrong_blob_is_refused_and_nothing_of_its_request_stays(
    name: str, store: FileArchiveStore, tmp_path: Path
) -> None:
    with pytest.raises(InvalidBlob) as refused:
        await store.blobs.receive(in_pieces(WRONG[name], 1000))
    assert "head" in name or len(refused.value.extra["sha256"]) == 64
    assert list((tmp_path / "blobs").iterdir()) == []


@pytest.mark.parametrize(
    "body",
    [
        b"".join(record(b"%d" % number) for number in range(21)),
        record(b"", size=3_000_001),
        record(os.urandom(1_600_000), packed=False) * 2,
    ],
    ids=["too many", "one too large", "together too large"],
)
async def test_too_much_is_refused(body: bytes, store: FileArchiveStore, tmp_path: Path) -> None:
    with pytest.raises(ArchiveTooLarge):
        await store.blobs.receive(in_pieces(body, 100_000))
    assert list((tmp_path / "blobs").iterdir()) == []


async def test_what_began_and_never_ended_is_removed_when_it_is_old(
    store: FileArchiveStore, tmp_path: Path
) -> None:
    store.blobs.prepare()
    part = tmp_path / "blobs" / ("0" * 32 + ".pack.part")
    part.write_bytes(b"x")
    assert store.blobs.remove_unfinished(60) == []
    os.utime(part, (0, 0))
    assert store.blobs.remove_unfinished(60) == [part.name]


# -- the rules of trees ------------------------------------------------------------------------------------

HOSTILE: dict[str, tuple[list[Any], str]] = {
    "traversal": ([entry("../a")], "path"),
    "traversal inside": ([entry("a/../../b")], "path"),
    "absolute": ([entry("/etc/passwd")], "path"),
    "backslash": ([entry("a\\b")], "path"),
    "line break": ([entry("a\nb")], "path"),
    "NUL": ([entry("a\0b")], "path"),
    "nothing": ([entry("")], "path"),
    "directory": ([entry("a/")], "special_entry"),
    "not composed": ([entry("e\u0301")], "encoding"),
    "half a pair": ([entry("\ud800")], "encoding"),
    "twice": ([entry("a"), entry("a")], "duplicate"),
    "case": ([entry("A/b"), entry("a/c")], "collision"),
    "sharp s": ([entry("stra\u00dfe"), entry("strasse")], "collision"),
    "file and directory": ([entry("a"), entry("a/b")], "collision"),
    "deep": ([entry("/".join("a" * 40))], "path_length"),
    "long": ([entry("a" * 300)], "path_length"),
    "long in bytes": ([entry("\u00e9" * 200)], "path_length"),
    "set-uid": ([entry("a", mode=0o4755)], "special_entry"),
    "symbolic link": ([entry("a", mode=0o120777)], "special_entry"),
    "negative": ([entry("a", size=-1)], "form"),
    "fraction": ([entry("a", size=1.5)], "form"),
    "truth": ([entry("a", size=True)], "form"),
    "short hash": ([entry("a", sha256="00")], "form"),
    "upper case": ([entry("a", sha256="A" * 64)], "form"),
    "no hash": ([{"path": "a", "mode": 0o644, "size": 1}], "form"),
    "no object": ([["a", 0o644, 1]], "form"),
    "number as path": ([{**entry("a"), "path": 7}], "form"),
    "too many": ([entry(f"f{number}") for number in range(21)], "too_many_entries"),
    "too large": ([entry("a", size=3_000_001)], "unpacked_size"),
    "together too large": ([entry("a", size=2_000_000), entry("b", size=2_000_000)], "unpacked_size"),
    "empty": ([], "empty"),
}


@pytest.mark.parametrize("name", HOSTILE)
async def test_a_manifest_passes_the_rules_of_archives(name: str, store: FileArchiveStore) -> None:
    files, rule = HOSTILE[name]
    with pytest.raises(InvalidArchive) as refused:
        await store.judge_manifest(files)
    assert refused.value.extra["rule"] == rule


async def test_the_same_tree_is_the_same_in_any_order(store: FileArchiveStore) -> None:
    files = manifest_of(CONTENTS)
    manifest = await store.judge_manifest(files)
    assert manifest == await store.judge_manifest(files[::-1])
    assert [file.path for file in manifest.files] == sorted(CONTENTS)
    files[0]["mode"] = 0o755
    assert manifest.sha256 != (await store.judge_manifest(files)).sha256


async def test_a_tree_names_no_more_than_it_may_however_small_its_blobs_are(store: FileArchiveStore) -> None:
    """Equal directories are one blob: thirty listings could name 10^9 files."""
    below = b"x"
    known: dict[bytes, bytes] = {}
    for level in range(30):
        kind = "d" if level else "f"
        below = listing(("a", kind, below), ("b", kind, below))
        known[sha256(below)] = below
    parts = [record(data) for data in known.values()]
    places: dict[bytes, BlobPlace] = {}
    for some in (parts[:15], parts[15:]):  # one request may hold 20
        pack = await store.blobs.receive(in_pieces(b"".join(some), 999))
        places |= {one.sha256: BlobPlace(pack.name, *one[1:]) for one in pack.blobs}

    async def find(hashes: Collection[bytes]) -> Mapping[bytes, BlobPlace]:
        return {one: places[one] for one in hashes if one in places}

    with pytest.raises(InvalidArchive) as refused:
        await store.judge_tree(sha256(below), find)
    assert refused.value.extra["rule"] == "too_many_entries"


async def kept(store: FileArchiveStore, *contents: bytes) -> dict[bytes, BlobPlace]:
    """Return where the store has these contents."""
    pack = await store.blobs.receive(in_pieces(records(*contents), 9999))
    return {one.sha256: BlobPlace(pack.name, *one[1:]) for one in pack.blobs}


async def test_a_listing_is_no_store_of_long_names(store: FileArchiveStore) -> None:
    """64 levels of names of megabytes would be gigabytes before the first path is judged."""
    root = listing(("x" * 256, "f", b""))
    places = await kept(store, root)

    async def find(_: Collection[bytes]) -> Mapping[bytes, BlobPlace]:
        return places

    with pytest.raises(InvalidArchive) as refused:
        await store.judge_tree(sha256(root), find)
    assert refused.value.extra["rule"] == "path_length"
    assert len(str(refused.value)) < 1000


async def test_the_listings_of_all_levels_have_one_limit(
    store: FileArchiveStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ci_persistence.tree_listings.MAX_LISTINGS_BYTES", 1000)
    below = listing(("a", "f", b""))
    known = {sha256(below): below}
    for _ in range(10):
        below = listing(("", "p", below)) + b" " * 100
        known[sha256(below)] = below
    places = await kept(store, *known.values())

    async def find(hashes: Collection[bytes]) -> Mapping[bytes, BlobPlace]:
        return {one: places[one] for one in hashes}

    with pytest.raises(InvalidArchive) as refused:
        await store.judge_tree(sha256(below), find)
    assert refused.value.extra["rule"] == "names_size"


async def test_the_trees_of_one_user_do_not_hold_up_another(store: FileArchiveStore) -> None:
    go_on, asked = asyncio.Event(), asyncio.Event()

    async def slow(_: Collection[bytes]) -> Mapping[bytes, BlobPlace]:
        asked.set()
        await go_on.wait()
        return {}

    bobs = [asyncio.create_task(store.judge_tree(bytes(32), slow, "bob")) for _ in range(5)]
    await asked.wait()
    async with asyncio.timeout(20):
        assert len((await store.judge_manifest([entry("a")], "ada")).files) == 1
    go_on.set()
    found = await asyncio.gather(*bobs, return_exceptions=True)
    assert all(isinstance(one, MissingBlobs) for one in found)


async def test_a_listing_that_a_prune_takes_meanwhile_is_missing(store: FileArchiveStore) -> None:
    root = listing(("a", "f", b""))
    places = await kept(store, root)

    async def find(_: Collection[bytes]) -> Mapping[bytes, BlobPlace]:
        store.blobs.delete(places[sha256(root)].pack)
        return places

    with pytest.raises(MissingBlobs) as refused:
        await store.judge_tree(sha256(root), find)
    assert refused.value.extra["missing"] == [sha256(root).hex()]


async def test_a_request_has_no_more_blobs_than_one_transaction_takes(tmp_path: Path) -> None:
    store = FileArchiveStore(tmp_path / "archives", ArchiveLimits(100_000, 200, 3_000_000))
    body = b"".join(record(n.to_bytes(4), packed=False) for n in range(10_001))
    with pytest.raises(ArchiveTooLarge) as refused:
        await store.blobs.receive(in_pieces(body, 65_536))
    assert refused.value.extra["limit"] == 10_000


# -- the whole way -----------------------------------------------------------------------------------------


async def test_only_what_is_missing_goes_up_and_the_controller_reads_the_tree(
    site: Site, http: httpx.AsyncClient
) -> None:
    hashes = [sha256(data).hex() for data in CONTENTS.values()]
    asked = (await http.post("/blobs/missing", json={"sha256": hashes})).json()
    assert asked == {"missing": list(dict.fromkeys(hashes))}
    assert await put(http, *CONTENTS.values()) == 3
    assert (await http.post("/blobs/missing", json={"sha256": hashes})).json() == {"missing": []}
    changed = {**CONTENTS, "src/a.py": b"a = 2\n"}
    assert await put(http, changed["src/a.py"], CONTENTS["empty"]) == 1
    files = manifest_of(changed)
    files[0]["mode"] = 0o755
    answer = await http.post("/submit-manifest", json={"files": files, "pytest_args": ["-x"], "timeout": 9})
    assert answer.status_code == 200, answer.text
    job = await only_job(site)
    assert answer.json() == {"job_id": job.id}
    assert (job.options.pytest_args, job.options.timeout_seconds, job.options.fresh) == (("-x",), 9, False)
    assert read_back(site, job) == {
        path: (0o755 if path == "src/a.py" else 0o644, data) for path, data in changed.items()
    }
    with site.stores.archives.open(job.archive_ref) as archive:
        assert len(b"".join(tar_stream(archive))) % 512 == 0
    assert len([pack for pack in await site.repository.packs() if pack.needed]) == 2


async def test_what_somebody_else_has_is_missing(site: Site, http: httpx.AsyncClient) -> None:
    await put(http, *CONTENTS.values())
    bob = await site.account("bob")
    hashes = list(dict.fromkeys(sha256(data).hex() for data in CONTENTS.values()))
    with serving(site.settings) as url:
        async with client(url, bob) as theirs:
            assert (await theirs.post("/blobs/missing", json={"sha256": hashes})).json() == {
                "missing": hashes
            }
            answer = await theirs.post("/submit-manifest", json={"files": manifest_of(CONTENTS)})
            assert (answer.status_code, answer.json()["code"]) == (409, "missing_blobs")
            assert sorted(answer.json()["missing"]) == sorted(hashes)
            assert await put(theirs, *CONTENTS.values()) == 3
    assert (await site.repository.list_jobs(JobFilter())).jobs == ()
    assert files_of(site, "archives") == []


@pytest.mark.parametrize(
    ("path", "body", "code"),
    [
        ("/blobs/missing", b"{", "invalid_request"),
        ("/blobs/missing", b"[" * 200_000, "invalid_request"),
        ("/blobs/missing", b'{"sha256": "x"}', "invalid_request"),
        ("/blobs/missing", b'{"sha256": ["x"]}', "invalid_request"),
        ("/blobs/missing", b'{"sha256": [[], 7]}', "invalid_request"),
        ("/submit-manifest", b'{"files": {}}', "invalid_request"),
        ("/submit-manifest", b'{"files": [], "timeout": "1"}', "invalid_request"),
        ("/submit-manifest", b'{"files": [], "timeout": NaN}', "invalid_request"),
        ("/submit-manifest", b'{"files": [], "timeout": 1e999}', "invalid_request"),
        ("/submit-manifest", b'{"files": [], "fresh": 1}', "invalid_request"),
        ("/submit-manifest", b'{"files": [], "pytest_args": ["\\ud800"]}', "invalid_request"),
        ("/submit-manifest", b'{"files": [], "pytest_args": "-x"}', "invalid_request"),
        pytest.param(
            "/submit-manifest",
            b'{"files": [], "pytest_args": ["%b"]}' % (b"x" * 33_000),
            "invalid_request",
            id="arguments",
        ),
        pytest.param(
            "/submit-manifest",
            b'{"files": [], "pytest_args": ["%b"]}' % ("é".encode() * 6_000),
            "invalid_request",
            id="arguments that are long once they are stored",
        ),
        ("/submit-manifest", b'{"files": []}', "invalid_archive"),
        ("/submit-manifest", b"[]", "invalid_request"),
    ],
)
async def test_a_wrong_request_is_refused(http: httpx.AsyncClient, path: str, body: bytes, code: str) -> None:
    answer = await http.post(path, content=body, headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.json()["code"]) == (422, code)


async def test_a_wrong_blob_names_its_hash(site: Site, http: httpx.AsyncClient) -> None:
    answer = await http.put("/blobs", content=WRONG["another hash"], headers=MEDIA)
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_blob")
    assert answer.json()["sha256"] == sha256(b"other").hex()
    assert files_of(site, "blobs") == []


async def test_a_size_that_is_not_that_of_the_contents_is_refused(
    site: Site, http: httpx.AsyncClient
) -> None:
    await put(http, TEXT)
    answer = await http.post("/submit-manifest", json={"files": [entry("a", TEXT, size=7)]})
    assert (answer.json()["code"], answer.json()["rule"]) == ("invalid_archive", "size")
    assert files_of(site, "archives") == []


async def test_a_repetition_is_one_job_even_if_its_contents_are_gone(
    site: Site, http: httpx.AsyncClient
) -> None:
    await put(http, TEXT)
    headers = {"Idempotency-Key": "once"}
    request = {"files": [entry("a", TEXT)]}
    first = await http.post("/submit-manifest", json=request, headers=headers)
    assert (await http.post("/submit-manifest", json=request, headers=headers)).json() == first.json()
    [pack] = await site.repository.packs()
    await site.repository.remove_packs(None, [pack.name])
    assert (await http.post("/submit-manifest", json=request, headers=headers)).json() == first.json()
    await put(http, TEXT, b"x")
    other = await http.post("/submit-manifest", json={"files": [entry("b", TEXT)]}, headers=headers)
    assert (other.status_code, other.json()["code"]) == (409, "idempotency_conflict")
    assert len(files_of(site, "archives")) == 1


async def test_the_quota_of_a_user_holds(site: Site, ada: Account) -> None:
    settings = make_settings(site.settings.db_path.parent, max_blob_bytes_per_user=5)
    with serving(settings) as url:
        async with client(url, ada) as http:
            await put(http, TEXT)
            answer = await http.put("/blobs", content=records(b"more"), headers=MEDIA)
    assert (answer.status_code, answer.json()["code"]) == (429, "too_many_requests")


async def test_the_quota_holds_whatever_comes_side_by_side(site: Site, ada: Account) -> None:
    settings = make_settings(site.settings.db_path.parent, max_blob_bytes_per_user=5)
    first_is_done = asyncio.Event()

    async def slow() -> AsyncIterator[bytes]:
        body = records(b"more")
        yield body[:10]
        await first_is_done.wait()
        yield body[10:]

    with serving(settings) as url:
        async with client(url, ada) as http:
            second = asyncio.create_task(http.put("/blobs", content=slow(), headers=MEDIA))
            await eventually(lambda: _begun(site))
            await put(http, TEXT)
            first_is_done.set()
            answer = await second
    assert (answer.status_code, answer.json()["code"]) == (429, "too_many_requests")
    assert len(files_of(site, "blobs")) == 1


async def _begun(site: Site) -> bool:
    return (site.settings.data_path / "blobs").exists() and files_of(site, "blobs") != []


async def test_what_json_takes_in_memory_is_bounded_for_each_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ci_server.bodies._HELD_PER_USER", 3000)
    bodies = JsonBodies(make_settings(tmp_path))

    def read(user_id: str) -> AbstractAsyncContextManager[dict[str, Any]]:
        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": b"{}" + b" " * 2000, "more_body": False}

        request = Request({"type": "http", "method": "POST", "headers": []}, receive)
        return bodies.read(request, user_id, 10_000, 10)

    async with read("ada"):
        with pytest.raises(TooManyRequests):
            async with read("ada"):
                pass
        async with read("bob"):
            pass
    async with read("ada"):
        pass  # what was held is free again, of the refused one too


async def test_a_lost_pack_of_listings_is_asked_for_again(site: Site, http: httpx.AsyncClient) -> None:
    root = listing(("a", "f", TEXT))
    await put(http, TEXT, root)
    [name] = files_of(site, "blobs")
    site.stores.archives.blobs.delete(name)
    answer = await http.post("/submit-tree", content=tree_body(root), headers=TREE_MEDIA)
    assert (answer.status_code, answer.json().get("missing")) == (409, [sha256(root).hex()])
    assert await put(http, TEXT, root) == 2
    answer = await http.post("/submit-tree", content=tree_body(root), headers=TREE_MEDIA)
    assert answer.status_code == 200


async def test_a_lost_pack_is_asked_for_again(site: Site, http: httpx.AsyncClient) -> None:
    await put(http, TEXT)
    [name] = files_of(site, "blobs")
    site.stores.archives.blobs.delete(name)
    answer = await http.post("/submit-manifest", json={"files": [entry("a", TEXT)]})
    assert answer.json()["missing"] == [sha256(TEXT).hex()]
    assert await put(http, TEXT) == 1
    assert (await http.post("/submit-manifest", json={"files": [entry("a", TEXT)]})).status_code == 200


async def test_damaged_bytes_are_never_run(site: Site, http: httpx.AsyncClient) -> None:
    noise = os.urandom(1000)
    await http.put("/blobs", content=record(noise, packed=False), headers=MEDIA)
    await http.post("/submit-manifest", json={"files": [entry("a", noise)]})
    job = await only_job(site)
    [name] = files_of(site, "blobs")
    path = site.settings.data_path / "blobs" / name
    path.write_bytes(bytes(1000))
    with pytest.raises(InvalidArchive) as refused:
        read_back(site, job)
    assert refused.value.extra["rule"] == "hash"
    manifest = site.settings.data_path / "archives" / job.archive_ref
    data = manifest.read_bytes()
    manifest.write_bytes(bytes([data[0] ^ 1]) + data[1:])
    with pytest.raises(InvalidArchive) as refused:
        read_back(site, job)
    assert refused.value.extra["rule"] == "damaged"


# -- trees by their root -----------------------------------------------------------------------------------


async def test_a_tree_is_submitted_by_its_root_with_what_is_new(site: Site, http: httpx.AsyncClient) -> None:
    code, test = b"a = 1\n", b"def test_a(): pass\n"
    src = listing(("a.py", "f", code), ("run", "x", code))
    part = listing(("src", "d", src), ("test_a.py", "f", test))
    root = listing(("", "p", part))
    answer = await http.post("/submit-tree", content=tree_body(root, root, part), headers=TREE_MEDIA)
    assert (answer.status_code, answer.json()["missing"]) == (409, [sha256(src).hex()])
    body = tree_body(root, src, code, test, pytest_args=["-q"], fresh=True, priority="low")
    answer = await http.post("/submit-tree", content=body, headers=TREE_MEDIA)
    assert answer.status_code == 200, answer.text
    job = await only_job(site)
    assert (job.options.fresh, job.options.priority) == (True, Priority.LOW)
    assert read_back(site, job) == {
        "src/a.py": (0o644, code),
        "src/run": (0o755, code),
        "test_a.py": (0o644, test),
    }


async def test_a_tree_can_be_followed_at_once(site: Site, http: httpx.AsyncClient) -> None:
    root = listing(("a", "f", b"x"))
    headers = {**TREE_MEDIA, "Accept": "text/event-stream"}
    body = tree_body(root, root, b"x")
    async with stream(http, "/submit-tree", method="POST", content=body, headers=headers) as events:
        first = await anext(events)
        job = await only_job(site)
        assert first.data == {"type": "job_id", "job_id": job.id}
        await site.repository.request_cancel(job.id, None, "operator", utcnow())
        assert [event.type async for event in events][-1] == "complete"


@pytest.mark.parametrize(
    "root",
    [
        b"no json",
        b"{}",
        b"[[]]",
        b'[["a", "f", 1, "00"]]',
        b'[["a/b", "f", 0, "%s"]]' % (b"0" * 64),
        b'[["", "f", 0, "%s"]]' % (b"0" * 64),
        b'[["a", "l", 0, "%s"]]' % (b"0" * 64),
        b'[["a", "f", -1, "%s"]]' % (b"0" * 64),
        b'[["..", "f", 0, "%s"]]' % (b"0" * 64),
        b"[]",
        b"[" * 100_000,
    ],
)
async def test_a_malformed_listing_is_refused(site: Site, http: httpx.AsyncClient, root: bytes) -> None:
    answer = await http.post("/submit-tree", content=tree_body(root, root), headers=TREE_MEDIA)
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_archive"), answer.text
    assert files_of(site, "archives") == []


# -- pruning -----------------------------------------------------------------------------------------------


async def test_unused_contents_go_and_those_of_a_kept_job_stay(site: Site, http: httpx.AsyncClient) -> None:
    await put(http, TEXT)
    await http.post("/submit-manifest", json={"files": [entry("a", TEXT)]})
    await put(http, b"unused")
    age(site)
    soon = utcnow() + timedelta(minutes=30)
    assert await pruner(site, KeepBlobs(timedelta(0))).prune(soon) == []  # both are young
    gone = await pruner(site).prune(utcnow() + timedelta(days=15))
    assert [(one.kind, one.why) for one in gone] == [("blobs", "unused for more than 14 d")]
    assert read_back(site, await only_job(site))["a"] == (0o644, TEXT)
    assert len(files_of(site, "blobs")) == len(await site.repository.packs()) == 1


async def test_contents_beyond_the_size_of_a_user_are_asked_for_again(
    site: Site, http: httpx.AsyncClient
) -> None:
    noise = os.urandom(1000)
    await http.put("/blobs", content=record(noise, packed=False), headers=MEDIA)
    await http.post("/submit-manifest", json={"files": [entry("a", noise)]})
    later = utcnow() + timedelta(hours=2)
    assert await pruner(site, KeepBlobs(size_per_user=999)).prune(later) == []  # its job needs the file
    answer = await http.post("/blobs/missing", json={"sha256": [sha256(noise).hex()]})
    assert answer.json() == {"missing": [sha256(noise).hex()]}
    assert read_back(site, await only_job(site))["a"] == (0o644, noise)


async def test_a_file_without_a_row_goes_when_it_is_old(site: Site, http: httpx.AsyncClient) -> None:
    left = await site.stores.archives.blobs.receive(in_pieces(records(TEXT), 100))
    await put(http, b"kept")
    assert await pruner(site).prune(utcnow()) == []
    age(site)
    assert [(one.name, one.why) for one in await pruner(site).prune(utcnow())] == [
        (left.name, "no row names it")
    ]
    assert len(files_of(site, "blobs")) == 1


class Died(BaseException):
    """As far as this process is concerned."""


def _dies_at(wanted: CrashPoint) -> Callable[[CrashPoint], None]:
    def reached(point: CrashPoint) -> None:
        if point == wanted:
            raise Died

    return reached


async def test_a_pack_whose_row_went_goes_with_the_next_prune(site: Site, http: httpx.AsyncClient) -> None:
    await put(http, TEXT)
    age(site)

    later = utcnow() + timedelta(days=15)
    with told_of_crash_points(_dies_at("after_packs_removed")), pytest.raises(Died):
        await pruner(site).prune(later)
    assert await site.repository.packs() == []
    assert len(files_of(site, "blobs")) == 1
    assert [one.why for one in await pruner(site).prune(later)] == ["no row names it"]
    assert files_of(site, "blobs") == []


async def test_pruning_never_takes_what_a_submission_was_acknowledged_with(
    site: Site, http: httpx.AsyncClient
) -> None:
    """The prune comes at every step of the submission; what it took is said, and sent again."""
    for number in range(12):
        data = b"contents %d" % number
        await put(http, data)
        files = [entry("a", data)]
        names = [pack.name for pack in await site.repository.packs() if not pack.needed]
        answer, removed = await asyncio.gather(
            http.post("/submit-manifest", json={"files": files}), site.repository.remove_packs(None, names)
        )
        for name in removed:
            site.stores.archives.blobs.delete(name)
        if answer.status_code != 200:
            assert answer.json()["missing"] == [sha256(data).hex()]
            assert await put(http, data) == 1
            answer = await http.post("/submit-manifest", json={"files": files})
        job = await site.repository.get_job(answer.json()["job_id"])
        assert job is not None
        assert read_back(site, job) == {"a": (0o644, data)}


async def test_a_backup_has_the_contents_that_unfinished_jobs_need(site: Site, tmp_path: Path) -> None:
    ada = await site.account("ada")
    blobs = site.stores.archives.blobs

    packs = [await blobs.receive(in_pieces(record(data), 100)) for data in (b"needed", b"unused")]
    for pack in packs:
        await site.repository.add_pack(ada.user.id, pack, utcnow())
    manifest = await site.stores.archives.judge_manifest([entry("a", b"needed")])
    places = await site.repository.find_blobs(ada.user.id, manifest.hashes())
    archive = await site.stores.archives.save_manifest(manifest, places)
    job = Job(new_id(), ada.user.id, utcnow(), archive.ref)
    await site.repository.create_job(job, packs=[packs[0].name])
    made = back_up(site.settings, tmp_path / "backup")
    assert (made.archives, made.packs) == ((archive.ref,), (packs[0].name,))
    elsewhere = make_settings(tmp_path / "elsewhere")
    elsewhere.db_path.parent.mkdir()
    restore(elsewhere, tmp_path / "backup")
    with open_stores(elsewhere).archives.open(archive.ref) as opened:
        assert opened.read("a", 100) == b"needed"


# -- much of it --------------------------------------------------------------------------------------------


async def test_as_many_files_as_a_large_project_has(site: Site, http: httpx.AsyncClient) -> None:
    contents = {f"src/package_{n // 100}/module_{n}.py": b"x = %d\n" % n for n in range(FILES)}
    hashes = [sha256(data).hex() for data in contents.values()]
    http.timeout = httpx.Timeout(120)
    assert len((await http.post("/blobs/missing", json={"sha256": hashes})).json()["missing"]) == FILES
    values = list(contents.values())
    for start in range(0, FILES, FILES // 5):
        assert await put(http, *values[start : start + FILES // 5]) == FILES // 5
    assert (await http.post("/blobs/missing", json={"sha256": hashes})).json()["missing"] == []
    files = manifest_of({**contents, "new.py": b"new"})
    answer = await http.post("/submit-manifest", json={"files": files})
    assert answer.json()["missing"] == [sha256(b"new").hex()]
    assert await put(http, b"new") == 1
    assert (await http.post("/submit-manifest", json={"files": files})).status_code == 200
    job = await only_job(site)
    with site.stores.archives.open(job.archive_ref) as archive:
        assert len(archive.entries) == FILES + 1
        assert archive.read("src/package_7/module_777.py", 100) == b"x = 777\n"
    assert len(files_of(site, "blobs")) == 6


def test_an_error_names_no_more_hashes_than_an_answer_holds() -> None:
    error = MissingBlobs.of([n.to_bytes(32) for n in range(20_000)])
    assert (len(error.extra["missing"]), error.extra["missing_count"]) == (10_000, 20_000)

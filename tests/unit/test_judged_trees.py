"""What was learnt of a tree helps with the next one, and is believed for nobody else, and no longer than it holds."""

from collections.abc import AsyncIterator, Collection, Mapping
from pathlib import Path

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ci_client.tree import build_tree
from ci_common.blobs import BlobPlace
from ci_common.errors import InvalidArchive, MissingBlobs
from ci_persistence.archive_rules import ArchiveLimits
from ci_persistence.archive_store import FileArchiveStore
from tests.support.blobs import MEDIA, TREE_MEDIA, listing, records, sha256, tree_body
from tests.support.server import Site, client

LIMITS = ArchiveLimits(50, 200, 100_000)
ONE, TWO, THREE = b"1", b"22", b"333"
SRC = listing(("one.py", "f", ONE), ("two.py", "x", TWO))
DOCS = listing(("three", "f", THREE))
ROOT = listing(("src", "d", SRC), ("docs", "d", DOCS))
EDITED_DOCS = listing(("three", "f", ONE))
EDITED = listing(("src", "d", SRC), ("docs", "d", EDITED_DOCS))


class Shelf:
    """Contents in a store, of one who has all of them, and what was asked for."""

    def __init__(self, store: FileArchiveStore) -> None:
        self.store = store
        self.places: dict[bytes, BlobPlace] = {}
        self.asked: set[bytes] = set()

    async def put(self, *contents: bytes) -> None:
        pack = await self.store.blobs.receive(_body(records(*contents)))
        self.places |= {one.sha256: BlobPlace(pack.name, *one[1:]) for one in pack.blobs}

    async def find(self, hashes: Collection[bytes]) -> Mapping[bytes, BlobPlace]:
        self.asked |= set(hashes)
        return {one: self.places[one] for one in hashes if one in self.places}

    async def files(self, root: bytes, owner: str, forgettings: int | None) -> dict[str, tuple[int, bytes]]:
        """Return the files of a tree as its archive has them."""
        self.asked.clear()
        tree = await self.store.judge_tree(sha256(root), self.find, owner, forgettings)
        archive = await self.store.save_tree(tree)
        found: dict[str, tuple[int, bytes]] = {}
        with self.store.open(archive.ref) as opened:
            assert [entry.path for entry in opened.entries] == sorted(entry.path for entry in opened.entries)
            for entry in opened.entries:
                with opened.open(entry) as reader:
                    found[entry.path] = entry.mode, reader.read()
        return found


async def _body(data: bytes) -> AsyncIterator[bytes]:
    yield data


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return Shelf(FileArchiveStore(tmp_path / "archives", LIMITS))


async def test_of_the_next_tree_only_what_changed_is_looked_up(shelf: Shelf) -> None:
    await shelf.put(ONE, TWO, THREE, SRC, DOCS, ROOT)
    before = await shelf.files(ROOT, "ada", 0)
    await shelf.put(EDITED_DOCS, EDITED)
    after = await shelf.files(EDITED, "ada", 0)
    assert shelf.asked == {sha256(one) for one in (EDITED, EDITED_DOCS, ONE)}
    assert after == {**before, "docs/three": (0o644, ONE)}
    assert await shelf.files(ROOT, "ada", 0) == before
    assert shelf.asked == set()


@pytest.mark.parametrize(("owner", "forgettings"), [("bob", 0), ("ada", 1), ("ada", None)])
async def test_what_was_learnt_of_others_or_before_something_was_forgotten_is_not_believed(
    shelf: Shelf, owner: str, forgettings: int | None
) -> None:
    await shelf.put(ONE, TWO, THREE, SRC, DOCS, ROOT)
    await shelf.files(ROOT, "ada", 0)
    del shelf.places[sha256(TWO)]
    with pytest.raises(MissingBlobs) as refused:
        await shelf.files(ROOT, owner, forgettings)
    assert refused.value.extra["missing"] == [sha256(TWO).hex()]


@pytest.mark.parametrize(
    ("entries", "size", "rule"), [(3, 1, "too_many_entries"), (50, 40_000, "unpacked_size")]
)
async def test_what_is_known_counts(tmp_path: Path, entries: int, size: int, rule: str) -> None:
    shelf = Shelf(FileArchiveStore(tmp_path / "archives", ArchiveLimits(entries, 200_000, 100_000)))
    data = bytes(size)
    below = listing(("a", "f", data))
    root, more = (listing(*((name, "d", below) for name in names)) for names in ("a", "abc"))
    for one in (data, below, root, more):
        await shelf.put(one)
    await shelf.files(root, "ada", 0)
    with pytest.raises(InvalidArchive) as refused:
        await shelf.files(more, "ada", 0)
    assert refused.value.extra["rule"] == rule


async def test_a_tree_judged_before_is_refused_when_limits_were_lowered(tmp_path: Path) -> None:
    shelf = Shelf(FileArchiveStore(tmp_path / "archives", LIMITS))
    await shelf.put(ONE, TWO, SRC)
    await shelf.files(SRC, "ada", 0)
    shelf.store = FileArchiveStore(tmp_path / "archives", ArchiveLimits(1, 200, 100_000))
    with pytest.raises(InvalidArchive) as refused:
        await shelf.files(SRC, "ada", 0)
    assert refused.value.extra["rule"] == "too_many_entries"


async def test_a_new_name_is_compared_with_those_of_parts_that_are_known(shelf: Shelf) -> None:
    part, other, bad = (listing((name, "f", ONE)) for name in ("a", "b", "A"))
    good, worse = (listing(("", "p", part), ("", "p", one)) for one in (other, bad))
    await shelf.put(ONE, part, other, bad, good, worse)
    assert set(await shelf.files(good, "ada", 0)) == {"a", "b"}
    with pytest.raises(InvalidArchive) as refused:
        await shelf.files(worse, "ada", 0)
    assert refused.value.extra["rule"] == "collision"


NAMES = st.text("aAb.é\n", min_size=1, max_size=2)
PATHS = st.lists(NAMES, min_size=1, max_size=3).map("/".join)
TREES = st.lists(
    st.dictionaries(PATHS, st.sampled_from([ONE, TWO, THREE]), min_size=1, max_size=6), max_size=4
)


@settings(deadline=None, max_examples=20)
@given(TREES)
async def test_what_is_known_changes_neither_what_is_accepted_nor_what_it_is(
    tmp_path_factory: pytest.TempPathFactory, trees: list[dict[str, bytes]]
) -> None:
    shelf = Shelf(FileArchiveStore(tmp_path_factory.mktemp("store") / "archives", LIMITS))
    await shelf.put(ONE, TWO, THREE)
    for files in trees:
        tree = build_tree((path, False, len(data), sha256(data)) for path, data in files.items())
        await shelf.put(*tree.listings.values())
        root = tree.listings[tree.root]
        manifest = [
            {"path": p, "mode": 0o644, "size": len(d), "sha256": sha256(d).hex()} for p, d in files.items()
        ]
        try:
            await shelf.store.judge_manifest(manifest)
        except InvalidArchive:
            with pytest.raises(InvalidArchive):
                await shelf.files(root, "ada", 0)
        else:
            assert await shelf.files(root, "ada", 0) == {path: (0o644, data) for path, data in files.items()}


# -- the whole way -----------------------------------------------------------------------------------------


async def submit(http: httpx.AsyncClient, root: bytes, *contents: bytes) -> httpx.Response:
    return await http.post("/submit-tree", content=tree_body(root, *contents), headers=TREE_MEDIA)


async def test_contents_pruned_since_are_missing_and_a_kept_pack_is_not_lost(
    site: Site, http: httpx.AsyncClient
) -> None:
    await http.put("/blobs", content=records(TWO), headers=MEDIA)
    [pack] = await site.repository.packs()
    assert (await submit(http, SRC, ONE, SRC)).status_code == 200
    assert (await submit(http, SRC)).status_code == 200
    # The jobs keep the pack, and yet what lies in it counts as missing.
    assert await site.repository.remove_packs(None, [pack.name]) == []
    answer = await submit(http, SRC)
    assert (answer.status_code, answer.json()["missing"]) == (409, [sha256(TWO).hex()])
    assert (await submit(http, SRC, TWO)).status_code == 200


async def test_a_pack_that_vanished_is_asked_for_again(site: Site, http: httpx.AsyncClient) -> None:
    await submit(http, SRC, ONE, TWO, SRC)
    [pack] = await site.repository.packs()
    site.stores.archives.blobs.delete(pack.name)
    assert (await submit(http, SRC)).json()["missing"] == [sha256(SRC).hex()]


async def test_the_judged_tree_of_another_user_helps_nobody(site: Site, http: httpx.AsyncClient) -> None:
    await submit(http, SRC, ONE, TWO, SRC)
    async with client(str(http.base_url), await site.account("bob")) as bobs:
        assert (await submit(bobs, SRC)).json()["missing"] == [sha256(SRC).hex()]
        answer = await submit(bobs, SRC, SRC, ONE)
        assert answer.json()["missing"] == [sha256(TWO).hex()]

"""A project as a tree: what goes up of it, in which requests, and that the server ends with exactly these files."""

import json
import random
from collections.abc import Callable, Collection, Iterator
from hashlib import sha256
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ci_client.blobs import Blob, pack
from ci_client.client import CIClient
from ci_client.retry import RetryPolicy
from ci_client.tree import Tree, build_tree
from ci_client.tree_upload import Told, TreeUpload
from ci_common.blobs import Encoding
from ci_common.errors import CIError, MissingBlobs, NotAProject, TooManyRequests
from ci_common.job_terms import JobOptions
from ci_persistence.archive_rules import ArchiveLimits
from ci_persistence.record_stream import RecordStream
from tests.support.blob_shelf import BlobShelf
from tests.support.http_peer import JOB_ID, KEY, Answer, Cut, HangUp, HttpPeer, Received

QUICK = RetryPolicy(first_delay=0.001, max_delay=0.01, first_contact=0.05, patience=20.0)
MEGABYTE = 1 << 20


@pytest.fixture
def peer() -> Iterator[HttpPeer]:
    with HttpPeer() as peer:
        yield peer


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "pkg" / "deep").mkdir(parents=True)
    (tmp_path / "test_a.py").write_text("def test_a(): pass\n")
    (tmp_path / "pkg" / "run.sh").write_text("#!/bin/sh\n")
    (tmp_path / "pkg" / "run.sh").chmod(0o755)
    (tmp_path / "pkg" / "deep" / "ünï.txt").write_text("x" * 500)
    return tmp_path


def send(peer: HttpPeer, root: Path, *, compress: bool = False, told: Told | None = None) -> list[Received]:
    """Submit a project and return the requests it took."""
    before = len(peer.received)
    with (
        TreeUpload(root, JobOptions(("-x",)), compress=compress, told=told) as upload,
        CIClient(peer.url, KEY, retry=QUICK) as client,
    ):
        assert client.submit_upload(upload) == JOB_ID
    return peer.received[before:]


def arrived(peer: HttpPeer) -> dict[str, tuple[str, bool]]:
    """Return the files of the last job: hashes, for nobody wants to see megabytes compared."""
    files = peer.shelf.files(peer.requests("POST", "/submit-tree")[-1].submission.root)
    return {path: (sha256(data).hexdigest(), executable) for path, (data, executable) in files.items()}


def there(root: Path) -> dict[str, tuple[str, bool]]:
    """Return the files of a directory."""
    return {
        path.relative_to(root).as_posix(): (hash_of(path), bool(path.stat().st_mode & 0o100))
        for path in root.rglob("*")
        if path.is_file()
    }


def hash_of(path: Path) -> str:
    return sha256(path.read_bytes()).hexdigest()


def paths(requests: list[Received]) -> list[str]:
    return [request.path for request in requests]


def test_a_small_project_is_one_request(peer: HttpPeer, project: Path) -> None:
    (request,) = send(peer, project)
    assert request.submission.asked["pytest_args"] == ["-x"]
    assert arrived(peer) == there(project)


def test_an_unchanged_project_is_sent_by_its_hash(peer: HttpPeer, project: Path) -> None:
    send(peer, project)
    (again,) = send(peer, project)
    assert again.submission.records == b""
    assert arrived(peer) == there(project)


def test_an_edit_sends_the_file_and_the_listings_above_it(peer: HttpPeer, project: Path) -> None:
    for number in range(300):
        (project / "pkg" / f"module_{number}.py").write_text(f"x = {number}\n")
    send(peer, project)
    (project / "pkg" / "deep" / "ünï.txt").write_text("edited")
    (again,) = send(peer, project)
    received = BlobShelf()
    assert received.put(again.submission.records) == 4, "the file, deep/, pkg/ and the root"
    assert arrived(peer) == there(project)


def test_another_server_is_not_taken_for_the_one_that_knows(peer: HttpPeer, project: Path) -> None:
    send(peer, project)
    with HttpPeer() as other:
        send(other, project)
        assert arrived(other) == there(project)
    (back,) = send(peer, project)
    assert back.submission.records, "the index tells of the last server only"


@pytest.fixture
def large(project: Path) -> Path:
    """A project of some megabytes: text that packs well, noise that does not, and a file that is read in pieces."""
    chance = random.Random(1)
    for number in range(40):
        (project / f"text_{number}.txt").write_text(f"{number} and so on\n" * 8_000)
    (project / "noise.bin").write_bytes(chance.randbytes(3 * MEGABYTE))
    (project / "big.bin").write_bytes(chance.randbytes(MEGABYTE) * 9)
    (project / "big.txt").write_bytes(b"all work and no play\n" * 300_000)
    return project


@pytest.mark.parametrize("compress", [True, False])
def test_a_large_project_goes_ahead_of_its_submission(peer: HttpPeer, large: Path, compress: bool) -> None:
    requests = send(peer, large, compress=compress)
    assert paths(requests)[-1] == "/submit-tree"
    assert {"/blobs/missing", "/blobs"} == set(paths(requests)[:-1])
    assert arrived(peer) == there(large)
    packed = {name: peer.shelf.encodings[digest] for name, (digest, _) in there(large).items()}
    assert packed["noise.bin"] == packed["big.bin"] == 0
    assert packed["text_1.txt"] == packed["big.txt"] == int(compress)
    assert all(len(request.body) < 10 * MEGABYTE for request in requests)


def test_only_what_is_missing_of_a_large_project_goes_up(peer: HttpPeer, large: Path) -> None:
    data = (large / "noise.bin").read_bytes()
    peer.shelf.blobs[sha256(data).hexdigest()] = data
    requests = send(peer, large)
    whole = sum(path.stat().st_size for path in large.rglob("*") if path.is_file())
    assert sum(len(request.body) for request in requests) < whole - len(data) + MEGABYTE
    assert arrived(peer) == there(large)


def test_the_progress_of_an_upload_ends_at_its_whole(peer: HttpPeer, large: Path) -> None:
    seen: list[tuple[int, int]] = []
    send(peer, large, told=Told(progress=lambda sent, total: seen.append((sent, total))))
    assert all(sent <= total for sent, total in seen)
    assert seen[-1][0] == seen[-1][1]


@pytest.mark.parametrize("seed", range(3))
def test_broken_connections_make_one_job_of_the_whole_tree(peer: HttpPeer, large: Path, seed: int) -> None:
    chance = random.Random(seed)
    peer.script.faults.extend(chance.choice([HangUp(), Cut(0), Answer(502)]) for _ in range(6))
    send(peer, large)
    assert arrived(peer) == there(large)
    assert len(peer.jobs) == 1


def forget_everything(shelf: BlobShelf) -> None:
    shelf.blobs.clear()


def forget_a_file(shelf: BlobShelf) -> None:
    del shelf.blobs[sha256(b"def test_a(): pass\n").hexdigest()]


def forget_listings_and_a_file_below(shelf: BlobShelf) -> None:
    for digest, data in list(shelf.blobs.items()):
        if data.startswith((b"[[", b"x" * 500)):
            del shelf.blobs[digest]


@pytest.mark.parametrize("forget", [forget_everything, forget_a_file, forget_listings_and_a_file_below])
def test_what_a_server_has_pruned_is_sent_again(
    peer: HttpPeer, project: Path, forget: Callable[[BlobShelf], None]
) -> None:
    send(peer, project)
    forget(peer.shelf)
    (project / "test_a.py").touch()
    assert paths(send(peer, project)) == ["/submit-tree"] * 2
    assert arrived(peer) == there(project)


def test_a_large_project_that_was_pruned_goes_up_again(peer: HttpPeer, large: Path) -> None:
    send(peer, large)
    peer.shelf.blobs.clear()
    send(peer, large)
    assert arrived(peer) == there(large)


def test_a_server_that_always_lacks_something_is_given_up(peer: HttpPeer, project: Path) -> None:
    send(peer, project)
    root = peer.requests("POST", "/submit-tree")[-1].submission.root
    document = {"code": "missing_blobs", "detail": "It is not here.", "missing": [root]}
    peer.script.faults.extend([Answer(409, json.dumps(document).encode())] * 50)
    with pytest.raises(MissingBlobs, match="not here"):
        send(peer, project)
    assert len(peer.requests("POST", "/submit-tree")) == 6


@pytest.mark.parametrize("missing", [None, "no list", ["no hash"], [7]])
def test_a_server_that_does_not_say_what_it_lacks_breaks_the_protocol(
    peer: HttpPeer, project: Path, missing: object
) -> None:
    document = {"code": "missing_blobs", "detail": "It is not here.", "missing": missing}
    peer.script.faults.append(Answer(409, json.dumps(document).encode()))
    with pytest.raises(CIError, match="does not say which"):
        send(peer, project)


@pytest.mark.parametrize("size", [0, 3 * MEGABYTE])
def test_a_server_without_trees_gets_a_zip_and_nobody_hears_of_it(
    peer: HttpPeer, project: Path, size: int
) -> None:
    (project / "data.bin").write_bytes(bytes(size))
    peer.script.trees = False
    warnings: list[str] = []
    details: list[str] = []
    requests = send(peer, project, told=Told(warnings.append, details.append))
    assert paths(requests)[-1] == "/submit-async"
    assert requests[-1].form["pytest_args"] == [b"-x"]
    assert requests[-1].form["file"][0].startswith(b"PK")
    assert warnings == []
    assert any("zip" in line for line in details)


def test_a_file_that_changes_while_it_goes_up_arrives_as_it_is_then(peer: HttpPeer, large: Path) -> None:
    left = [b"first", b"second"]
    big = large / "big.bin"

    def edit(asked: Collection[str]) -> None:
        if left and hash_of(big) in asked:  # a later edit might find it sent
            big.write_bytes(left.pop() * 2 * MEGABYTE)

    peer.script.on_question = edit
    send(peer, large)
    assert arrived(peer) == there(large)


def test_a_file_that_never_stands_still_goes_in_a_zip(peer: HttpPeer, large: Path) -> None:
    chance = random.Random(2)

    def edit(_: Collection[str]) -> None:
        other = large.with_name(
            "other.bin"
        )  # whole at once: half of it would be small enough to go from memory
        other.write_bytes(chance.randbytes(64) * 100_000)
        other.replace(large / "big.bin")

    peer.script.on_question = edit
    assert paths(send(peer, large))[-1] == "/submit-async"


def test_a_file_that_vanishes_while_it_goes_up_is_left_out(peer: HttpPeer, large: Path) -> None:
    peer.script.on_question = lambda _: (large / "big.bin").unlink(missing_ok=True)
    send(peer, large)
    assert arrived(peer) == there(large)


def test_what_is_no_project_is_not_sent(peer: HttpPeer, tmp_path: Path) -> None:
    with pytest.raises(NotAProject):
        send(peer, tmp_path)
    assert not peer.requests("POST", "/submit-tree")


def test_a_failed_submission_keeps_what_was_learnt_of_the_files_but_not_of_the_server(
    peer: HttpPeer, project: Path
) -> None:
    peer.script.faults.append(Answer.problem(429, "too_many_requests", "Full."))
    with pytest.raises(TooManyRequests):
        send(peer, project)
    (request,) = send(peer, project)
    assert request.submission.records


# -- trees -----------------------------------------------------------------------------------------------

NAMES = st.text("ab.-ü", min_size=1, max_size=3).filter(lambda name: name not in (".", ".."))
PATHS = st.lists(NAMES, min_size=1, max_size=4).map("/".join)


def tree_of(files: dict[str, bytes]) -> Tree:
    return build_tree((path, "a" in path, len(data), sha256(data).digest()) for path, data in files.items())


def shelf_of(tree: Tree, files: dict[str, bytes]) -> BlobShelf:
    blobs = [*tree.listings.values(), *files.values()]
    return BlobShelf({sha256(data).hexdigest(): data for data in blobs})


@given(st.dictionaries(PATHS, st.binary(max_size=3), min_size=1))
def test_a_tree_says_exactly_which_files_it_has(drawn: dict[str, bytes]) -> None:
    # A path that is another one's directory is none that a file system could have.
    files = {
        path: data for path, data in drawn.items() if not any(one.startswith(f"{path}/") for one in drawn)
    }
    tree = tree_of(files)
    found = shelf_of(tree, files).files(tree.root.hex())
    assert found == {path: (data, "a" in path) for path, data in files.items()}
    assert tree_of(dict(reversed(files.items()))) == tree, "whatever order they come in"


def test_an_edit_in_a_directory_of_many_files_changes_little() -> None:
    files = {f"data/{number:05}.json": b"%d" % number for number in range(50_000)}
    before = tree_of(files)
    files["data/25000.json"] = b"edited"
    files["data/25000b.json"] = b"new"
    del files["data/00001.json"]
    after = tree_of(files)
    assert len(shelf_of(after, files).files(after.root.hex())) == 50_000
    new = [after.listings[digest] for digest in after.listings.keys() - before.listings.keys()]
    assert sum(map(len, new)) < 200_000
    assert all(len(listing) < MEGABYTE for listing in after.listings.values())


def test_a_file_that_packs_like_a_bomb_goes_as_it_is(tmp_path: Path) -> None:
    data = bytes(12 * MEGABYTE)
    file = tmp_path / "zeros"
    file.write_bytes(data)
    stream = RecordStream(lambda _: None, ArchiveLimits(10, 200, len(data)))
    for chunk in pack([Blob(sha256(data).digest(), len(data), "zeros", str(file))], compress=True).chunks:
        stream.feed(chunk)
    stream.finish()
    assert [(blob.size, blob.encoding) for blob in stream.blobs] == [(len(data), Encoding.IDENTITY)]

"""Uploads as files: `archives/<ref>`, on disk for good and judged before anybody learns their reference.

A reference says what the upload came as: a zip, or the manifest of a tree whose contents are in the blob store.
"""

import asyncio
import contextlib
import hashlib
import os
import re
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

from ci_common.blobs import BlobPlace, LaidTree, Manifest
from ci_common.errors import ArchiveTooLarge, InvalidArchive, MissingBlobs
from ci_common.keyed_locks import KeyedLocks
from ci_common.stores import Archive, ArchiveStore, FindBlobs, StoredArchive, StoredItem
from ci_persistence.archive_rules import ArchiveLimits
from ci_persistence.archive_validator import open_archive
from ci_persistence.blob_store import FileBlobStore
from ci_persistence.judged_trees import JudgedTrees, Known
from ci_persistence.log_store import disk_full_as_storage_full
from ci_persistence.manifest_archive import manifest_bytes, read_blob, read_manifest, sealed
from ci_persistence.manifest_rules import check_sizes, judge, read_files
from ci_persistence.ownership import FILE_MODE, adopt_owner, make_shared_directory
from ci_persistence.settled import settled
from ci_persistence.shelf import FolderShelf, Shelve
from ci_persistence.tree_listings import Expansion
from ci_persistence.zip_format import refuse

ZIP, MANIFEST = ".zip", ".manifest"
_REF = re.compile(r"[0-9a-f]{32}\.(zip|manifest)")
_UNFINISHED = ".part"  # behind the reference that the upload will have
DIRECTORY_MODE = 0o2770  # the daemons may run as different users of one group; the world sees nothing
_BATCH = 1024 * 1024  # bytes that go to a thread at once
# The costliest archive takes seconds of CPU and 150 MB: threads must be left for others, and one honest big
# archive must not hold up all submissions.
_JUDGED_AT_ONCE = 2


class FileArchiveStore(ArchiveStore):
    """Archives in one directory, which is made when it is needed, and so is the one that holds it.

    Contents that came apart are in `blobs` beside it.
    """

    def __init__(self, root: Path, limits: ArchiveLimits, shelve: Shelve = FolderShelf) -> None:
        self._root = root
        self._limits = limits
        self._shelf = shelve(root)
        self._blobs = FileBlobStore(root.with_name("blobs"), limits, shelve)
        self._judged = JudgedTrees()
        self._judging = asyncio.Semaphore(_JUDGED_AT_ONCE)
        self._turns = KeyedLocks()  # of owners whose uploads are judged or wait

    @property
    def blobs(self) -> FileBlobStore:
        return self._blobs

    @asynccontextmanager
    async def _turn(self, owner: str) -> AsyncGenerator[None, None]:
        """Something of that owner's may be judged, and nothing else of his meanwhile."""
        async with self._turns.of(owner), self._judging:
            yield

    async def judge_manifest(self, files: Sequence[Any], owner: str = "") -> Manifest:
        async with self._turn(owner):
            return await settled(
                asyncio.to_thread(lambda: judge(read_files(files, self._limits), self._limits))
            )

    async def judge_tree(
        self, root: bytes, find: FindBlobs, owner: str = "", forgettings: int | None = None
    ) -> LaidTree:
        async with self._turn(owner):
            known = self._judged.known(owner, forgettings)
            tree = await self._judged_tree(root, find, known)
            if await asyncio.to_thread(self._blobs.absent, tree.packs):  # by human hands
                known = Known(forgettings)  # asks for all of it, and so finds out
                tree = await self._judged_tree(root, find, known)
            self._judged.keep(owner, known)
        return tree

    async def _judged_tree(self, root: bytes, find: FindBlobs, known: Known) -> LaidTree:
        expansion, listings = Expansion(root, self._limits, known.pieces), dict[bytes, BlobPlace]()
        while not expansion.done:
            places = await _found(find, expansion.wanted())
            await settled(asyncio.to_thread(self._descend, expansion, places))
            listings |= places
        await settled(asyncio.to_thread(expansion.judge))
        contents = await _found(find, expansion.hashes())
        return await settled(asyncio.to_thread(known.lay_out, root, expansion, listings, contents))

    def _descend(self, expansion: Expansion, places: Mapping[bytes, BlobPlace]) -> None:
        expansion.allow(sum(place.size for place in places.values()))
        expansion.descend({sha256: self._listing(sha256, place) for sha256, place in places.items()})

    def _listing(self, sha256: bytes, place: BlobPlace) -> bytes:
        try:
            return read_blob(sha256, place, self._blobs.open)
        except InvalidArchive as error:
            if error.extra["rule"] != "gone":
                raise
            raise MissingBlobs.of([sha256]) from error  # a prune came between

    def prepare(self) -> None:
        """The directory exists; what is above those two must exist already."""
        make_shared_directory(self._root.parent, DIRECTORY_MODE)
        make_shared_directory(self._root, DIRECTORY_MODE)

    async def save(
        self, chunks: AsyncIterable[bytes], max_bytes: int, owner: str = "", *, at_once: bool = False
    ) -> StoredArchive:
        ref = f"{uuid.uuid4().hex}{ZIP}"
        unfinished = self._root / (ref + _UNFINISHED)
        upload = _Upload(unfinished, max_bytes)
        try:
            if not at_once:
                await settled(asyncio.to_thread(self._begin, upload))
            rest = await self._receive(upload, chunks)
            async with self._turn(owner):
                await settled(asyncio.to_thread(self._judge, upload, rest))
            await settled(asyncio.to_thread(self._publish, upload, ref))
        except BaseException:
            await settled(asyncio.to_thread(self._discard, unfinished, ref))
            raise
        finally:
            upload.close()
        return StoredArchive(ref, upload.size, upload.sha256())

    async def save_manifest(self, manifest: Manifest, places: Mapping[bytes, BlobPlace]) -> StoredArchive:
        return await self._saved(lambda: _laid_out(manifest, places), manifest.sha256)

    async def save_tree(self, tree: LaidTree) -> StoredArchive:
        return await self._saved(lambda: sealed(tree.manifest), tree.sha256)

    async def _saved(self, content: Callable[[], bytes], sha256: str) -> StoredArchive:
        """The manifest is on disk for good."""
        ref = f"{uuid.uuid4().hex}{MANIFEST}"
        try:
            size = await settled(asyncio.to_thread(self._write_manifest, ref, content))
        except BaseException:
            await settled(asyncio.to_thread(self._discard, self._root / (ref + _UNFINISHED), ref))
            raise
        return StoredArchive(ref, size, sha256)

    def _write_manifest(self, ref: str, content: Callable[[], bytes]) -> int:
        data = content()
        unfinished = self._root / (ref + _UNFINISHED)
        upload = _Upload(unfinished, len(data))
        try:
            self._begin(upload)
            upload.write(data)
            upload.sync()
        finally:
            upload.close()
        self._shelf.publish(unfinished, ref)
        return len(data)

    async def _receive(self, upload: "_Upload", chunks: AsyncIterable[bytes]) -> bytes:
        """The upload is written but for its last bytes, which are returned."""
        batch = bytearray()
        async for chunk in chunks:
            batch += chunk
            if len(batch) >= _BATCH:
                await settled(asyncio.to_thread(self._write, upload, bytes(batch)))
                batch.clear()
        return bytes(batch)

    def _write(self, upload: "_Upload", data: bytes) -> None:
        if not upload.is_open:
            self._begin(upload)
        upload.write(data)

    def _begin(self, upload: "_Upload") -> None:
        self.prepare()  # the server may have started before there was a place for its data
        upload.open()

    def _judge(self, upload: "_Upload", rest: bytes) -> None:
        self._write(upload, rest)
        with open_archive(upload.path, self._limits) as archive:
            archive.verify()

    def _publish(self, upload: "_Upload", ref: str) -> None:
        upload.sync()
        self._shelf.publish(upload.path, ref)

    def _discard(self, unfinished: Path, ref: str) -> None:
        if not unfinished.exists():
            self._shelf.take_back(ref)  # published, but its caller never got to know it
        unfinished.unlink(missing_ok=True)

    def open(self, ref: str) -> AbstractContextManager[Archive]:
        return self._open(ref)

    @contextmanager
    def _open(self, ref: str) -> Generator[Archive]:
        path = self._shelf.find(self._name(ref))
        if path is None:
            raise refuse("gone", "The archive is not in the store any more.")
        if path.suffix == MANIFEST:
            with contextlib.closing(read_manifest(path, self._blobs.open)) as tree:
                yield tree
            return
        with open_archive(path, self._limits) as archive:
            yield archive

    def delete(self, ref: str) -> None:
        self._shelf.remove(self._name(ref))

    def trim(self) -> int:
        return self._shelf.trim() + self._blobs.trim()

    def check(self) -> None:
        self._shelf.check()

    def items(self) -> Iterator[StoredItem]:
        yield from (item for item in self._shelf.items() if _REF.fullmatch(item.name))

    def remove_unfinished(self, older_than_seconds: float) -> list[str]:
        now = time.time()
        removed: list[str] = []
        for path in sorted(self._root.glob(f"*{_UNFINISHED}")):
            age = _age(path, now)
            if age is not None and age > older_than_seconds and _REF.fullmatch(path.stem):
                path.unlink(missing_ok=True)
                removed.append(path.name)
        return removed

    def _name(self, ref: str) -> str:
        if not _REF.fullmatch(ref):
            raise refuse("gone", "The archive's reference is not one of this store.")
        return ref


async def _found(find: FindBlobs, hashes: set[bytes]) -> Mapping[bytes, BlobPlace]:
    """Return where all of these lie; raises MissingBlobs."""
    places: Mapping[bytes, BlobPlace] = await find(hashes) if hashes else {}
    if missing := hashes - places.keys():
        raise MissingBlobs.of(missing)
    return places


def _laid_out(manifest: Manifest, places: Mapping[bytes, BlobPlace]) -> bytes:
    check_sizes(manifest.files, places)
    return manifest_bytes(manifest, places)


class _Upload:
    """A file that grows under a limit while its hash is taken; used from threads."""

    def __init__(self, path: Path, max_bytes: int) -> None:
        self.path = path
        self._max_bytes = max_bytes
        self._hash = hashlib.sha256()
        self.size = 0
        self._descriptor = -1

    def open(self) -> None:
        with disk_full_as_storage_full(self.path):
            self._descriptor = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, FILE_MODE)
            os.fchmod(self._descriptor, FILE_MODE)  # whatever the umask
            adopt_owner(self.path)

    def write(self, data: bytes) -> None:
        self.size += len(data)
        if self.size > self._max_bytes:
            raise ArchiveTooLarge(
                f"The archive is larger than {self._max_bytes} bytes, the limit of this server.",
                limit=self._max_bytes,
            )
        view = memoryview(data)
        self._hash.update(view)
        with disk_full_as_storage_full(self.path):
            while view:
                view = view[os.write(self._descriptor, view) :]

    def sync(self) -> None:
        """What was written is on disk for good."""
        with disk_full_as_storage_full(self.path):
            os.fsync(self._descriptor)

    @property
    def is_open(self) -> bool:
        return self._descriptor >= 0

    def close(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def sha256(self) -> str:
        return self._hash.hexdigest()


def _age(path: Path, now: float) -> float | None:
    try:
        return max(0.0, now - path.stat().st_mtime)
    except FileNotFoundError:
        return None

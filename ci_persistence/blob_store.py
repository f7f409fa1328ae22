"""Contents of files that came apart from their trees: `blobs/<name>.pack`, one file for what one request brought.

One file and not one for each blob: the first upload of 50 000 files is two fsyncs, and so is the next one of a
single edit. Rows say what lies where; a file is there for good before its row, and goes after it.
"""

import asyncio
import contextlib
import os
import re
import time
import uuid
from collections.abc import AsyncIterable, Collection, Iterator
from pathlib import Path

from ci_common.blobs import Pack
from ci_common.stores import BlobStore, StoredItem
from ci_persistence.archive_rules import ArchiveLimits
from ci_persistence.log_store import disk_full_as_storage_full
from ci_persistence.ownership import FILE_MODE, adopt_owner, make_shared_directory
from ci_persistence.record_stream import RecordStream
from ci_persistence.settled import settled
from ci_persistence.shelf import FolderShelf, Shelf, Shelve
from ci_persistence.zip_format import refuse

DIRECTORY_MODE = 0o2770  # as that of the archives
PACK_NAME = re.compile(r"[0-9a-f]{32}\.pack")
_UNFINISHED = ".part"
_BATCH = 1024 * 1024  # bytes of a body that go to a thread at once
_UNPACKED_AT_ONCE = 2  # batches, each of which may inflate to 200 times its size: threads are left for others


class FileBlobStore(BlobStore):
    """Packs in one directory, which is made when it is needed, and so is the one that holds it."""

    def __init__(self, root: Path, limits: ArchiveLimits, shelve: Shelve = FolderShelf) -> None:
        self._root = root
        self._limits = limits
        self._shelf = shelve(root)
        self._unpacking = asyncio.Semaphore(_UNPACKED_AT_ONCE)

    def prepare(self) -> None:
        """The directory exists; what is above those two must exist already."""
        make_shared_directory(self._root.parent, DIRECTORY_MODE)
        make_shared_directory(self._root, DIRECTORY_MODE)

    async def receive(self, chunks: AsyncIterable[bytes]) -> Pack:
        name = f"{uuid.uuid4().hex}.pack"
        pack = _NewPack(self._shelf, self._root / name, self._limits)
        try:
            try:
                await settled(asyncio.to_thread(self._begin, pack))
                await self._fill(pack, chunks)
                await settled(asyncio.to_thread(pack.publish))
            finally:
                await settled(asyncio.to_thread(pack.close))
        except BaseException:
            await settled(asyncio.to_thread(pack.discard))
            raise
        return Pack(name, pack.records.size, pack.records.blobs)

    def _begin(self, pack: "_NewPack") -> None:
        self.prepare()  # the server may have started before there was a place for its data
        pack.open()

    async def _fill(self, pack: "_NewPack", chunks: AsyncIterable[bytes]) -> None:
        batch = bytearray()
        async for chunk in chunks:
            batch += chunk
            if len(batch) >= _BATCH:
                await self._feed(pack, bytes(batch))
                batch.clear()
        await self._feed(pack, bytes(batch))

    async def _feed(self, pack: "_NewPack", batch: bytes) -> None:
        async with self._unpacking:
            await settled(asyncio.to_thread(pack.feed, batch))

    def open(self, name: str) -> int:
        """Return a descriptor of the pack, which the caller closes; raises InvalidArchive when it is gone."""
        path = self._shelf.find(self._name(name))
        with contextlib.suppress(FileNotFoundError):
            if path is not None:
                return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        raise refuse("gone", "A pack with contents of the archive is not in the store any more.")

    def absent(self, names: Collection[str]) -> set[str]:
        return {name for name in names if not self._shelf.has(self._name(name))}

    def delete(self, name: str) -> None:
        self._shelf.remove(self._name(name))

    def trim(self) -> int:
        """Copies take no more room than they may; returns how many went."""
        return self._shelf.trim()

    def items(self) -> Iterator[StoredItem]:
        yield from (item for item in self._shelf.items() if PACK_NAME.fullmatch(item.name))

    def remove_unfinished(self, older_than_seconds: float) -> list[str]:
        now = time.time()
        removed: list[str] = []
        for path in sorted(self._root.glob(f"*.pack{_UNFINISHED}")):
            with contextlib.suppress(FileNotFoundError):
                if now - path.stat().st_mtime > older_than_seconds and PACK_NAME.fullmatch(path.stem):
                    path.unlink()
                    removed.append(path.name)
        return removed

    def _name(self, name: str) -> str:
        if not PACK_NAME.fullmatch(name):
            raise refuse("gone", "The pack's name is not one of this store.")
        return name


class _NewPack:
    """A pack that grows out of a body; used from threads, one at a time."""

    def __init__(self, shelf: Shelf, path: Path, limits: ArchiveLimits) -> None:
        self._shelf = shelf
        self._path = path
        self._unfinished = path.with_name(path.name + _UNFINISHED)
        self._gathered: list[memoryview] = []
        self._descriptor = -1
        self.records = RecordStream(self._gathered.append, limits)

    def open(self) -> None:
        with disk_full_as_storage_full(self._unfinished):
            self._descriptor = os.open(self._unfinished, os.O_CREAT | os.O_EXCL | os.O_WRONLY, FILE_MODE)
            os.fchmod(self._descriptor, FILE_MODE)  # whatever the umask
            adopt_owner(self._unfinished)

    def feed(self, batch: bytes) -> None:
        """What the bytes bring is verified as far as they go, and written at once."""
        self.records.feed(batch)
        view = memoryview(b"".join(self._gathered))
        self._gathered.clear()
        with disk_full_as_storage_full(self._path):
            while view:
                view = view[os.write(self._descriptor, view) :]

    def publish(self) -> None:
        """The pack has its name and is on disk for good; one without contents is not there at all."""
        self.records.finish()
        if not self.records.size and not self.records.blobs:
            self.discard()
            return
        with disk_full_as_storage_full(self._path):
            os.fsync(self._descriptor)
        self._shelf.publish(self._unfinished, self._path.name)

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)

    def discard(self) -> None:
        if not self._unfinished.exists():
            self._shelf.take_back(self._path.name)  # published, but its caller never got to know it
        self._unfinished.unlink(missing_ok=True)

"""The seams to bytes on disk: the log store, the archive store and the hub that wakes who waits for either.

Abstract here so that neither the core of the controller nor the server imports an implementation.
"""

from abc import ABC, abstractmethod
from collections.abc import (
    AsyncIterable,
    Awaitable,
    Callable,
    Collection,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, BinaryIO

from ci_common.blobs import BlobPlace, LaidTree, Manifest, Pack
from ci_common.models import LogSeal


class LogWriter(ABC):
    """The only writer of one attempt's log and events; used from the pump's thread, so synchronous."""

    @abstractmethod
    def write(self, offset: int, data: bytes) -> None:
        """`data` stands at `offset` of the log; writing equal bytes again is harmless."""

    @abstractmethod
    def read(self, offset: int, length: int) -> bytes:
        """Return what stands there already: fewer bytes than asked at the end."""

    @abstractmethod
    def size(self) -> int:
        """Return how many bytes of log stand."""

    @abstractmethod
    def write_events(self, lines: Iterable[bytes]) -> None:
        """The `.events` file holds exactly these lines (each ends in a newline), replaced as a whole."""

    @abstractmethod
    def append_event(self, line: bytes) -> None:
        """One more line stands in `.events`."""

    @abstractmethod
    def seal(self, *, truncated: bool = False) -> LogSeal:
        """The log is on disk for good (fsync of files and directories); returns its size and SHA-256."""

    @abstractmethod
    def close(self) -> None:
        """The files are closed; sealing is a separate decision."""


class LogReader(ABC):
    """One attempt's log, held open: pruning it takes nothing from whoever reads already."""

    @abstractmethod
    def size(self) -> int:
        """Return how many bytes can be read now; 0 for a log that did not exist when it was opened."""

    @abstractmethod
    def read(self, offset: int, length: int) -> bytes:
        """Return at most `length` bytes from `offset`; empty at the end."""


@dataclass(frozen=True, slots=True)
class StoredItem:
    """A thing in a store, for pruning: its name, what it takes on disk, and how long it was left alone."""

    name: str
    size: int  # bytes
    age: float  # seconds since it was last written


class LogStore(ABC):
    """Where the output of attempts is kept, one append-only file each."""

    @abstractmethod
    def reader(self, job_id: str, attempt: int) -> AbstractContextManager[LogReader]:
        """Return a reader that goes on reading even if the log is deleted meanwhile."""

    @abstractmethod
    def read_events(self, job_id: str, attempt: int, length: int) -> bytes:
        """Return at most so many first bytes of the attempt's `.events`; empty where there are none."""

    @abstractmethod
    def delete(self, job_id: str) -> None:
        """Nothing is left of the logs of that job's attempts; it is no error if nothing was there."""

    @abstractmethod
    def items(self) -> Iterator[StoredItem]:
        """Yield every job of which anything is stored, under its id, for pruning."""

    @abstractmethod
    def to_put_away(self) -> Iterator[tuple[str, int]]:
        """Yield job and attempt of every log that is worth putting away and is not."""

    @abstractmethod
    def put_away(self, job_id: str, attempt: int, seal: LogSeal | None = None) -> bool | None:
        """The log takes less room and reads as before, for those too who read it now; nobody writes it any more.

        False, and nothing changed: it is not what the seal says. None, and nothing changed: it was put away already,
        or somebody else is at it now. Raises StorageFull.
        """

    @abstractmethod
    def writer(self, job_id: str, attempt: int) -> LogWriter:
        """Return the writer of that log, made empty if there was none; one that was put away is taken out again."""

    @abstractmethod
    def size(self, job_id: str, attempt: int) -> int:
        """Return how many bytes can be read now; 0 for a log that does not exist yet."""

    @abstractmethod
    def read(self, job_id: str, attempt: int, offset: int, length: int) -> bytes:
        """Return at most `length` bytes from `offset`; empty at the end or where there is no log."""


@dataclass(frozen=True, slots=True)
class ArchiveEntry:
    """One regular file of an archive, judged good: relative POSIX path, mode 0o644 or 0o755, size in bytes."""

    path: str
    mode: int
    size: int


class Archive(ABC):
    """An accepted archive, opened for reading. Reading checks every byte count against the entry."""

    @property
    @abstractmethod
    def entries(self) -> tuple[ArchiveEntry, ...]:
        """The files, sorted by path."""

    @abstractmethod
    def open(self, entry: ArchiveEntry) -> AbstractContextManager[BinaryIO]:
        """Return a reader of the entry's bytes; raises InvalidArchive when they are not what was declared."""

    def read(self, path: str, limit: int) -> bytes | None:
        """Return a small file whole (None: absent, or larger than `limit` bytes)."""
        for entry in self.entries:
            if entry.path == path and entry.size <= limit:
                with self.open(entry) as reader:
                    return reader.read()
        return None


@dataclass(frozen=True, slots=True)
class StoredArchive:
    """An archive that is safely on disk: its opaque reference, size and SHA-256 of the upload's bytes."""

    ref: str
    size: int
    sha256: str


FindBlobs = Callable[[Collection[bytes]], Awaitable[Mapping[bytes, BlobPlace]]]


class BlobStore(ABC):
    """Where contents of files are kept that came apart from their trees: packs, one for each request that brought any.

    Whose they are and what lies where in them is the repository's.
    """

    @abstractmethod
    async def receive(self, chunks: AsyncIterable[bytes]) -> Pack:
        """The body's blobs are verified and, as one pack, durable; on any error nothing is left behind.

        A pack of no blobs was never there. Raises InvalidBlob, ArchiveTooLarge, StorageFull.
        """

    @abstractmethod
    def absent(self, names: Collection[str]) -> set[str]:
        """Return those of the packs that are not there."""

    @abstractmethod
    def delete(self, name: str) -> None:
        """The pack is gone; it is no error if it was before."""

    @abstractmethod
    def items(self) -> Iterator[StoredItem]:
        """Yield every pack, for pruning."""

    @abstractmethod
    def remove_unfinished(self, older_than_seconds: float) -> list[str]:
        """Packs that began but never ended are gone, where nothing was added for that long; returns their names."""


class ArchiveStore(ABC):
    """Where uploads are kept. The one set of rules judges them all, as zips also when they are read."""

    @property
    @abstractmethod
    def blobs(self) -> BlobStore:
        """The store of contents that came apart from their trees."""

    @abstractmethod
    async def judge_manifest(self, files: Sequence[Any], owner: str = "") -> Manifest:
        """Return the tree of these files, as JSON has them; raises InvalidArchive. Owners take turns as in `save`."""

    @abstractmethod
    async def judge_tree(
        self, root: bytes, find: FindBlobs, owner: str = "", forgettings: int | None = None
    ) -> LaidTree:
        """Return the tree whose root's listing has that hash.

        With `forgettings` (the owner's number, read before this) what an earlier call learnt of the owner's listings
        under the same number is believed, and `find` asked for the others only.

        Owners take turns as in `save`. Raises InvalidArchive, and MissingBlobs with the listings, or then the
        contents, that `find` does not know, or that a prune took meanwhile.
        """

    @abstractmethod
    async def save_tree(self, tree: LaidTree) -> StoredArchive:
        """The tree is durable as an archive; on any error nothing is left behind. Raises StorageFull."""

    @abstractmethod
    async def save_manifest(self, manifest: Manifest, places: Mapping[bytes, BlobPlace]) -> StoredArchive:
        """The tree is durable as an archive whose contents lie at those places; on any error nothing is left behind.

        Raises InvalidArchive, where a size is not that of the contents, and StorageFull.
        """

    @abstractmethod
    async def save(
        self, chunks: AsyncIterable[bytes], max_bytes: int, owner: str = "", *, at_once: bool = False
    ) -> StoredArchive:
        """The upload is durable (temp name, fsync, rename) and valid; on any error nothing is left behind.

        `at_once`: it is little, and nothing is done with it before all of it came. Of one owner's uploads one is
        judged at a time, so nobody waits for all that somebody else has sent.
        Raises ArchiveTooLarge, InvalidArchive, StorageFull.
        """

    @abstractmethod
    def open(self, ref: str) -> AbstractContextManager[Archive]:
        """Return the archive for reading; raises InvalidArchive when it is gone or damaged."""

    @abstractmethod
    def delete(self, ref: str) -> None:
        """The archive is gone; it is no error if it was before."""

    @abstractmethod
    def trim(self) -> int:
        """Local copies of what is kept elsewhere take no more room than they may; returns how many went.

        As every method, where uploads are kept elsewhere, it may raise StorageUnavailable.
        """

    @abstractmethod
    def check(self) -> None:
        """Where uploads are kept elsewhere, that place answers and lets us in; raises StorageUnavailable."""

    @abstractmethod
    def items(self) -> Iterator[StoredItem]:
        """Yield every stored archive under its reference, for pruning."""

    @abstractmethod
    def remove_unfinished(self, older_than_seconds: float) -> list[str]:
        """Uploads that began but never ended are gone, where nothing was added for that long; returns their names."""


class Subscription(ABC):
    """A waiter's place at the hub. Ask for the truth after every wake-up: it is only a hint."""

    only_log: bool  # what the last wait told of were bytes in a log, and no commit

    @abstractmethod
    async def wait(self, seconds: float) -> bool:
        """Return True when something may have changed since the last call, False after `seconds`.

        A change that came between two calls makes the next one return at once.
        """

    @abstractmethod
    def wake(self) -> None:
        """Whoever waits returns as if something had changed."""


class ChangeHub(ABC):
    """One watcher per process that wakes every follower, for the database and for logs alike."""

    @abstractmethod
    def database(self) -> AbstractContextManager[Subscription]:
        """Return a subscription to commits made by any process."""

    @abstractmethod
    def log(self, job_id: str) -> AbstractContextManager[Subscription]:
        """Return a subscription to the database and to every log of one job, present or to come."""

    @abstractmethod
    async def start(self) -> None:
        """The watcher runs; where the platform cannot watch, subscriptions just time out."""

    @abstractmethod
    async def close(self) -> None:
        """The watcher is gone and its descriptors are closed."""

"""Where finished uploads lie under their names: in a directory, or as objects, of which a directory holds copies.

What is under a name never changes, so a copy is as good as the object. Rows say which names count.
"""

import contextlib
import os
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path

import structlog

from ci_common.errors import StorageUnavailable
from ci_common.stores import StoredItem
from ci_persistence.log_store import disk_full_as_storage_full
from ci_persistence.objects import Objects
from ci_persistence.ownership import FILE_MODE, adopt_owner, fsync_directory

_COPYING = ".copy"  # in the names of copies that are on their way
_USED_LATELY = 600.0  # seconds for which a copy that was asked for stays

log = structlog.get_logger(__name__)


class Shelf(ABC):
    """Files by name; `root` is the directory in which they are made and found."""

    def __init__(self, root: Path) -> None:
        self._root = root

    @abstractmethod
    def publish(self, unfinished: Path, name: str) -> None:
        """What that file holds (of the same directory, and synced) is durable under the name."""

    @abstractmethod
    def find(self, name: str) -> Path | None:
        """Return a file with what is under the name, None where there is nothing."""

    @abstractmethod
    def has(self, name: str) -> bool:
        """Tell whether there is anything under the name."""

    @abstractmethod
    def remove(self, name: str) -> None:
        """There is nothing under the name; it is no error if there was nothing."""

    @abstractmethod
    def take_back(self, name: str) -> None:
        """The same of what was published just now and nobody knows; a prune finds what could not be taken back."""

    @abstractmethod
    def items(self) -> Iterator[StoredItem]:
        """Yield everything, in the order of names; other files may be among it."""

    @abstractmethod
    def trim(self) -> int:
        """Copies of what is durable elsewhere take no more room than they may; returns how many went."""

    @abstractmethod
    def check(self) -> None:
        """What is elsewhere can be reached; raises StorageUnavailable."""


Shelve = Callable[[Path], Shelf]


class FolderShelf(Shelf):
    """A directory and nothing else."""

    def publish(self, unfinished: Path, name: str) -> None:
        unfinished.rename(self._root / name)
        fsync_directory(self._root)

    def find(self, name: str) -> Path | None:
        path = self._root / name
        return path if path.exists() else None

    def has(self, name: str) -> bool:
        return (self._root / name).exists()

    def remove(self, name: str) -> None:
        (self._root / name).unlink(missing_ok=True)

    def take_back(self, name: str) -> None:
        self.remove(name)

    def items(self) -> Iterator[StoredItem]:
        now = time.time()
        for path in sorted(self._root.glob("*.*")):
            with contextlib.suppress(FileNotFoundError):
                found = path.stat()
                yield StoredItem(path.name, found.st_size, max(0.0, now - found.st_mtime))

    def trim(self) -> int:
        return 0

    def check(self) -> None:
        """The directory's disk is looked at elsewhere."""


class ObjectShelf(Shelf):
    """Objects `<directory's name>/<name>`; what lay in the directory before there were any still counts."""

    def __init__(self, objects: Objects, room: int, root: Path) -> None:
        super().__init__(root)
        self._objects = objects
        self._room = room  # bytes of copies
        self._copies = FolderShelf(root)

    def publish(self, unfinished: Path, name: str) -> None:
        self._objects.put(self._object(name), unfinished)
        unfinished.rename(self._root / name)

    def find(self, name: str) -> Path | None:
        path = self._root / name
        with contextlib.suppress(FileNotFoundError):
            os.utime(path)  # it was used: others go first
            return path
        copy = path.with_name(f"{name}{_COPYING}.{uuid.uuid4().hex}")
        try:
            with disk_full_as_storage_full(copy):
                self._objects.fetch(self._object(name), copy)
            copy.chmod(FILE_MODE)
            adopt_owner(copy)
            copy.rename(path)
        except FileNotFoundError:
            if not self._root.is_dir():
                raise  # it is not the object that is gone
            return None
        finally:
            copy.unlink(missing_ok=True)
        return path

    def has(self, name: str) -> bool:
        return self._copies.has(name) or self._objects.exists(self._object(name))

    def remove(self, name: str) -> None:
        self._objects.delete(self._object(name))  # first: a copy alone would count as what it is a copy of
        self._copies.remove(name)

    def take_back(self, name: str) -> None:
        self._copies.remove(name)
        try:
            self._objects.delete(self._object(name))
        except StorageUnavailable as error:
            log.warning("an object that nobody needs stays for now", name=name, error=error.detail)

    def items(self) -> Iterator[StoredItem]:
        stored = {item.name: item for item in self._objects.items(self._root.name)}
        copies = {item.name: item for item in self._copies.items()}
        both = copies | stored
        yield from (both[name] for name in sorted(both))

    def trim(self) -> int:
        stored = {item.name for item in self._objects.items(self._root.name)}
        removed, room = 0, self._room
        for item in sorted(self._copies.items(), key=lambda item: item.age):
            room -= item.size
            is_left_over = _COPYING in item.name  # of a process that died
            if item.age > _USED_LATELY and (is_left_over or (room < 0 and item.name in stored)):
                self._copies.remove(item.name)
                removed += 1
        return removed

    def check(self) -> None:
        self._objects.check()

    def _object(self, name: str) -> str:
        return f"{self._root.name}/{name}"

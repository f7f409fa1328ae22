"""Objects: bytes that are whole and durable under a name, or absent. Not files: none grows, none is changed.

Names are ours (`archives/<random>.zip`), never made of what a user wrote.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path

from ci_common.stores import StoredItem


class Objects(ABC):
    """A place for objects. Every method may raise StorageUnavailable; all are for threads."""

    @abstractmethod
    def put(self, name: str, source: Path) -> None:
        """The object is what the file is, durable; before that there was none of that name, or an equal one."""

    @abstractmethod
    def fetch(self, name: str, target: Path) -> None:
        """The file holds the object, whole; raises FileNotFoundError where there is none."""

    @abstractmethod
    def exists(self, name: str) -> bool:
        """Tell whether there is such an object."""

    @abstractmethod
    def delete(self, name: str) -> None:
        """There is no such object; it is no error if there was none."""

    @abstractmethod
    def items(self, folder: str) -> Iterator[StoredItem]:
        """Yield the objects called `<folder>/<name>`, under that last part."""

    @abstractmethod
    def check(self) -> None:
        """The place answers and lets us in."""

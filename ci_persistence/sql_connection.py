"""What our SQL uses of a connection, whosever it is: the drivers of SQLite and PostgreSQL both give as much."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeVar

T = TypeVar("T")
Values = Sequence[Any] | Mapping[str, Any]


class Row(Protocol):
    """A row of a result; its columns have names."""

    def __getitem__(self, key: str, /) -> Any:
        """Return what stands in that column."""
        ...


class Cursor(Protocol):
    """The result of a statement."""

    @property
    def rowcount(self) -> int:
        """How many rows the statement changed."""
        ...

    def fetchone(self) -> Any:
        """Return the next row, None after the last one."""
        ...

    def fetchall(self) -> list[Any]:
        """Return all rows that are left."""
        ...

    def __iter__(self) -> Iterator[Any]:
        """Return the rows, one after the other."""
        ...


class Connection(Protocol):
    """A connection in the middle of a transaction, which whoever opened it ends."""

    def execute(self, sql: str, values: Values = ..., /) -> Cursor:
        """The statement was executed; returns its result."""
        ...

    def executemany(self, sql: str, values: Iterable[Any], /) -> Any:
        """The statement was executed with each of those values."""
        ...

    def cursor(self) -> Any:
        """Return a cursor whose `row_factory` can be set: None for plain tuples."""
        ...


Work = Callable[[Connection], T]

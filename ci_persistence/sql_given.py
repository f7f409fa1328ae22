"""Many rows in one statement: a table `given`, which the statement may read from, update from or insert from."""

from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import chain
from typing import TypeVar

from ci_persistence.sql_connection import Connection, Cursor

T = TypeVar("T")


def with_given(db: Connection, columns: str, rows: Sequence[Sequence[str | None]], statement: str) -> Cursor:
    """The statement was executed once, for all rows; there is at least one.

    Every value is text or null, so what is a number is CAST by the statement: PostgreSQL would otherwise see another
    statement, to be planned anew, for every size of number.
    """
    return db.execute(_given(columns, len(rows)) + statement, list(chain.from_iterable(rows)))


def number_text(number: int | None) -> str | None:
    """Return how a number, or a truth, stands in such a row."""
    return None if number is None else str(int(number))


def slices(rows: Iterable[T], size: int = 500) -> list[list[T]]:
    """Return the rows in parts that one statement can take."""
    every = list(rows)
    return [every[start : start + size] for start in range(0, len(every), size)]


@lru_cache(maxsize=256)
def _given(columns: str, count: int) -> str:
    row = f"({', '.join('?' for _ in columns.split(','))})"
    return f"WITH given ({columns}) AS (VALUES {', '.join([row] * count)}) "

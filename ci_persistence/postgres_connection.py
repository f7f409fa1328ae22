"""How one connection to PostgreSQL is opened and set up, and how one transaction runs on it.

Our statements are written once for both databases; `dialect` says what PostgreSQL hears of them.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import Any, Final, TypeVar

import psycopg
from psycopg import conninfo, pq, rows

from ci_persistence.dialect import for_postgresql
from ci_persistence.postgres_errors import CommitUnanswered, is_lost

T = TypeVar("T")

BEGIN_TO_WRITE: Final = "BEGIN ISOLATION LEVEL READ COMMITTED"  # a standby refuses what follows
BEGIN_TO_READ: Final = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"
CHANNEL: Final = "ci_changes"  # what listeners hear of every transaction that wrote
COMMIT: Final = "COMMIT"
# In one message to the server. Of a transaction that changed nothing nobody need hear.
TELL_AND_COMMIT: Final = (
    f"SELECT pg_notify('{CHANNEL}', '') WHERE pg_current_xact_id_if_assigned() IS NOT NULL; {COMMIT}"
)

# A host that vanished is noticed in seconds, not after the quarter of an hour that TCP allows itself.
_NETWORK: Final = {
    "connect_timeout": 5,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 15_000,
}
_SETTINGS: Final = """
    SELECT set_config('application_name', 'ci', false), set_config('lock_timeout', '10s', false),
        -- Who was stopped in the middle of a transaction must not hold up all others.
        set_config('idle_in_transaction_session_timeout', '30s', false),
        -- An acknowledged job survives power loss; what is stricter than that stays as the operator has it.
        CASE current_setting('synchronous_commit')
            WHEN 'off' THEN set_config('synchronous_commit', 'on', false) END
"""


class Cursor(psycopg.Cursor[Any]):
    """A cursor that takes our statements."""

    def execute(self, query: Any, params: Any = None, **options: Any) -> "Cursor":
        """The statement was executed."""
        return super().execute(_text(query), params, **options)

    def executemany(self, query: Any, params_seq: Iterable[Any], *, returning: bool = False) -> None:
        """The statement was executed with each of those values."""
        super().executemany(_text(query), params_seq, returning=returning)

    @property
    def row_factory(self) -> Any:
        """How rows come; None, as of SQLite's cursors: as plain tuples, which are the quickest."""
        return self._row_factory

    @row_factory.setter
    def row_factory(self, row_factory: Any) -> None:
        self._row_factory = row_factory or rows.tuple_row


class Connection(psycopg.Connection[Any]):
    """A `sql_connection.Connection`."""

    def execute(self, query: Any, params: Any = None, **options: Any) -> Any:
        """The statement was executed; returns the cursor with its rows."""
        return super().execute(query, params, **options)

    def executemany(self, query: Any, values: Iterable[Any]) -> None:
        """The statement was executed with each of those values."""
        every = list(values)
        if len(every) == 1:  # most often; the driver's way for many costs three times as much for one
            self.execute(query, every[0])
        elif every:
            self.cursor().executemany(query, every)


def connect(url: str) -> Connection:
    """Return a connection set up by our rules, outside of any transaction."""
    db = Connection.connect(
        url, autocommit=True, row_factory=named_row, cursor_factory=Cursor, **network_options(url)
    )
    try:
        db.execute(_SETTINGS.encode())
    except BaseException:
        db.close()
        raise
    return db


def network_options(url: str) -> dict[str, Any]:
    """Return what bounds waiting for the network, as far as the URL does not say it itself."""
    given = conninfo.conninfo_to_dict(url)
    return {name: value for name, value in _NETWORK.items() if name not in given}


def _text(query: str | bytes) -> bytes:
    return for_postgresql(query) if isinstance(query, str) else query


# -- rows --------------------------------------------------------------------------------------------------


@lru_cache(maxsize=512)
def _row_type(names: tuple[bytes, ...]) -> Callable[[Sequence[Any]], Any]:
    places = {name.decode(): place for place, name in enumerate(names)}

    class Row(tuple[Any, ...]):
        """A row whose columns have names and numbers, as SQLite's."""

        __slots__ = ()

        def __getitem__(self, key: Any) -> Any:
            return super().__getitem__(places[key] if isinstance(key, str) else key)

    return Row


def named_row(cursor: psycopg.Cursor[Any]) -> Callable[[Sequence[Any]], Any]:
    """Return what makes a row of values; psycopg calls it for every result."""
    result = cursor.pgresult  # its names as they came: `description` makes an object of each column
    places = range(result.nfields if result else 0)
    return _row_type(tuple(result.fname(place) or b"" for place in places if result))


# -- transactions ------------------------------------------------------------------------------------------


def read_transaction(db: Connection, work: Callable[[Connection], T]) -> T:
    """Return what the work read from one snapshot."""
    db.execute(BEGIN_TO_READ)
    return _to_the_end(db, work, COMMIT)


def write_transaction(db: Connection, work: Callable[[Connection], T]) -> T:
    """The work is committed, told to whoever listens, and its result returned, or it raised and nothing remains.

    Raises CommitUnanswered where nobody can say which.
    """
    db.execute(BEGIN_TO_WRITE)
    return _to_the_end(db, work, TELL_AND_COMMIT)


def _to_the_end(db: Connection, work: Callable[[Connection], T], commit: str) -> T:
    try:
        result = work(db)
    except BaseException:
        roll_back(db)
        raise
    _commit(db, commit)
    return result


def roll_back(db: Connection) -> None:
    """No transaction is open, or the connection is closed, by which the server learns of it."""
    try:
        if not db.closed and db.info.transaction_status != pq.TransactionStatus.IDLE:
            db.execute("ROLLBACK")
    except psycopg.Error:
        db.close()


def _commit(db: Connection, commit: str) -> None:
    try:
        results = db.execute(commit)
        while results.nextset():
            pass
        done = results.statusmessage
    except psycopg.Error as error:
        if db.closed or is_lost(error):
            raise CommitUnanswered from error
        roll_back(db)
        raise
    assert done == COMMIT, "a failed statement's error was swallowed"

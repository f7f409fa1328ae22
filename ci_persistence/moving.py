"""An installation leaves its file for a database server: every row in one transaction there, or none.

Archives and logs stay where they are. The file stays too, with its queue paused: a controller that is started on it by
habit claims nothing, so nothing runs twice.
"""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from typing import Any, Final

from ci_common.errors import AlreadyExists
from ci_common.models import AuditAction, AuditEvent
from ci_common.settings import StorageSettings
from ci_persistence import migrations, postgres_migrations
from ci_persistence.postgres_connection import connect as connect_server
from ci_persistence.postgres_connection import write_transaction as write_on_server
from ci_persistence.postgres_errors import translated as server_errors
from ci_persistence.restore import nobody_inside
from ci_persistence.sql_audit import append_audit
from ci_persistence.sql_connection import Connection
from ci_persistence.sql_pause import pause_queue
from ci_persistence.sqlite_connection import connect as connect_file
from ci_persistence.sqlite_connection import write_transaction as write_in_file
from ci_persistence.sqlite_errors import translated as file_errors

# What is referred to comes before what refers to it.
TABLES: Final = (
    *(
        "installation",
        "controller",
        "queue_pause",
        "users",
        "api_keys",
        "agents",
        "pools",
        "jobs",
        "attempts",
        "job_events",
    ),
    *("daily_totals", "audit_events", "packs", "blobs", "job_packs"),
)
_COUNTED: Final = ("audit_events", "packs")  # whose ids the database gives
_LAST_ID: Final = """
    SELECT max(id) FROM (
        SELECT max(id) AS id FROM {0} UNION ALL SELECT seq FROM sqlite_sequence WHERE name = '{0}'
    ) AS given
"""
_AT_ONCE: Final = 1000  # rows


@dataclass(frozen=True, slots=True)
class Moved:
    """How many rows of each table were brought over."""

    rows: dict[str, int]


def move(source: StorageSettings, target: StorageSettings, now: datetime, by: str) -> Moved:
    """All that the source's file held is on the target's server, and nothing is claimed in the file any more.

    The caller sees to it that no controller runs. Nothing of the file is changed before the server has everything.
    Raises DatabaseBusy (a process has the file open), AlreadyExists (the server's database is in use).
    """
    assert target.server_url is not None, "a move is to a server"
    path = source.db_path
    with nobody_inside(path):
        pass
    migrations.migrate(path)
    postgres_migrations.migrate(target.server_url)
    with file_errors(path), closing(connect_file(path)) as db:
        return write_in_file(db, lambda old: _moved(old, str(path), target, now, by))


def _moved(old: Connection, name: str, target: StorageSettings, now: datetime, by: str) -> Moved:
    url = target.server_url
    assert url is not None
    with server_errors(url), closing(connect_server(url)) as db:
        event = AuditEvent(now, by, AuditAction.MOVE, name)
        rows = write_on_server(db, lambda new: _fill(new, old, target, event))
    pause_queue(old, f"moved to {target.database_name}", now, by)
    return Moved(rows)


def _fill(new: Connection, old: Connection, target: StorageSettings, event: AuditEvent) -> dict[str, int]:
    _require_unused(new, target)
    new.execute("DELETE FROM installation")  # the one that migrating made
    rows = {table: _copy(new, old, table) for table in TABLES}
    for table in _COUNTED:
        _count_on(new, old, table)
    append_audit(new, event)
    return rows


def _require_unused(new: Connection, target: StorageSettings) -> None:
    for table in ("users", "controller", "audit_events"):
        if new.execute(f"SELECT 1 FROM {table} LIMIT 1").fetchone() is not None:  # noqa: S608 - constants
            raise AlreadyExists(
                f"{target.database_name} holds an installation already; name an empty database. (If a move there was "
                f"cut off at its very end it is this one: see to it that nobody starts a controller on the file.)"
            )


def _copy(new: Connection, old: Connection, table: str) -> int:
    rows, copied = iter(old.execute(f"SELECT * FROM {table}")), 0  # noqa: S608 - constants
    while some := list(islice(rows, _AT_ONCE)):
        names = list(some[0].keys())
        columns, places = ", ".join(f'"{name}"' for name in names), ", ".join("?" * len(names))
        new.executemany(f"INSERT INTO {table} ({columns}) VALUES ({places})", _values(some))  # noqa: S608
        copied += len(some)
    return copied


def _values(rows: list[Any]) -> Iterator[tuple[Any, ...]]:
    return (tuple(row) for row in rows)


def _count_on(new: Connection, old: Connection, table: str) -> None:
    """The next id is one that the file never gave either."""
    last = old.execute(_LAST_ID.format(table)).fetchone()[0]
    if last:
        new.execute("SELECT setval(pg_get_serial_sequence(?, 'id'), ?)", (table, last))

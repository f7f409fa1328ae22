"""JobRepository over a SQLite file: one machine, no server."""

import asyncio
from pathlib import Path

from ci_persistence.migrations import migrate, require_current_schema, rewrite_database
from ci_persistence.settled import settled
from ci_persistence.sql_repository import SQLJobRepository
from ci_persistence.sqlite_database import SQLiteDatabase


class SQLiteJobRepository(SQLJobRepository):
    """The repository of one installation on one machine, for any number of processes."""

    def __init__(self, db_path: str | Path = "ci_jobs.db") -> None:
        self._path = Path(db_path)
        self._sqlite = SQLiteDatabase(self._path)
        super().__init__(self._sqlite)

    async def initialize(self) -> None:
        await settled(asyncio.to_thread(migrate, self._path))

    async def check(self) -> None:
        await self._sqlite.read(lambda db: require_current_schema(db, self._path))

    async def count_standing_by(self) -> int:
        return 0  # of one file a second controller is refused

    async def rewrite(self) -> None:
        await settled(asyncio.to_thread(rewrite_database, self._path))

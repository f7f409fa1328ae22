"""JobRepository over PostgreSQL: for several hosts, or for more writers at once than one file takes.

The statements are those of SQLite (`dialect` says in what they differ), and so is every method but those about the
database itself.
"""

import asyncio

from ci_persistence.postgres_database import PostgresDatabase
from ci_persistence.postgres_migrations import migrate
from ci_persistence.postgres_presence import COUNT_STANDING_BY
from ci_persistence.settled import settled
from ci_persistence.sql_repository import SQLJobRepository


class PostgresJobRepository(SQLJobRepository):
    """The repository of one installation on any number of machines."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._postgres = PostgresDatabase(url)
        super().__init__(self._postgres)

    async def initialize(self) -> None:
        await settled(asyncio.to_thread(migrate, self._url))

    async def check(self) -> None:
        await self._postgres.check()

    async def count_standing_by(self) -> int:
        row = await self._postgres.read(lambda db: db.execute(COUNT_STANDING_BY).fetchone())
        return int(row[0])

    async def rewrite(self) -> None:
        await self._postgres.rewrite()

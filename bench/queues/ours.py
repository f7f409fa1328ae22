"""Our queue, through the repository that controller and servers use; the place says which database.

Several verdicts at the same time are several calls at the same time, as a controller with several jobs has them. What
a container's start writes is left out, since peers have nothing like it; so the verdict is one that needs no start.
"""

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from bench.queues.worker import main
from ci_common.job_terms import Reason
from ci_common.models import Attempt, ControllerLease, LogSeal
from ci_common.verdict import verdict
from ci_persistence import postgres_connection, sqlite_connection
from ci_persistence.postgres_repository import PostgresJobRepository
from ci_persistence.rows import to_text
from ci_persistence.sql_connection import Connection
from ci_persistence.sql_repository import SQLJobRepository
from ci_persistence.sqlite_repository import SQLiteJobRepository

_REFUSED = verdict(Reason.BAD_ARCHIVE, "The archive has no tests.")
_LOG = LogSeal(1024, "0" * 64)


class OurQueue:
    """Claims as the controller, finishes as its executor."""

    def __init__(self, place: str) -> None:
        self._place = place
        self._repository: SQLJobRepository = (
            PostgresJobRepository(place) if _is_url(place) else SQLiteJobRepository(place)
        )
        self._lease: ControllerLease | None = None

    async def fill(self, jobs: int, users: int) -> None:
        """So many jobs of all users are queued in a new database, and there is a controller."""
        await self._repository.initialize()
        await asyncio.to_thread(_fill, self._place, jobs, users)
        await self._repository.take_over("bench", datetime.now(UTC))

    async def open(self, workers: int) -> None:
        """The lease is known, and every connection that will be needed is there."""
        states = await asyncio.gather(*(self._repository.controller_state() for _ in range(workers)))
        assert states[0] is not None, "filled before"
        self._lease = ControllerLease(states[0].epoch, states[0].holder)
        await asyncio.gather(*(self._repository.claim_jobs(self._lease, 0, _now()) for _ in range(workers)))

    async def claim(self, batch: int) -> Sequence[Attempt]:
        """Return the attempts that are ours now."""
        assert self._lease is not None, "opened before"
        return await self._repository.claim_jobs(self._lease, batch, _now())

    async def finish(self, claimed: Sequence[Attempt]) -> None:
        """Each has its verdict and the hash of its log."""
        if len(claimed) == 1:
            done = [await self._finish(claimed[0])]
        else:
            done = await asyncio.gather(*(self._finish(attempt) for attempt in claimed))
        assert all(done), "nobody else has these tokens"

    async def close(self) -> None:
        """Threads and connections are gone."""
        await self._repository.close()

    async def _finish(self, attempt: Attempt) -> bool:
        return await self._repository.finish_attempt(attempt.fence, _REFUSED, _LOG, _now())


def _now() -> datetime:
    return datetime.now(UTC)


def _is_url(place: str) -> bool:
    return place.startswith("postgresql:")


def _fill(place: str, jobs: int, users: int) -> None:
    if _is_url(place):
        with postgres_connection.connect(place) as server:
            postgres_connection.write_transaction(server, lambda db: _insert(db, jobs, users))
            server.execute("ANALYZE")  # as autovacuum would have, which is off here
        return
    file = sqlite_connection.connect(Path(place))
    sqlite_connection.write_transaction(file, lambda db: _insert(db, jobs, users))
    file.close()


def _insert(db: Connection, jobs: int, users: int) -> None:
    now = to_text(_now())
    db.executemany(
        "INSERT INTO users (id, name, email, email_folded, created_at, is_active, role) "
        "VALUES (:n, :n, :n, :n, :now, 1, 'user')",
        [{"n": f"user{number}", "now": now} for number in range(users)],
    )
    db.executemany(
        "INSERT INTO jobs (id, user_id, created_at, archive_ref, status, options, queued_since) "
        """VALUES (?, ?, ?, 'ref', 'queued', '{"pytest_args": [], "timeout_seconds": null}', ?)""",
        [(f"job{number:06}", f"user{number % users}", now, now) for number in range(jobs)],
    )


if __name__ == "__main__":
    main(OurQueue)

# ruff: noqa: ARG002  (every queue is asked in the same way)
# pyright: basic, reportMissingImports=false
"""pgqueuer, with the calls its worker makes: dequeue a batch, log what became of it."""

import uuid
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import asyncpg
from pgqueuer.adapters.drivers.asyncpg import AsyncpgPoolDriver
from pgqueuer.ports.repository import EntrypointExecutionParameter
from pgqueuer.queries import Queries

from bench.queues.worker import main


class PgQueuerQueue:
    """Its queries over a pool of as many connections as it has workers; asyncpg, the quicker of its drivers."""

    def __init__(self, place: str) -> None:
        self._place = place
        self._manager = uuid.uuid4()
        self._entrypoints = {"job": EntrypointExecutionParameter(concurrency_limit=0)}

    async def _opened(self, connections: int) -> Queries:
        self._pool = await asyncpg.create_pool(self._place, min_size=connections, max_size=connections)
        self._queries = Queries(AsyncpgPoolDriver(self._pool))
        return self._queries

    async def fill(self, jobs: int, users: int) -> None:
        queries = await self._opened(1)
        await queries.install()
        for start in range(0, jobs, 1000):
            some = min(1000, jobs - start)
            await queries.enqueue(["job"] * some, [b"job"] * some, [0] * some)
        await self._pool.execute("ANALYZE")

    async def open(self, workers: int) -> None:
        await self._opened(workers)

    async def claim(self, batch: int) -> Sequence[Any]:
        return await self._queries.dequeue(
            batch_size=batch,
            entrypoints=self._entrypoints,
            queue_manager_id=self._manager,
            global_concurrency_limit=None,
            heartbeat_timeout=timedelta(seconds=30),
        )

    async def finish(self, claimed: Sequence[Any]) -> None:
        await self._queries.log_jobs([(job, "successful", None) for job in claimed])

    async def close(self) -> None:
        await self._pool.close()


if __name__ == "__main__":
    main(PgQueuerQueue)

# ruff: noqa: ARG002  (every queue is asked in the same way)
# pyright: basic, reportMissingImports=false
"""procrastinate, with the calls its worker makes: fetch a job, finish it. It has no batches."""

from collections.abc import Sequence
from typing import Any

from procrastinate import App, PsycopgConnector
from procrastinate.jobs import Job, Status

from bench.queues.worker import main


class ProcrastinateQueue:
    """An app with a pool of as many connections as it has workers."""

    def __init__(self, place: str) -> None:
        self._place = place
        self._app: App | None = None
        self._worker = 0

    async def _opened(self, connections: int) -> App:
        connector = PsycopgConnector(conninfo=self._place, min_size=connections, max_size=connections)
        self._app = app = App(connector=connector)
        await app.open_async()
        return app

    async def fill(self, jobs: int, users: int) -> None:
        app = await self._opened(1)
        await app.schema_manager.apply_schema_async()
        queued = [
            Job(id=None, queue="bench", lock=None, queueing_lock=None, task_name="job", task_kwargs={"n": n})
            for n in range(jobs)
        ]
        for start in range(0, jobs, 1000):
            await app.job_manager.batch_defer_jobs_async(queued[start : start + 1000])
        await app.connector.execute_query_async("ANALYZE")

    async def open(self, workers: int) -> None:
        app = await self._opened(workers)
        self._worker = await app.job_manager.register_worker()

    async def claim(self, batch: int) -> Sequence[Any]:
        assert self._app is not None
        job = await self._app.job_manager.fetch_job(None, worker_id=self._worker)
        return [] if job is None else [job]

    async def finish(self, claimed: Sequence[Any]) -> None:
        assert self._app is not None
        for job in claimed:
            await self._app.job_manager.finish_job(job, Status.SUCCEEDED, delete_job=False)

    async def close(self) -> None:
        if self._app is not None:
            await self._app.close_async()


if __name__ == "__main__":
    main(ProcrastinateQueue)

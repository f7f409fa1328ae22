"""Putting away the logs that nobody writes any more, some time after the verdict: no job waits for it.

What one pass does not come to, or dies of, the next one finds: a log is put away or it is not.
"""

import asyncio
from datetime import datetime, timedelta
from typing import Final

import structlog

from ci_common.errors import StorageFull
from ci_common.models import Job, LogSeal
from ci_common.repository import JobRepository
from ci_common.stores import LogStore

QUIET_AFTER: Final = timedelta(minutes=1)  # since the verdict: a write that was under way is over by then

log = structlog.get_logger(__name__)


class QuietLogs:
    """Puts away the logs of one installation, whoever ran its jobs."""

    def __init__(self, repository: JobRepository, logs: LogStore) -> None:
        self._repository = repository
        self._logs = logs
        self._told = set[tuple[str, int]]()  # of which was said that they stay as they are
        self._left = set[tuple[str, int]]()  # which are not what their rows say, and never will be

    async def put_away(self, now: datetime) -> int:
        """What ended a while ago and is not pruned is put away; returns how many logs were.

        Raises StorageFull once all were tried: one that finds no room holds up none that does, or that makes some.
        """
        written = set(await asyncio.to_thread(lambda: list(self._logs.to_put_away())))
        self._left &= written
        self._told &= written
        done, full = 0, None
        for one in sorted(written - self._left):
            try:
                done += await self._put_away(*one, now)
            except StorageFull as error:
                full = error
        if full:
            raise full
        return done

    async def _put_away(self, job_id: str, attempt: int, now: datetime) -> bool:
        job = await self._repository.get_job(job_id)
        if job is None or not _is_quiet(job, now):
            return False
        try:
            done = await asyncio.to_thread(self._logs.put_away, job_id, attempt, _seal_of(job, attempt))
            why = "it is not what its row says" if done is False else "another process is at it"
        except (
            OSError
        ) as error:  # of this one's place on the disk: the others go on, and it may be over next time
            done, why = None, str(error)
        if done is False:
            self._left.add((job_id, attempt))
        if not done:
            self._tell(job_id, attempt, why)
        return bool(done)

    def _tell(self, job_id: str, attempt: int, why: str) -> None:
        if (job_id, attempt) not in self._told:
            self._told.add((job_id, attempt))
            log.warning("a log stays as it was written", job=job_id, attempt=attempt, why=why)


def _is_quiet(job: Job, now: datetime) -> bool:
    return job.end_time is not None and now - job.end_time > QUIET_AFTER and job.log_pruned_at is None


def _seal_of(job: Job, attempt: int) -> LogSeal | None:
    """Return what the log is by its job's row, which tells of the last attempt only."""
    if attempt != job.attempt or job.log_size is None or job.log_sha256 is None:
        return None
    return LogSeal(job.log_size, job.log_sha256)

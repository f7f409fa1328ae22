"""The seam between the core and where its jobs come from: here, the repository and the stores.

Everything the core knows of desired state passes through a `JobSource`; an agent on another host will have
one that speaks HTTP. Writes about an attempt are fenced: False or None means that somebody else acted.
"""

from collections.abc import Collection, Mapping
from contextlib import AbstractContextManager
from datetime import datetime, timedelta
from typing import Protocol

from ci_common.job_terms import JobStatus, JobVerdict, Reason
from ci_common.models import (
    CONTROLLER_GONE_AFTER,
    Attempt,
    ControllerLease,
    Fence,
    ImageUse,
    LogSeal,
    StopIntent,
)
from ci_common.repository import JobRepository
from ci_common.stores import Archive, ArchiveStore, LogStore, LogWriter
from ci_controller.lease import Superseded
from ci_controller.operations import AttemptKey
from ci_controller.pruner import Pruner
from ci_controller.retention import Prunable, Retention


class JobSource(Protocol):
    """What the core asks about its jobs, and how it reports."""

    @property
    def instance_id(self) -> str:
        """The installation whose containers are ours."""
        ...

    @property
    def epoch(self) -> int:
        """The epoch of our right to act; only a label, fences decide."""
        ...

    @property
    def lease(self) -> timedelta:
        """How long after a heartbeat others count us as gone."""
        ...

    async def heartbeat(self, note: str | None, now: datetime) -> bool:
        """The right to act is renewed; False: somebody took over, stop at once."""
        ...

    async def count_claimable(self, now: datetime) -> int:
        """Return how many jobs could be claimed now."""
        ...

    async def claim(self, slots: int, now: datetime) -> list[Attempt]:
        """Up to so many jobs are ours, as fresh attempts."""
        ...

    async def held(self) -> list[Attempt]:
        """Return every open attempt of ours, with cancel requests as they stand now; raises Superseded."""
        ...

    async def ended(self, containers: Collection[str]) -> Mapping[str, AttemptKey]:
        """Return the attempts that ended in these containers, by container; those of others are not in it."""
        ...

    async def started(
        self, fence: Fence, container_id: str, image_id: str, cached: bool | None, now: datetime
    ) -> bool:
        """The attempt runs in that container, and its deadline counts from now; `cached`: whether its image has the
        environment of an earlier job, None where there is none to be had."""
        ...

    async def image_uses(self) -> Mapping[str, ImageUse]:
        """Return the last use of every image that an attempt was started in, by its id."""
        ...

    async def begun(self, fence: Fence, now: datetime) -> bool:
        """The attempt is charged from here on."""
        ...

    async def record_stop(
        self, fence: Fence, reason: Reason, message: str | None, now: datetime
    ) -> StopIntent | None:
        """The decision to end the attempt stands; the first one is returned."""
        ...

    async def finish(self, fence: Fence, verdict: JobVerdict, log: LogSeal | None, now: datetime) -> bool:
        """The job is terminal."""
        ...

    async def release(
        self,
        fence: Fence,
        reason: Reason,
        message: str,
        log: LogSeal | None,
        not_before: datetime | None,
        now: datetime,
    ) -> JobStatus | None:
        """The attempt ended without a verdict; returns what became of the job."""
        ...

    def open_archive(self, attempt: Attempt) -> AbstractContextManager[Archive]:
        """Return the upload, opened for reading in a thread; raises InvalidArchive."""
        ...

    def log_writer(self, fence: Fence) -> LogWriter:
        """Return the writer of the attempt's log; the caller closes it."""
        ...

    async def keep_house(self, now: datetime, lenience: timedelta) -> list[str]:
        """Jobs that waited too long (by more than the lenience) were failed and are returned, and the database was
        looked after."""
        ...

    async def prune(self, now: datetime, *, under_pressure: bool = False) -> list[Prunable]:
        """What the operator does not want to keep is gone, and so are uploads that no job came of; returns it."""
        ...


class RepositoryJobSource:
    """The jobs of a repository on this machine, held under a controller's lease."""

    def __init__(
        self,
        repository: JobRepository,
        logs: LogStore,
        archives: ArchiveStore,
        lease: ControllerLease,
        instance_id: str,
        *,
        max_attempts: int,
        queue_timeout: timedelta,
        retention: Retention,
    ) -> None:
        self._repository = repository
        self._logs = logs
        self._archives = archives
        self._control = lease
        self._max_attempts = max_attempts
        self._queue_timeout = queue_timeout
        self._pruner = Pruner(repository, logs, archives, retention, lease)
        self.instance_id = instance_id
        self.epoch = lease.epoch
        self.lease = CONTROLLER_GONE_AFTER

    async def heartbeat(self, note: str | None, now: datetime) -> bool:
        return await self._repository.heartbeat(self._control, now, note)

    async def count_claimable(self, now: datetime) -> int:
        return await self._repository.count_queued(now)

    async def claim(self, slots: int, now: datetime) -> list[Attempt]:
        return await self._repository.claim_jobs(self._control, slots, now)

    async def held(self) -> list[Attempt]:
        attempts = await self._repository.open_attempts()
        # In this order: had the tokens we just read been made for a successor, its epoch would stand by now.
        state = await self._repository.controller_state()
        if state is None or state.epoch != self.epoch:
            raise Superseded("another controller took over")
        return attempts

    async def ended(self, containers: Collection[str]) -> Mapping[str, AttemptKey]:
        if not containers:
            return {}
        found = await self._repository.ended_attempts(containers)
        return {container: AttemptKey(*pair) for container, pair in found.items()}

    async def started(
        self, fence: Fence, container_id: str, image_id: str, cached: bool | None, now: datetime
    ) -> bool:
        return await self._repository.mark_started(fence, container_id, image_id, now, cached)

    async def image_uses(self) -> Mapping[str, ImageUse]:
        return await self._repository.image_uses()

    async def begun(self, fence: Fence, now: datetime) -> bool:
        return await self._repository.mark_begun(fence, now)

    async def record_stop(
        self, fence: Fence, reason: Reason, message: str | None, now: datetime
    ) -> StopIntent | None:
        return await self._repository.record_stop(fence, reason, message, now)

    async def finish(self, fence: Fence, verdict: JobVerdict, log: LogSeal | None, now: datetime) -> bool:
        return await self._repository.finish_attempt(fence, verdict, log, now)

    async def release(
        self,
        fence: Fence,
        reason: Reason,
        message: str,
        log: LogSeal | None,
        not_before: datetime | None,
        now: datetime,
    ) -> JobStatus | None:
        return await self._repository.release_attempt(
            fence,
            reason=reason,
            message=message,
            max_attempts=self._max_attempts,
            not_before=not_before,
            now=now,
            log=log,
        )

    def open_archive(self, attempt: Attempt) -> AbstractContextManager[Archive]:
        return self._archives.open(attempt.job.archive_ref)

    def log_writer(self, fence: Fence) -> LogWriter:
        return self._logs.writer(fence.job_id, fence.attempt)

    async def keep_house(self, now: datetime, lenience: timedelta) -> list[str]:
        expired = await self._repository.expire_queued(self._control, self._queue_timeout, now, lenience)
        await self._repository.maintain()
        return expired

    async def prune(self, now: datetime, *, under_pressure: bool = False) -> list[Prunable]:
        return await self._pruner.prune(now, under_pressure=under_pressure)

"""JobRepository over one SQLite file: each method is one transaction; the SQL is in the modules beside this one."""

import asyncio
from collections.abc import Collection
from datetime import datetime, timedelta
from pathlib import Path

from ci_common.models import (
    APIKey,
    Attempt,
    ControllerLease,
    ControllerState,
    Fence,
    Idempotency,
    Job,
    JobEvent,
    JobFilter,
    JobPage,
    JobStatus,
    JobVerdict,
    LogSeal,
    QueueLimits,
    Reason,
    StopIntent,
    User,
)
from ci_common.repository import JobRepository
from ci_persistence import sqlite_accounts as accounts
from ci_persistence import sqlite_attempts as attempts_sql
from ci_persistence import sqlite_control as control
from ci_persistence import sqlite_jobs as jobs_sql
from ci_persistence.migrations import migrate, require_current_schema
from ci_persistence.settled import settled
from ci_persistence.sqlite_database import SQLiteDatabase
from ci_persistence.sqlite_listing import list_jobs


class SQLiteJobRepository(JobRepository):
    """The repository of one installation on one machine, for any number of processes."""

    def __init__(self, db_path: str | Path = "ci_jobs.db") -> None:
        self._path = Path(db_path)
        self._db = SQLiteDatabase(self._path)

    # -- life ------------------------------------------------------------------------------------------

    async def initialize(self) -> None:
        await settled(asyncio.to_thread(migrate, self._path))

    async def check(self) -> None:
        await self._db.read(lambda db: require_current_schema(db, self._path))

    async def close(self) -> None:
        await self._db.close()

    async def instance_id(self) -> str:
        return await self._db.read(control.instance_id)

    async def maintain(self) -> None:
        await self._db.maintain()

    # -- users and keys ----------------------------------------------------------------------------------

    async def create_user(self, user: User) -> None:
        await self._db.write(lambda db: accounts.create_user(db, user))

    async def get_user(self, user_id: str) -> User | None:
        return await self._db.read(lambda db: accounts.get_user(db, user_id))

    async def get_user_by_email(self, email: str) -> User | None:
        return await self._db.read(lambda db: accounts.get_user_by_email(db, email))

    async def list_users(self) -> list[User]:
        return await self._db.read(accounts.list_users)

    async def set_user_active(self, user_id: str, *, active: bool, now: datetime) -> User | None:
        return await self._db.write(lambda db: accounts.set_user_active(db, user_id, active, now))

    async def create_api_key(self, key: APIKey) -> None:
        await self._db.write(lambda db: accounts.create_api_key(db, key))

    async def list_api_keys(self, user_id: str | None = None) -> list[APIKey]:
        return await self._db.read(lambda db: accounts.list_api_keys(db, user_id))

    async def find_api_key(self, key_hash: str) -> tuple[APIKey, User] | None:
        return await self._db.read(lambda db: accounts.find_api_key(db, key_hash))

    async def revoke_api_key(self, key_id: str) -> APIKey | None:
        return await self._db.write(lambda db: accounts.revoke_api_key(db, key_id))

    async def touch_api_key(self, key_id: str, at: datetime) -> None:
        await self._db.write(lambda db: accounts.touch_api_key(db, key_id, at))

    # -- jobs, as users see them -------------------------------------------------------------------------

    async def create_job(
        self, job: Job, idempotency: Idempotency | None = None, limits: QueueLimits | None = None
    ) -> Job:
        return await self._db.write(lambda db: jobs_sql.create_job(db, job, idempotency, limits))

    async def check_room(self, user_id: str, limits: QueueLimits) -> None:
        await self._db.read(lambda db: jobs_sql.check_room(db, user_id, limits))

    async def find_idempotent(self, user_id: str, key: str) -> tuple[Job, str] | None:
        return await self._db.read(lambda db: jobs_sql.find_idempotent(db, user_id, key))

    async def get_job(self, job_id: str, user_id: str | None = None) -> Job | None:
        return await self._db.read(lambda db: jobs_sql.get_job(db, job_id, user_id))

    async def list_jobs(self, job_filter: JobFilter) -> JobPage:
        return await self._db.read(lambda db: list_jobs(db, job_filter))

    async def queue_position(self, job_id: str) -> int | None:
        return await self._db.read(lambda db: jobs_sql.queue_position(db, job_id))

    async def request_cancel(self, job_id: str, user_id: str | None, by: str, now: datetime) -> Job:
        return await self._db.write(lambda db: jobs_sql.request_cancel(db, job_id, user_id, by, now))

    async def add_event(self, job_id: str, event: JobEvent) -> None:
        await self._db.write(lambda db: jobs_sql.add_event(db, job_id, event))

    async def get_events(self, job_id: str, from_index: int = 0) -> list[JobEvent]:
        return await self._db.read(lambda db: jobs_sql.get_events(db, job_id, from_index))

    # -- the controller ----------------------------------------------------------------------------------

    async def take_over(self, holder: str, now: datetime) -> ControllerLease:
        return await self._db.write(lambda db: control.take_over(db, holder, now))

    async def heartbeat(self, lease: ControllerLease, now: datetime, note: str | None = None) -> bool:
        return await self._db.write(lambda db: control.heartbeat(db, lease, now, note))

    async def controller_state(self) -> ControllerState | None:
        return await self._db.read(control.controller_state)

    async def count_queued(self, now: datetime) -> int:
        return await self._db.read(lambda db: control.count_queued(db, now))

    async def claim_jobs(self, lease: ControllerLease, limit: int, now: datetime) -> list[Attempt]:
        return await self._db.write(lambda db: control.claim_jobs(db, lease, limit, now))

    async def open_attempts(self) -> list[Attempt]:
        return await self._db.read(control.open_attempts)

    async def ended_attempts(self, attempts: Collection[tuple[str, int]]) -> set[tuple[str, int]]:
        return await self._db.read(lambda db: control.ended_attempts(db, attempts))

    async def expire_queued(
        self, lease: ControllerLease, queue_timeout: timedelta, now: datetime
    ) -> list[str]:
        return await self._db.write(lambda db: control.expire_queued(db, lease, queue_timeout, now))

    # -- writes of an attempt's holder, all fenced ---------------------------------------------------------

    async def mark_started(self, fence: Fence, container_id: str, image_id: str, now: datetime) -> bool:
        return await self._db.write(
            lambda db: attempts_sql.mark_started(db, fence, container_id, image_id, now)
        )

    async def mark_begun(self, fence: Fence, now: datetime) -> bool:
        return await self._db.write(lambda db: attempts_sql.mark_begun(db, fence, now))

    async def record_stop(
        self, fence: Fence, reason: Reason, message: str | None, now: datetime
    ) -> StopIntent | None:
        return await self._db.write(lambda db: attempts_sql.record_stop(db, fence, reason, message, now))

    async def finish_attempt(
        self, fence: Fence, verdict: JobVerdict, log: LogSeal | None, now: datetime
    ) -> bool:
        return await self._db.write(lambda db: attempts_sql.finish_attempt(db, fence, verdict, log, now))

    async def release_attempt(
        self,
        fence: Fence,
        *,
        reason: Reason,
        message: str,
        max_attempts: int,
        not_before: datetime | None,
        now: datetime,
        log: LogSeal | None = None,
    ) -> JobStatus | None:
        return await self._db.write(
            lambda db: attempts_sql.release_attempt(
                db, fence, reason, message, max_attempts, not_before, now, log
            )
        )

    # -- pruning -----------------------------------------------------------------------------------------

    async def archive_refs_in_use(self) -> set[str]:
        return await self._db.read(jobs_sql.archive_refs_in_use)

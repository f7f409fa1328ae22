"""JobRepository over a database that takes our SQL: each method is one transaction, but for those about very many
contents of files; the SQL is in the modules beside this one."""

from collections.abc import Collection, Hashable, Mapping, Sequence
from datetime import date, datetime, timedelta
from functools import partial
from typing import Protocol, TypeVar

from ci_common.blobs import BlobPlace, Pack, PackUse
from ci_common.dead_letters import DeadLetter
from ci_common.job_terms import DEFAULT_POOL, JobStatus, JobVerdict, Priority, Reason
from ci_common.models import (
    OPERATOR,
    Agent,
    AgentLease,
    AgentProfile,
    AgentState,
    APIKey,
    Attempt,
    AuditedCancel,
    AuditEvent,
    ControllerLease,
    ControllerState,
    DailyTotal,
    DocumentPage,
    Fence,
    FinishedJob,
    Idempotency,
    ImageUse,
    Job,
    JobEvent,
    JobFilter,
    JobPage,
    LimitChange,
    LogSeal,
    PoolLimit,
    QueueLimits,
    QueuePause,
    QueueView,
    Repeat,
    StopIntent,
    User,
)
from ci_common.queue_stats import QueueFigures
from ci_common.repository import JobRepository
from ci_persistence import (
    sql_accounts,
    sql_agents,
    sql_attempts,
    sql_blobs,
    sql_control,
    sql_jobs,
    sql_pause,
    sql_pools,
    sql_queue,
    sql_repeats,
    sql_retention,
    sql_totals,
)
from ci_persistence.gathered import Gathered
from ci_persistence.sql_audit import append_audit, list_audit
from ci_persistence.sql_connection import Work
from ci_persistence.sql_documents import list_documents
from ci_persistence.sql_listing import list_jobs
from ci_persistence.sql_queue_stats import queue_figures
from ci_persistence.sql_queue_view import queue_view

T = TypeVar("T")

_PACKS_AT_ONCE = 200


class Database(Protocol):
    """What runs work on a database, each piece as one transaction."""

    async def write(self, work: Work[T]) -> T:
        """The work is committed, or (it raised) nothing of it is; cancelled before its turn, it never ran."""
        ...

    async def read(self, work: Work[T]) -> T:
        """Return what the work read from one consistent snapshot."""
        ...

    async def glance(self, work: Work[T]) -> T:
        """Return the same, of work that finds a few rows by their keys: by the shortest way there is."""
        ...

    async def version(self) -> Hashable:
        """Return what is another value as soon as anybody committed, this process included."""
        ...

    async def maintain(self) -> None:
        """Housekeeping that only the controller does."""
        ...

    async def close(self) -> None:
        """Connections and threads are gone; they come back with the next use."""
        ...


class SQLJobRepository(JobRepository):
    """All of a repository but how its database is made."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._finishes: Gathered[sql_attempts.Finish, bool] = Gathered(
            lambda finish: db.write(partial(sql_attempts.finish_attempt, finish=finish)),
            lambda finishes: db.write(partial(sql_attempts.finish_together, finishes=finishes)),
        )
        self._claims: Gathered[sql_control.Claim, list[Attempt]] = Gathered(
            lambda claim: db.write(lambda db: sql_control.claim_jobs(db, claim.lease, claim.limit, claim.at)),
            lambda claims: db.write(partial(sql_control.claim_together, claims=claims)),
        )

    # -- life ------------------------------------------------------------------------------------------

    async def close(self) -> None:
        await self._db.close()

    async def instance_id(self) -> str:
        return await self._db.read(sql_control.instance_id)

    async def maintain(self) -> None:
        await self._db.maintain()

    # -- users and keys ----------------------------------------------------------------------------------

    async def create_user(self, user: User, by: str = OPERATOR) -> None:
        await self._db.write(lambda db: sql_accounts.create_user(db, user, by))

    async def get_user(self, user_id: str) -> User | None:
        return await self._db.read(lambda db: sql_accounts.get_user(db, user_id))

    async def get_user_by_email(self, email: str) -> User | None:
        return await self._db.read(lambda db: sql_accounts.get_user_by_email(db, email))

    async def list_users(self) -> list[User]:
        return await self._db.read(sql_accounts.list_users)

    async def set_user_active(
        self, user_id: str, *, active: bool, now: datetime, by: str = OPERATOR
    ) -> User | None:
        return await self._db.write(lambda db: sql_accounts.set_user_active(db, user_id, active, now, by))

    async def set_user_limits(
        self, user_id: str, change: LimitChange, now: datetime, by: str = OPERATOR
    ) -> User | None:
        return await self._db.write(lambda db: sql_accounts.set_user_limits(db, user_id, change, now, by))

    async def create_api_key(self, key: APIKey, by: str = OPERATOR) -> None:
        await self._db.write(lambda db: sql_accounts.create_api_key(db, key, by))

    async def rotate_api_key(
        self, key_id: str, successor: APIKey, keep_until: datetime, by: str = OPERATOR
    ) -> APIKey | None:
        return await self._db.write(
            lambda db: sql_accounts.rotate_api_key(db, key_id, successor, keep_until, by)
        )

    async def list_api_keys(self, user_id: str | None = None) -> list[APIKey]:
        return await self._db.read(lambda db: sql_accounts.list_api_keys(db, user_id))

    async def find_api_key(self, prefix: str) -> tuple[APIKey, User] | None:
        return await self._db.glance(lambda db: sql_accounts.find_api_key(db, prefix))

    async def revoke_api_key(self, key_id: str, now: datetime, by: str = OPERATOR) -> APIKey | None:
        return await self._db.write(lambda db: sql_accounts.revoke_api_key(db, key_id, now, by))

    async def touch_api_key(self, key_id: str, at: datetime) -> None:
        await self._db.write(lambda db: sql_accounts.touch_api_key(db, key_id, at))

    # -- the audit trail ---------------------------------------------------------------------------------

    async def record_audit(self, event: AuditEvent) -> None:
        await self._db.write(lambda db: append_audit(db, event))

    async def list_audit(self, since: datetime | None = None) -> list[AuditEvent]:
        return await self._db.read(lambda db: list_audit(db, since))

    # -- jobs, as users see them -------------------------------------------------------------------------

    async def create_job(
        self,
        job: Job,
        idempotency: Idempotency | None = None,
        limits: QueueLimits | None = None,
        packs: Collection[str] = (),
    ) -> Job:
        return await self._db.write(
            lambda db: sql_blobs.create_job_of_packs(db, job, idempotency, limits, packs)
        )

    async def repeat_jobs(
        self, user_id: str, repeats: Sequence[Repeat], now: datetime, limits: QueueLimits | None = None
    ) -> list[Job]:
        return await self._db.write(lambda db: sql_repeats.repeat_jobs(db, user_id, repeats, now, limits))

    async def check_room(self, user_id: str, limits: QueueLimits) -> None:
        await self._db.read(lambda db: sql_jobs.check_room(db, user_id, limits))

    async def find_idempotent(self, user_id: str, key: str) -> tuple[Job, str] | None:
        return await self._db.read(lambda db: sql_jobs.find_idempotent(db, user_id, key))

    async def get_job(self, job_id: str, user_id: str | None = None) -> Job | None:
        return await self._db.glance(lambda db: sql_jobs.get_job(db, job_id, user_id))

    async def list_jobs(self, job_filter: JobFilter) -> JobPage:
        return await self._db.read(lambda db: list_jobs(db, job_filter))

    async def list_documents(self, job_filter: JobFilter) -> DocumentPage:
        return await self._db.read(lambda db: list_documents(db, job_filter))

    async def version(self) -> Hashable:
        return await self._db.version()

    async def queue_position(self, job_id: str) -> int | None:
        return await self._db.read(lambda db: sql_queue.queue_position(db, job_id))

    async def queue_view(self, user_id: str, limit: int) -> QueueView:
        return await self._db.read(lambda db: queue_view(db, user_id, limit))

    async def dead_letters(self, limit: int) -> list[DeadLetter]:
        return await self._db.read(lambda db: sql_repeats.dead_letters(db, limit))

    async def dead_letter(self, job_id: str) -> DeadLetter | None:
        return await self._db.read(lambda db: sql_repeats.dead_letter(db, job_id))

    async def requeue_dead(self, again: Mapping[str, str], now: datetime, by: str = OPERATOR) -> list[Job]:
        return await self._db.write(lambda db: sql_repeats.requeue_dead(db, again, now, by))

    async def queue_figures(self, since: datetime) -> QueueFigures:
        return await self._db.read(lambda db: queue_figures(db, since))

    async def request_cancel(
        self, job_id: str, user_id: str | None, by: str, now: datetime, request_id: str | None = None
    ) -> Job:
        return await self._db.write(
            lambda db: sql_jobs.request_cancel(db, job_id, user_id, by, now, request_id)
        )

    async def set_priority(
        self,
        job_id: str,
        user_id: str | None,
        priority: Priority,
        by: str,
        now: datetime,
        request_id: str | None = None,
    ) -> Job:
        return await self._db.write(
            lambda db: sql_jobs.set_priority(db, job_id, user_id, priority, by, now, request_id)
        )

    async def add_event(self, job_id: str, event: JobEvent) -> None:
        await self._db.write(lambda db: sql_jobs.add_event(db, job_id, event))

    async def get_events(self, job_id: str, from_index: int = 0) -> list[JobEvent]:
        return await self._db.read(lambda db: sql_jobs.get_events(db, job_id, from_index))

    # -- contents of files -------------------------------------------------------------------------------

    async def find_blobs(self, user_id: str, hashes: Collection[bytes]) -> Mapping[bytes, BlobPlace]:
        found: dict[bytes, BlobPlace] = {}
        for some in sql_blobs.slices(hashes):  # one reader serves all: others have their turn between
            found |= await self._db.read(partial(sql_blobs.find_blobs, user_id=user_id, hashes=some))
        return found

    async def add_pack(self, user_id: str, pack: Pack, now: datetime) -> int:
        return await self._db.write(lambda db: sql_blobs.add_pack(db, user_id, pack, now))

    async def forgettings(self, user_id: str) -> int:
        return await self._db.read(lambda db: sql_blobs.forgettings(db, user_id))

    async def forget_packs(self, user_id: str, names: Collection[str]) -> None:
        await self._db.write(lambda db: sql_blobs.forget_packs(db, user_id, names))

    async def pack_bytes(self, user_id: str) -> int:
        return await self._db.read(lambda db: sql_blobs.pack_bytes(db, user_id))

    # -- the controller ----------------------------------------------------------------------------------

    async def take_over(
        self, holder: str, now: datetime, *, runs_on: str | None = None, runs_jobs: bool = True
    ) -> ControllerLease:
        return await self._db.write(
            lambda db: sql_control.take_over(db, holder, now, runs_on, runs_jobs=runs_jobs)
        )

    async def succeed(
        self,
        seen: ControllerState | None,
        holder: str,
        now: datetime,
        *,
        runs_on: str | None = None,
        runs_jobs: bool = True,
    ) -> ControllerLease | None:
        return await self._db.write(
            lambda db: sql_control.succeed(db, seen, holder, now, runs_on, runs_jobs=runs_jobs)
        )

    async def release(self, lease: ControllerLease, note: str, now: datetime) -> bool:
        return await self._db.write(lambda db: sql_control.release(db, lease, note, now))

    async def heartbeat(self, lease: ControllerLease, now: datetime, note: str | None = None) -> bool:
        return await self._db.write(lambda db: sql_control.heartbeat(db, lease, now, note))

    async def controller_state(self) -> ControllerState | None:
        return await self._db.read(sql_control.controller_state)

    async def pause_queue(self, reason: str | None, now: datetime, by: str = OPERATOR) -> QueuePause:
        return await self._db.write(lambda db: sql_pause.pause_queue(db, reason, now, by))

    async def resume_queue(self, now: datetime, by: str = OPERATOR) -> bool:
        return await self._db.write(lambda db: sql_pause.resume_queue(db, now, by))

    async def queue_pause(self) -> QueuePause | None:
        return await self._db.read(sql_pause.queue_pause)

    async def count_queued(self, now: datetime, pool: str = DEFAULT_POOL) -> int:
        return await self._db.read(lambda db: sql_control.count_queued(db, now, pool))

    async def claim_jobs(self, lease: ControllerLease, limit: int, now: datetime) -> list[Attempt]:
        return await self._claims.answer(sql_control.Claim(lease, limit, now))

    async def open_attempts(self, agent_id: str | None = None) -> list[Attempt]:
        return await self._db.read(lambda db: sql_control.open_attempts(db, agent_id))

    async def ended_attempts(
        self, containers: Collection[str], agent_id: str | None = None
    ) -> Mapping[str, tuple[str, int]]:
        return await self._db.read(lambda db: sql_control.ended_attempts(db, containers, agent_id))

    async def expire_queued(
        self,
        lease: ControllerLease,
        queue_timeout: timedelta,
        now: datetime,
        lenience: timedelta = timedelta(0),
    ) -> list[str]:
        return await self._db.write(
            lambda db: sql_control.expire_queued(db, lease, queue_timeout, now, lenience)
        )

    # -- agents ------------------------------------------------------------------------------------------

    async def register_agent(self, key_id: str, profile: AgentProfile, now: datetime) -> Agent:
        return await self._db.write(lambda db: sql_agents.register_agent(db, key_id, profile, now))

    async def find_agent(self, agent_id: str) -> Agent | None:
        return await self._db.read(lambda db: sql_agents.find_agent(db, agent_id))

    async def list_agents(self) -> list[Agent]:
        return await self._db.read(sql_agents.list_agents)

    async def pool_heartbeats(self) -> Mapping[str, datetime]:
        return await self._db.read(sql_agents.pool_heartbeats)

    async def limit_pool(
        self, pool: str, max_running: int | None, now: datetime, by: str = OPERATOR
    ) -> PoolLimit | None:
        return await self._db.write(lambda db: sql_pools.limit_pool(db, pool, max_running, now, by))

    async def pool_limits(self) -> list[PoolLimit]:
        return await self._db.read(sql_pools.pool_limits)

    async def full_pools(self) -> tuple[PoolLimit, ...]:
        return await self._db.read(sql_pools.full_pools)

    async def heartbeat_agent(
        self, lease: AgentLease, note: str | None, disk_free: int | None, now: datetime
    ) -> Agent | None:
        return await self._db.write(lambda db: sql_agents.heartbeat_agent(db, lease, note, disk_free, now))

    async def set_agent_state(
        self, agent_id: str, state: AgentState, now: datetime, by: str = OPERATOR
    ) -> Agent | None:
        return await self._db.write(lambda db: sql_agents.set_agent_state(db, agent_id, state, now, by))

    async def deregister_agent(self, lease: AgentLease, now: datetime) -> bool:
        return await self._db.write(lambda db: sql_agents.deregister_agent(db, lease, now))

    async def claim_for_agent(self, lease: AgentLease, limit: int, now: datetime) -> list[Attempt]:
        return await self._db.write(lambda db: sql_agents.claim_for_agent(db, lease, limit, now))

    async def expire_agent(
        self, lease: ControllerLease | None, agent: Agent, max_attempts: int, now: datetime
    ) -> list[str]:
        return await self._db.write(lambda db: sql_agents.expire_agent(db, lease, agent, max_attempts, now))

    # -- writes of an attempt's holder, all fenced ---------------------------------------------------------

    async def mark_started(
        self, fence: Fence, container_id: str, image_id: str, now: datetime, cached: bool | None = None
    ) -> bool:
        return await self._db.write(
            lambda db: sql_attempts.mark_started(db, fence, container_id, image_id, now, cached)
        )

    async def mark_begun(self, fence: Fence, now: datetime) -> bool:
        return await self._db.write(lambda db: sql_attempts.mark_begun(db, fence, now))

    async def record_stop(
        self, fence: Fence, reason: Reason, message: str | None, now: datetime
    ) -> StopIntent | None:
        return await self._db.write(lambda db: sql_attempts.record_stop(db, fence, reason, message, now))

    async def finish_attempt(
        self, fence: Fence, verdict: JobVerdict, log: LogSeal | None, now: datetime
    ) -> bool:
        return await self._finishes.answer(sql_attempts.Finish(fence, verdict, log, now))

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
            lambda db: sql_attempts.release_attempt(
                db, fence, reason, message, max_attempts, not_before, now, log
            )
        )

    # -- pruning -----------------------------------------------------------------------------------------

    async def finished_jobs(self) -> list[FinishedJob]:
        return await self._db.read(sql_retention.finished_jobs)

    async def mark_pruned(
        self,
        lease: ControllerLease | None,
        *,
        archives: Collection[str],
        logs: Collection[str],
        now: datetime,
    ) -> bool:
        return await self._db.write(lambda db: sql_retention.mark_pruned(db, lease, archives, logs, now))

    async def remove_jobs(self, lease: ControllerLease | None, job_ids: Sequence[str]) -> int:
        return await self._db.write(lambda db: sql_retention.remove_jobs(db, lease, job_ids))

    async def audited_cancels(self) -> list[AuditedCancel]:
        return await self._db.read(sql_retention.audited_cancels)

    async def remove_cancels(self, lease: ControllerLease | None, ids: Sequence[int]) -> int:
        return await self._db.write(lambda db: sql_retention.remove_cancels(db, lease, ids))

    async def existing_jobs(self, job_ids: Collection[str]) -> set[str]:
        return await self._db.read(lambda db: sql_retention.existing_jobs(db, job_ids))

    async def archive_refs_in_use(self) -> set[str]:
        return await self._db.read(sql_retention.archive_refs_in_use)

    async def packs(self) -> list[PackUse]:
        return await self._db.read(sql_blobs.packs)

    async def remove_packs(self, lease: ControllerLease | None, names: Sequence[str]) -> list[str]:
        removed: list[str] = []
        for start in range(0, len(names), _PACKS_AT_ONCE):
            some = names[start : start + _PACKS_AT_ONCE]
            while await self._db.write(partial(sql_blobs.forget_some, lease=lease, names=some)):
                pass  # in short transactions: everybody else, our own lease too, waits for each of them
            removed += await self._db.write(partial(sql_blobs.remove_packs, lease=lease, names=some))
        return removed

    async def known_packs(self, names: Collection[str]) -> set[str]:
        return await self._db.read(lambda db: sql_blobs.known_packs(db, names))

    async def image_uses(self, agent_id: str | None = None) -> Mapping[str, ImageUse]:
        return await self._db.read(lambda db: sql_attempts.image_uses(db, agent_id))

    async def daily_totals(self, since: date | None = None) -> list[DailyTotal]:
        return await self._db.read(lambda db: sql_totals.daily_totals(db, since))

"""The seam to the database: what any implementation must do, said once. Each docstring says what holds afterwards.

Every method is one transaction that finishes or rolls back whole, even when its caller is cancelled.
Every write about an attempt names a `Fence` and affects nothing when somebody else acted meanwhile
(returns False or None: stop, do not overwrite). Owners are parameters of the query: what is somebody
else's looks like what does not exist. Drivers' errors come out as `ci_common.errors`.
"""

from abc import ABC, abstractmethod
from collections.abc import Collection, Hashable, Mapping, Sequence
from datetime import date, datetime, timedelta

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


class JobRepository(ABC):
    """Users, keys, jobs, attempts and events, whatever the database."""

    # -- life ------------------------------------------------------------------------------------------

    @abstractmethod
    async def initialize(self) -> None:
        """The schema is there and current: made or migrated if need be (controller and ci-admin only).

        Raises SchemaTooNew, DatabaseCorrupt.
        """

    @abstractmethod
    async def check(self) -> None:
        """The database answers and has the schema of this release; raises SchemaMissing, SchemaTooNew, …

        A server calls it; it never creates anything and recovers by itself when the schema appears.
        """

    @abstractmethod
    async def close(self) -> None:
        """Every connection is closed; calling it twice is harmless."""

    @abstractmethod
    async def instance_id(self) -> str:
        """Return the identity of this installation, made with the schema: the scope of its containers."""

    @abstractmethod
    async def maintain(self) -> None:
        """Housekeeping only the controller does, such as checkpointing a write-ahead log."""

    @abstractmethod
    async def rewrite(self) -> None:
        """The database takes no more room than what is in it, and can give room back bit by bit from now on.

        An operator's decision: writers wait meanwhile.
        """

    # -- users and keys ----------------------------------------------------------------------------------

    @abstractmethod
    async def create_user(self, user: User, by: str = OPERATOR) -> None:
        """The user exists; raises AlreadyExists for an e-mail address (compared without case) in use.

        This and every other change of users and keys, and each cancel, writes its row of the audit trail in
        the same transaction; `by` is who acts.
        """

    @abstractmethod
    async def get_user(self, user_id: str) -> User | None:
        """Return the user with that id."""

    @abstractmethod
    async def get_user_by_email(self, email: str) -> User | None:
        """Return the user with that e-mail address, compared without case."""

    @abstractmethod
    async def list_users(self) -> list[User]:
        """Return all users, oldest first."""

    @abstractmethod
    async def set_user_active(
        self, user_id: str, *, active: bool, now: datetime, by: str = OPERATOR
    ) -> User | None:
        """The user is (in)active and is returned. Deactivating also ends the user's jobs in the same
        transaction: queued ones are cancelled, a cancel of claimed and running ones is requested."""

    @abstractmethod
    async def set_user_limits(
        self, user_id: str, change: LimitChange, now: datetime, by: str = OPERATOR
    ) -> User | None:
        """What the change names (one limit at least) holds for the user from now on, who is returned; the others are
        as somebody else may just have set them. Jobs keep the priority that they have."""

    @abstractmethod
    async def create_api_key(self, key: APIKey, by: str = OPERATOR) -> None:
        """The key can be used from the next request on; raises NotFound for an unknown owner."""

    @abstractmethod
    async def rotate_api_key(
        self, key_id: str, successor: APIKey, keep_until: datetime, by: str = OPERATOR
    ) -> APIKey | None:
        """The successor can be used, and the key that it replaces until then at most, which is returned.

        None if there is no such key. Raises Conflict for one that cannot be used any more, for an inactive
        owner, and where the owner has two usable keys of that name already.
        """

    @abstractmethod
    async def list_api_keys(self, user_id: str | None = None) -> list[APIKey]:
        """Return the keys of a user, or all, oldest first."""

    @abstractmethod
    async def find_api_key(self, prefix: str) -> tuple[APIKey, User] | None:
        """Return the key with that public part and its owner: comparing hash and judging it are the caller's."""

    @abstractmethod
    async def revoke_api_key(self, key_id: str, now: datetime, by: str = OPERATOR) -> APIKey | None:
        """The key cannot be used from the next request on; returns it, None if there is no such key."""

    @abstractmethod
    async def touch_api_key(self, key_id: str, at: datetime) -> None:
        """`last_used_at` is at least that; callers coalesce."""

    # -- the audit trail ---------------------------------------------------------------------------------

    @abstractmethod
    async def record_audit(self, event: AuditEvent) -> None:
        """The event stands in the trail: for acts that are no transaction, such as a backup."""

    @abstractmethod
    async def list_audit(self, since: datetime | None = None) -> list[AuditEvent]:
        """Return the trail from that time on, or all of it, oldest first. Pruning takes cancels only."""

    # -- jobs, as users see them -------------------------------------------------------------------------

    @abstractmethod
    async def create_job(
        self,
        job: Job,
        idempotency: Idempotency | None = None,
        limits: QueueLimits | None = None,
        packs: Collection[str] = (),
    ) -> Job:
        """The job is queued and durable. The loser of two equal idempotency keys gets the winner's job.

        Its archive needs those packs, by name, which stay for as long as it is kept. Raises IdempotencyConflict
        when the key stood for something else, Unauthorized when the owner is no longer active, PriorityNotAllowed
        when the owner may not use the priority, MissingBlobs when a pack is not there (or not the owner's), and what
        `check_room` raises: however many submit at once, the limits hold.
        """

    @abstractmethod
    async def repeat_jobs(
        self, user_id: str, repeats: Sequence[Repeat], now: datetime, limits: QueueLimits | None = None
    ) -> list[Job]:
        """Each of them is a queued job with the archive of an earlier one of that user's, or none is; returns them.

        Raises JobNotFound for a source that is not the user's, ArchivePruned, and what `create_job` raises.
        """

    @abstractmethod
    async def check_room(self, user_id: str, limits: QueueLimits) -> None:
        """The queue has room for one more job of that user now.

        Raises TooManyRequests when the user has too many jobs in it, QueueFull when everybody together has.
        """

    @abstractmethod
    async def find_idempotent(self, user_id: str, key: str) -> tuple[Job, str] | None:
        """Return the job and the fingerprint an idempotency key of that user stands for."""

    @abstractmethod
    async def get_job(self, job_id: str, user_id: str | None = None) -> Job | None:
        """Return the job; with `user_id`, only if it is that user's."""

    @abstractmethod
    async def list_jobs(self, job_filter: JobFilter) -> JobPage:
        """Return the newest jobs first (`created_at`, then id); raises InvalidRequest for a bad cursor."""

    @abstractmethod
    async def list_documents(self, job_filter: JobFilter) -> DocumentPage:
        """Return what `list_jobs` returns, as the JSON of the API; a page that would be many bytes has fewer jobs."""

    @abstractmethod
    async def version(self) -> Hashable:
        """Return a value that is another one as soon as anything was committed, by whatever process."""

    @abstractmethod
    async def queue_position(self, job_id: str) -> int | None:
        """Return how many queued jobs come before this one as things stand, None if it is not queued.

        Jobs that end or come meanwhile change the order: users take turns."""

    @abstractmethod
    async def queue_view(self, user_id: str, limit: int) -> QueueView:
        """Return the places of up to `limit` of that user's queued jobs, the first ones, and what decides on them."""

    @abstractmethod
    async def dead_letters(self, limit: int) -> list[DeadLetter]:
        """Return everybody's dead-lettered jobs, the one that ended last first, without their attempts."""

    @abstractmethod
    async def dead_letter(self, job_id: str) -> DeadLetter | None:
        """Return the dead-lettered job of that id with its attempts; None: there is none."""

    @abstractmethod
    async def requeue_dead(self, again: Mapping[str, str], now: datetime, by: str = OPERATOR) -> list[Job]:
        """For each dead-lettered job a new one (`again` has its id) is queued with the same archive, options and owner.

        All of them or none; they are returned, by the ids of the old ones. An operator's act: no limit holds it up, and
        it stands in the audit trail. Raises JobNotFound, ArchivePruned, and Conflict for a job that is not
        dead-lettered, was repeated already, or whose owner is deactivated.
        """

    @abstractmethod
    async def queue_figures(self, since: datetime) -> QueueFigures:
        """Return how many of everybody's jobs stand where, and what became of those that ended after that time.

        Waits and runs are those of the 10 000 that ended last at most.
        """

    @abstractmethod
    async def request_cancel(
        self, job_id: str, user_id: str | None, by: str, now: datetime, request_id: str | None = None
    ) -> Job:
        """A queued job is cancelled; of a claimed or running one the cancel is requested (again: no change).

        Raises JobNotFound, JobFinished.
        """

    @abstractmethod
    async def set_priority(
        self,
        job_id: str,
        user_id: str | None,
        priority: Priority,
        by: str,
        now: datetime,
        request_id: str | None = None,
    ) -> Job:
        """The job, which is not terminal, has that priority from the next claim on, and is returned.

        With `user_id`, only if it is that user's and the user may use the priority; without, it is an operator's
        act and stands in the audit trail. Raises JobNotFound, JobFinished, PriorityNotAllowed, Conflict for an
        owner who has changed it very often: each change is a line of the timeline.
        """

    @abstractmethod
    async def add_event(self, job_id: str, event: JobEvent) -> None:
        """The event stands at the end of the job's timeline.

        For other programs' notes, as the first design asked; our own events are written by the transactions
        that they tell of.
        """

    @abstractmethod
    async def get_events(self, job_id: str, from_index: int = 0) -> list[JobEvent]:
        """Return the timeline from that index on."""

    # -- contents of files, each under the hash of its bytes -----------------------------------------------

    @abstractmethod
    async def find_blobs(self, user_id: str, hashes: Collection[bytes]) -> Mapping[bytes, BlobPlace]:
        """Return where those of the contents lie that this user has stored; nobody else's are ever told of."""

    @abstractmethod
    async def add_pack(self, user_id: str, pack: Pack, now: datetime) -> int:
        """What is in the pack can be found from now on; returns how much of it the user had not stored already.

        0: nothing, and the pack is not known afterwards. Raises Unauthorized when the owner is no longer active.
        """

    @abstractmethod
    async def forgettings(self, user_id: str) -> int:
        """Return a number that stays the same while all that `find_blobs` told of this user holds.

        What is found after it was read is found as long as it is the same.
        """

    @abstractmethod
    async def forget_packs(self, user_id: str, names: Collection[str]) -> None:
        """What lies in those packs of the user counts as missing from now on; jobs that need them keep them."""

    @abstractmethod
    async def pack_bytes(self, user_id: str) -> int:
        """Return how many bytes the user's packs take, with the rows about them."""

    # -- the controller ----------------------------------------------------------------------------------

    @abstractmethod
    async def take_over(
        self, holder: str, now: datetime, *, runs_on: str | None = None, runs_jobs: bool = True
    ) -> ControllerLease:
        """The caller is the controller: the epoch rose and every open attempt that no agent holds got a *new token*,
        so its predecessor's writes affect nothing and it can finish what its predecessor claimed."""

    @abstractmethod
    async def succeed(
        self,
        seen: ControllerState | None,
        holder: str,
        now: datetime,
        *,
        runs_on: str | None = None,
        runs_jobs: bool = True,
    ) -> ControllerLease | None:
        """As `take_over`, if the controller is still what was seen of it; None: it was heard of since, or somebody else
        succeeded it. Of several that saw the same exactly one gets a lease."""

    @abstractmethod
    async def release(self, lease: ControllerLease, note: str, now: datetime) -> bool:
        """The lease is given up, and nobody's until the next one takes over; the note says so until then. False: it was
        somebody else's already."""

    @abstractmethod
    async def heartbeat(self, lease: ControllerLease, now: datetime, note: str | None = None) -> bool:
        """The heartbeat is renewed; False: somebody took over, stop at once."""

    @abstractmethod
    async def controller_state(self) -> ControllerState | None:
        """Return what is known of the controller; None: none ever ran."""

    @abstractmethod
    async def count_standing_by(self) -> int:
        """Return how many more controllers run and wait for the end of that one."""

    @abstractmethod
    async def pause_queue(self, reason: str | None, now: datetime, by: str = OPERATOR) -> QueuePause:
        """Nothing is claimed until `resume_queue`, and the pause is returned: the one in force, if there was one."""

    @abstractmethod
    async def resume_queue(self, now: datetime, by: str = OPERATOR) -> bool:
        """Jobs are claimed again, and the wait that `expire_queued` judges begins anew; False: there was no pause."""

    @abstractmethod
    async def queue_pause(self) -> QueuePause | None:
        """Return the pause in force."""

    @abstractmethod
    async def count_queued(self, now: datetime, pool: str = DEFAULT_POOL) -> int:
        """Return how many jobs of the pool could be claimed now (queued, their back-off over, within the
        `max_running` of users and pool): none while the queue is paused."""

    @abstractmethod
    async def claim_jobs(self, lease: ControllerLease, limit: int, now: datetime) -> list[Attempt]:
        """Up to `limit` queued jobs of the default pool are claimed: attempt + 1, a fresh random token. The most urgent
        class comes first.
        Within it users take turns: first those with the fewest open attempts, then who was claimed from longest ago;
        of each the oldest job. No user and no pool gets more than `max_running` open attempts.

        Jobs with a cancel request are never claimed. Empty when the lease is stale, and while the queue is paused.
        """

    @abstractmethod
    async def open_attempts(self, agent_id: str | None = None) -> list[Attempt]:
        """Return every attempt that is claimed or running and that this agent holds (None: that the controller does),
        with the job as it is now (cancel requests included), in one consistent read."""

    @abstractmethod
    async def ended_attempts(
        self, containers: Collection[str], agent_id: str | None = None
    ) -> Mapping[str, tuple[str, int]]:
        """Return the attempts (job id, number) of that holder (as in `open_attempts`) that were recorded in these
        containers and have ended, by container."""

    @abstractmethod
    async def expire_queued(
        self,
        lease: ControllerLease,
        queue_timeout: timedelta,
        now: datetime,
        lenience: timedelta = timedelta(0),
    ) -> list[str]:
        """Jobs queued for longer than that, or than they were to wait themselves, are failed with `queue_timeout`.

        Returns their ids. All have so much longer as the lenience says; none is failed while the queue is paused.
        """

    # -- agents ------------------------------------------------------------------------------------------

    @abstractmethod
    async def register_agent(self, key_id: str, profile: AgentProfile, now: datetime) -> Agent:
        """The key's agent is there as it describes itself, under a new epoch, and its open attempts have *new tokens*:
        whoever used the key before writes nothing any more. What an operator decided about it stays.

        Raises NotFound for an unknown key, Unauthorized for one that was revoked, Conflict for another pool than at
        first.
        """

    @abstractmethod
    async def find_agent(self, agent_id: str) -> Agent | None:
        """Return the agent that registered with the key of that id."""

    @abstractmethod
    async def list_agents(self) -> list[Agent]:
        """Return every agent, by pool and name."""

    @abstractmethod
    async def pool_heartbeats(self) -> Mapping[str, datetime]:
        """Return when an agent that claims was last heard of, by pool; a pool without one is not in it."""

    @abstractmethod
    async def limit_pool(
        self, pool: str, max_running: int | None, now: datetime, by: str = OPERATOR
    ) -> PoolLimit | None:
        """No more than so many jobs of the pool are claimed or running from now on, and that limit is returned; None:
        any number. What runs goes on."""

    @abstractmethod
    async def pool_limits(self) -> list[PoolLimit]:
        """Return the limits in force, by pool."""

    @abstractmethod
    async def full_pools(self) -> tuple[PoolLimit, ...]:
        """Return those of them that keep jobs from being claimed."""

    @abstractmethod
    async def heartbeat_agent(
        self, lease: AgentLease, note: str | None, disk_free: int | None, now: datetime
    ) -> Agent | None:
        """The leases of all that the agent holds are renewed; None: it is removed, or was registered anew."""

    @abstractmethod
    async def set_agent_state(
        self, agent_id: str, state: AgentState, now: datetime, by: str = OPERATOR
    ) -> Agent | None:
        """An operator's decision about the agent stands, which is returned. Removing it revokes its key."""

    @abstractmethod
    async def deregister_agent(self, lease: AgentLease, now: datetime) -> bool:
        """The agent is removed until it registers again; False: it was. Raises Conflict while it holds a job.

        One that an operator drained stays drained: it is no way round that to leave and come back.
        """

    @abstractmethod
    async def claim_for_agent(self, lease: AgentLease, limit: int, now: datetime) -> list[Attempt]:
        """As `claim_jobs`, of the agent's pool and no more than it has slots. Empty unless it is active."""

    @abstractmethod
    async def expire_agent(
        self, lease: ControllerLease | None, agent: Agent, max_attempts: int, now: datetime
    ) -> list[str]:
        """What the agent holds is given back with `agent_lost`, as by `release_attempt`; returns the ids of the jobs.
        Empty and no change: it was heard of since (its beats or its epoch are others), or the lease is stale.
        What somebody is just changing may be left for the next time.

        Without a lease it is an operator's own doing.
        """

    # -- writes of an attempt's holder, all fenced ---------------------------------------------------------

    @abstractmethod
    async def mark_started(
        self, fence: Fence, container_id: str, image_id: str, now: datetime, cached: bool | None = None
    ) -> bool:
        """The job is running in that container and deadlines count from now; again with the same
        container: no change, True. `cached`: whether the image has the dependencies of an earlier job."""

    @abstractmethod
    async def mark_begun(self, fence: Fence, now: datetime) -> bool:
        """The user's own code began to run: from here on the attempt counts towards `max_attempts`."""

    @abstractmethod
    async def record_stop(
        self, fence: Fence, reason: Reason, message: str | None, now: datetime
    ) -> StopIntent | None:
        """A decision to end the attempt stands, and is returned: the first one wins, whoever asks again.
        None: the fence is stale."""

    @abstractmethod
    async def finish_attempt(
        self, fence: Fence, verdict: JobVerdict, log: LogSeal | None, now: datetime
    ) -> bool:
        """The attempt has ended and the job is terminal with that verdict and that log."""

    @abstractmethod
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
        """The attempt has ended without a verdict, and the job is what is returned: queued again (not
        before that time); cancelled, if a cancel was requested; dead-lettered with `reason`, when this
        attempt had begun and so used up the last of `max_attempts`, or of as many as its submitter said, and
        when it was the last of `MOST_UNBEGUN` attempts of agents that never began. None: the fence is stale."""

    # -- pruning -----------------------------------------------------------------------------------------

    @abstractmethod
    async def finished_jobs(self) -> list[FinishedJob]:
        """Return every terminal job, the one that ended last first."""

    @abstractmethod
    async def mark_pruned(
        self,
        lease: ControllerLease | None,
        *,
        archives: Collection[str],
        logs: Collection[str],
        now: datetime,
    ) -> bool:
        """The archives and the logs of those jobs (by id, if they are terminal) count as gone from now on, and
        only then may the files go. An earlier mark stays. False and no change: the lease is stale.

        Without a lease it is an operator's own doing.
        """

    @abstractmethod
    async def remove_jobs(self, lease: ControllerLease | None, job_ids: Sequence[str]) -> int:
        """Those of the jobs that are terminal and marked as pruned in both respects are gone, with their
        timelines and idempotency keys; returns how many. The daily totals stay. 0: nothing, or a stale lease.
        """

    @abstractmethod
    async def audited_cancels(self) -> list[AuditedCancel]:
        """Return the cancels in the audit trail, the latest first."""

    @abstractmethod
    async def remove_cancels(self, lease: ControllerLease | None, ids: Sequence[int]) -> int:
        """Those rows of the audit trail are gone that tell of cancels, and no others; returns how many.
        0: nothing, or a stale lease."""

    @abstractmethod
    async def existing_jobs(self, job_ids: Collection[str]) -> set[str]:
        """Return those of the ids that are jobs."""

    @abstractmethod
    async def archive_refs_in_use(self) -> set[str]:
        """Return the archive references of all jobs whose archive is not marked as pruned."""

    @abstractmethod
    async def packs(self) -> list[PackUse]:
        """Return every pack, the one used last first; of several used at the same time the newest."""

    @abstractmethod
    async def remove_packs(self, lease: ControllerLease | None, names: Sequence[str]) -> list[str]:
        """What lies in those packs counts as missing. Those that no job needs are gone and returned, and only then
        may their files go. Empty and no change: the lease is stale.
        """

    @abstractmethod
    async def known_packs(self, names: Collection[str]) -> set[str]:
        """Return those of the names that are packs."""

    @abstractmethod
    async def image_uses(self, agent_id: str | None = None) -> Mapping[str, ImageUse]:
        """Return when that holder (as in `open_attempts`) last made containers from which image, by its id; of jobs
        that were pruned nothing."""

    @abstractmethod
    async def daily_totals(self, since: date | None = None) -> list[DailyTotal]:
        """Return what ended from that day (UTC) on, the latest day first, jobs pruned since included."""

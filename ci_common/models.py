"""Domain models: users, keys, jobs, attempts and what may happen to them. Frozen data, no I/O, no SQL."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from enum import StrEnum
from types import MappingProxyType
from typing import Any, Literal

from ci_common.job_terms import DEFAULT_POOL, JobOptions, JobStatus, Priority, Reason


class Role(StrEnum):
    """What a user is to the installation."""

    USER = "user"
    ADMIN = "admin"


class Scope(StrEnum):
    """What an API key may be used for."""

    SUBMIT = "submit"
    READ = "read"
    ADMIN = "admin"
    AGENT = "agent"


DEFAULT_SCOPES = frozenset({Scope.SUBMIT, Scope.READ})

OPERATOR = "operator"  # who acts where no name is known


class AuditAction(StrEnum):
    """What is written down beside who did it: cancels for as long as the operator says, all else for good."""

    USER_CREATE = "user.create"
    USER_ACTIVATE = "user.activate"
    USER_DEACTIVATE = "user.deactivate"
    USER_SET = "user.set"
    KEY_CREATE = "key.create"
    KEY_ROTATE = "key.rotate"
    KEY_REVOKE = "key.revoke"
    JOB_CANCEL = "job.cancel"
    JOB_PRIORITY = "job.priority"
    JOB_REQUEUE = "job.requeue"
    AGENT_DRAIN = "agent.drain"
    AGENT_RESUME = "agent.resume"
    AGENT_REMOVE = "agent.remove"
    POOL_LIMIT = "pool.limit"
    QUEUE_PAUSE = "queue.pause"
    QUEUE_RESUME = "queue.resume"
    BACKUP = "database.backup"
    RESTORE = "database.restore"
    MOVE = "database.move"
    PRUNE = "database.prune"
    NETWORK_REMOVE = "network.remove"


@dataclass(frozen=True, slots=True)
class AuditEvent:
    """One line of the audit trail; it never holds a secret."""

    at: datetime
    actor: str  # an e-mail address, or "operator (<login name>)"
    action: AuditAction
    subject: str  # the id of what it was done to
    details: Mapping[str, str | int | float | bool | None] = field(
        default_factory=lambda: MappingProxyType({})
    )
    request_id: str | None = None  # of the HTTP request; None where a command did it


@dataclass(frozen=True, slots=True)
class AuditedCancel:
    """What pruning must know of a cancel in the audit trail: anybody may write as many as they like."""

    id: int
    at: datetime
    actor: str


@dataclass(frozen=True, slots=True)
class UserLimits:
    """What an operator lets a user's jobs take of the queue."""

    max_priority: Priority = Priority.NORMAL  # the most urgent class that they may have
    max_running: int | None = None  # jobs that are claimed or running at the same time; None: any number

    def __post_init__(self) -> None:
        assert self.max_running is None or self.max_running > 0, "who may run nothing is deactivated"


@dataclass(frozen=True, slots=True)
class LimitChange:
    """What is to be different of a user's limits; None: nothing."""

    max_priority: Priority | None = None
    max_running: int | Literal["none"] | None = None  # "none": any number

    @classmethod
    def to(cls, limits: UserLimits) -> "LimitChange":
        """Return what makes any limits these."""
        return cls(limits.max_priority, limits.max_running or "none")


@dataclass(frozen=True, slots=True)
class User:
    """A person or a machine that owns jobs."""

    id: str
    name: str
    email: str
    created_at: datetime
    is_active: bool = True
    role: Role = Role.USER
    limits: UserLimits = UserLimits()


@dataclass(frozen=True, slots=True)
class APIKey:
    """An issued key as it is stored: only the hash of the secret, never the secret."""

    id: str
    user_id: str
    name: str
    key_hash: str  # SHA-256 of the whole key, hex
    created_at: datetime
    prefix: str = ""  # the public part, `ci_<id>`: unique, what it is looked up by and shown as
    scopes: frozenset[Scope] = DEFAULT_SCOPES
    expires_at: datetime | None = None
    last_used_at: datetime | None = None
    is_active: bool = True

    def is_usable(self, now: datetime) -> bool:
        """Tell whether a request with this key may pass at that time."""
        return self.is_active and (self.expires_at is None or now < self.expires_at)


@dataclass(frozen=True, slots=True)
class Job:
    """One submission and, once it is terminal, its verdict."""

    id: str
    user_id: str
    created_at: datetime
    archive_ref: str  # opaque to everyone but the archive store
    status: JobStatus = JobStatus.QUEUED
    options: JobOptions = field(default_factory=JobOptions)
    attempt: int = 0  # rises with each claim; the first is 1
    success: bool | None = None  # set exactly when the job is terminal
    exit_code: int | None = None  # pytest's own, where pytest ran to an end
    reason: Reason | None = None
    message: str | None = None  # one sentence of evidence for the reason
    start_time: datetime | None = None  # of the current attempt's container
    end_time: datetime | None = None
    not_before: datetime | None = None  # back-off after an attempt that was released
    cancel_requested_at: datetime | None = None
    cancel_requested_by: str | None = None  # an e-mail address, or "operator (<login name>)"
    image_id: str | None = None  # what the container of the current attempt was made from
    image_cached: bool | None = None  # whether it was an environment kept from an earlier job
    log_size: int | None = None  # bytes of the sealed log of the final attempt
    log_sha256: str | None = None
    log_truncated: bool | None = None  # `LogSeal.truncated` of that log
    repeat_of: str | None = None  # the earlier job whose archive it took over
    log_pruned_at: datetime | None = None  # since then there is no log any more, of whatever attempt


@dataclass(frozen=True, slots=True)
class JobEvent:
    """One line of a job's timeline. Output bytes are never events: they are in the log."""

    type: str  # submitted, claimed, running, cancel_requested, released, completed, failed …
    timestamp: datetime
    data: Mapping[str, str | int | float | bool | None] = field(default_factory=lambda: MappingProxyType({}))
    index: int = -1  # position in the job's timeline, given by the repository


@dataclass(frozen=True, slots=True)
class Fence:
    """Who may write about an attempt: every such write names all three and affects nothing when they are stale."""

    job_id: str
    attempt: int
    token: str


@dataclass(frozen=True, slots=True)
class StopIntent:
    """Why and when we decided to end an attempt, recorded before the first signal; the first one wins."""

    reason: Reason
    at: datetime
    message: str | None = None


@dataclass(frozen=True, slots=True)
class Attempt:
    """One try at running a job, as the holder of its claim sees it."""

    fence: Fence
    job: Job
    claimed_at: datetime
    container_id: str | None = None
    image_id: str | None = None
    started_at: datetime | None = None  # deadlines count from here, never from Docker's clock
    begun_at: datetime | None = None  # the user's own code began to run: from here on the attempt is charged
    stop: StopIntent | None = None


@dataclass(frozen=True, slots=True)
class LogSeal:
    """What the finished log of an attempt is: its length and the SHA-256 of its bytes."""

    size: int
    sha256: str
    truncated: bool = False  # may lack output that was sent to us; what the log limit stops is not sent


@dataclass(frozen=True, slots=True)
class ControllerLease:
    """The right to act as the one controller: epoch rises with every take-over."""

    epoch: int
    holder: str


# The time without a heartbeat after which the controller counts as gone, and another one may take over.
CONTROLLER_GONE_AFTER = timedelta(seconds=15)


# How long an agent is believed to hold its jobs without a heartbeat, where the operator says nothing else.
AGENT_LEASE = timedelta(seconds=30)
MAX_ATTEMPTS = 3  # likewise: how often infrastructure may lose a job that had begun


class AgentState(StrEnum):
    """What was decided about an agent."""

    ACTIVE = "active"
    DRAINING = "draining"  # finishes what it holds and claims no more
    REMOVED = "removed"  # holds nothing; its attempts are lost


class AgentHealth(StrEnum):
    """What is seen of an agent."""

    HEALTHY = "healthy"
    DEGRADED = "degraded"  # says that something is wrong, or has been silent for longer than it should be
    LOST = "lost"  # silent for longer than its lease


@dataclass(frozen=True, slots=True)
class AgentProfile:
    """What an agent says of itself when it registers."""

    name: str
    pool: str = DEFAULT_POOL
    slots: int = 1  # jobs that it runs at the same time
    labels: tuple[str, ...] = ()
    version: str = ""


@dataclass(frozen=True, slots=True)
class AgentLease:
    """The right to act as that agent: the epoch rises with every registration."""

    agent_id: str  # the id of the key that it registered with
    epoch: int


@dataclass(frozen=True, slots=True)
class Agent:
    """A runner on another host."""

    lease: AgentLease
    profile: AgentProfile
    registered_at: datetime
    last_heartbeat: datetime
    state: AgentState = AgentState.ACTIVE
    beats: int = 0  # rises with every heartbeat: what its lease is judged by, since clocks step
    note: str | None = None  # its own word on what is wrong
    disk_free: int | None = None  # bytes, where its containers write
    jobs_completed: int = 0
    jobs_running: int = 0  # attempts that it holds

    @property
    def id(self) -> str:
        return self.lease.agent_id

    def health(self, now: datetime, lease: timedelta) -> AgentHealth:
        """Return how it looks at that time; a silence of a third of the lease is one heartbeat too many."""
        silence = now - self.last_heartbeat
        if self.state is AgentState.REMOVED or silence > lease:
            return AgentHealth.LOST
        return AgentHealth.DEGRADED if self.note or silence > lease / 3 else AgentHealth.HEALTHY


@dataclass(frozen=True, slots=True)
class ControllerState:
    """What others may know about the controller; the heartbeat is how they see it live."""

    epoch: int
    holder: str
    heartbeat_at: datetime
    note: str | None = None  # e.g. "docker engine does not answer": shown by /ready and to waiting clients
    is_released: bool = False  # it ended of its own accord
    runs_on: str | None = (
        None  # the engine that has its containers; None: it runs no jobs itself, or could not tell
    )
    runs_jobs: bool = True  # those of the default pool; False: agents alone do

    def is_alive(self, now: datetime) -> bool:
        """Tell whether its last heartbeat is recent."""
        return now - self.heartbeat_at <= CONTROLLER_GONE_AFTER


@dataclass(frozen=True, slots=True)
class JobFilter:
    """Which jobs a listing holds; newest first, `before` continues after the page that ended there."""

    user_id: str | None = None
    statuses: frozenset[JobStatus] = frozenset()  # empty: all
    created_after: datetime | None = None
    created_before: datetime | None = None
    cursor: str | None = None  # opaque, from `JobPage.next_cursor`
    limit: int | None = None  # None: all


@dataclass(frozen=True, slots=True)
class JobPage:
    """One page of jobs and where the next one begins."""

    jobs: tuple[Job, ...]
    next_cursor: str | None = None


@dataclass(frozen=True, slots=True)
class DocumentPage:
    """One page of jobs as the API shows them, a JSON array, and where the next page begins."""

    content: bytes
    next_cursor: str | None = None


@dataclass(frozen=True, slots=True)
class Idempotency:
    """A submitter's promise that two submissions are the same one."""

    key: str
    fingerprint: str  # hash of tree and options: another one under the same key is a conflict


@dataclass(frozen=True, slots=True)
class Repeat:
    """A wish to run the tree of an earlier job again, as a new job."""

    source: str  # the earlier job's id
    job_id: str  # the new one's
    changes: Mapping[str, Any]  # what is to differ from the earlier job's options, by their names
    idempotency: Idempotency | None = None


@dataclass(frozen=True, slots=True)
class QueueLimits:
    """How many jobs may be queued at the same time."""

    per_user: int
    total: int


@dataclass(frozen=True, slots=True)
class QueuePause:
    """An operator's word that nothing is to be claimed; what runs goes on."""

    at: datetime
    by: str
    reason: str | None = None

    def __str__(self) -> str:
        return f"the queue is paused: {self.reason}" if self.reason else "the queue is paused"


@dataclass(frozen=True, slots=True)
class QueuePlace:
    """A queued job, and how many are claimed before it as things stand."""

    job: Job
    before: int


@dataclass(frozen=True, slots=True)
class PoolLimit:
    """How many jobs of a pool may be claimed or running at the same time, and how many are."""

    pool: str
    max_running: int
    running: int

    def __str__(self) -> str:
        return f"{self.running} of the {self.max_running} jobs are running that pool {self.pool} may run"


@dataclass(frozen=True, slots=True)
class QueueView:
    """What a user can be told of the queue, in one consistent look."""

    places: tuple[QueuePlace, ...]  # of the user's own jobs, in the order of their claims
    running: int  # the user's jobs that are claimed or running
    under_way: int  # everybody's
    run_seconds: float | None  # the median run of the jobs that ended last; None: none did
    pause: QueuePause | None = None
    controller: ControllerState | None = None
    pools: Mapping[str, datetime] = field(
        default_factory=lambda: MappingProxyType({})
    )  # as `pool_heartbeats`
    full_pools: tuple["PoolLimit", ...] = ()  # as `full_pools`


@dataclass(frozen=True, slots=True)
class FinishedJob:
    """What pruning must know of a terminal job."""

    id: str
    ended_at: datetime
    archive_ref: str
    archive_pruned: bool = False
    log_pruned: bool = False


@dataclass(frozen=True, slots=True)
class ImageUse:
    """What the attempts tell of an image that containers were made from."""

    last_at: datetime  # when the latest of them started
    is_open: bool  # whether an attempt that has not ended runs in it


@dataclass(frozen=True, slots=True)
class DailyTotal:
    """How many jobs of a user ended in one way on one day (UTC); pruning takes nothing from it."""

    day: date
    user_id: str
    reason: Reason | None  # None: they passed
    jobs: int

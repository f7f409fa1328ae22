"""What both ends of the API say of a job: where it stands, why it ended, what was asked for. Frozen data, no I/O.

Apart from `ci_common.models`, because a command that starts a hundred times a day needs only this much.
"""

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType


def new_id() -> str:
    """Return a fresh random UUID in its usual text form."""
    return str(uuid.uuid4())


class JobStatus(StrEnum):
    """Where a job stands."""

    QUEUED = "queued"  # accepted, waits for a free slot
    CLAIMED = "claimed"  # a controller took it, its container is being prepared
    RUNNING = "running"  # its container was started and fed
    COMPLETED = "completed"  # the tests ran to their own end, well or badly
    FAILED = "failed"  # the tests gave no verdict; `reason` says why
    CANCELLED = "cancelled"  # someone asked for its end
    DEAD_LETTERED = "dead_lettered"  # infrastructure lost it too often

    @property
    def is_terminal(self) -> bool:
        """Tell whether nothing can happen to the job any more."""
        return not TRANSITIONS[self]


# The one table of what may follow what; repositories enforce it in SQL.
TRANSITIONS: Mapping[JobStatus, frozenset[JobStatus]] = MappingProxyType(
    {
        JobStatus.QUEUED: frozenset({JobStatus.CLAIMED, JobStatus.CANCELLED, JobStatus.FAILED}),
        JobStatus.CLAIMED: frozenset(
            {
                JobStatus.RUNNING,
                JobStatus.QUEUED,
                JobStatus.CANCELLED,
                JobStatus.FAILED,
                JobStatus.DEAD_LETTERED,
            }
        ),
        JobStatus.RUNNING: frozenset(
            {
                JobStatus.COMPLETED,
                JobStatus.FAILED,
                JobStatus.CANCELLED,
                JobStatus.QUEUED,
                JobStatus.DEAD_LETTERED,
            }
        ),
        JobStatus.COMPLETED: frozenset(),
        JobStatus.FAILED: frozenset(),
        JobStatus.CANCELLED: frozenset(),
        JobStatus.DEAD_LETTERED: frozenset(),
    }
)


class Reason(StrEnum):
    """Why a job did not succeed; a successful job has none. The table of meanings is `ci_common.verdict`."""

    TESTS_FAILED = "tests_failed"
    INTERRUPTED = "interrupted"
    COLLECTION_ERROR = "collection_error"
    INTERNAL_ERROR = "internal_error"
    USAGE_ERROR = "usage_error"
    NO_TESTS = "no_tests"
    TOO_MANY_WARNINGS = "too_many_warnings"
    CRASHED = "crashed"
    BAD_ARCHIVE = "bad_archive"
    INSTALL_FAILED = "install_failed"
    TIMEOUT = "timeout"
    IDLE_TIMEOUT = "idle_timeout"
    QUEUE_TIMEOUT = "queue_timeout"
    OOM = "oom"
    DISK_LIMIT = "disk_limit"
    LOG_LIMIT = "log_limit"
    CANCELLED = "cancelled"
    INFRA = "infra"
    AGENT_LOST = "agent_lost"


DEFAULT_POOL = "default"  # of a job that asks for none; the local runner's own
POOL_NAME = r"[a-z0-9][a-z0-9_-]{0,49}"


class Priority(StrEnum):
    """Which queued jobs come before which: all of a class before any of the next, the most urgent class first."""

    CRITICAL = "critical"
    HIGH = "high"
    NORMAL = "normal"
    LOW = "low"

    @property
    def rank(self) -> int:
        """Return the number that databases sort by: 0 is the most urgent class."""
        return _RANKED.index(self)

    @classmethod
    def of_rank(cls, rank: int) -> "Priority":
        """Return the class that a database sorts by that number."""
        return _RANKED[rank]

    def allows(self, wanted: "Priority") -> bool:
        """Tell whether somebody whose highest class this is may use that one."""
        return wanted.rank >= self.rank


# Databases hold the index: classes are never reordered.
_RANKED: tuple[Priority, ...] = tuple(Priority)


MOST_ATTEMPTS = 10  # that a submitter may ask for
MOST_UNBEGUN = 20  # attempts of agents that ended before the tests began, and so are not charged


@dataclass(frozen=True, slots=True)
class JobOptions:
    """What the submitter asked for beside the tree itself."""

    pytest_args: tuple[str, ...] = ()
    timeout_seconds: float | None = None  # None: the controller's default
    fresh: bool = False  # everything is installed anew, whatever is kept of earlier jobs
    priority: Priority = Priority.NORMAL  # the only one that may be changed afterwards
    max_attempts: int | None = None  # of those whose tests began; None: the controller's default
    queue_timeout_seconds: float | None = None  # None: the controller's, which holds in any case
    pool: str = DEFAULT_POOL  # of the agents that may run it


@dataclass(frozen=True, slots=True)
class JobVerdict:
    """The final word on a job; written once."""

    status: JobStatus
    success: bool
    reason: Reason | None
    exit_code: int | None
    message: str | None

    def __post_init__(self) -> None:
        assert self.status.is_terminal, f"{self.status} is not final"
        assert self.success == (self.reason is None), "a reason is null only on success"

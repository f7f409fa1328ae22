"""What an operator is told of a job that infrastructure lost too often. Frozen data, no I/O."""

from dataclasses import dataclass
from datetime import datetime

from ci_common.job_terms import Reason
from ci_common.models import Job


@dataclass(frozen=True, slots=True)
class PastAttempt:
    """One line of a job's history: what became of a try."""

    number: int
    holder: str
    claimed_at: datetime
    started_at: datetime | None  # None: it had no container yet
    begun_at: datetime | None  # None: the user's own code never ran, so it was not charged
    ended_at: datetime | None
    reason: Reason | None
    message: str | None


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A dead-lettered job, and what can be done about it."""

    job: Job
    owner: str  # e-mail address
    archive_pruned: bool  # then it cannot be requeued
    requeued_as: str | None  # the job that took over its archive
    attempts: tuple[PastAttempt, ...] = ()  # where they were asked for

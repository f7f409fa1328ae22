"""SQL about jobs as their owners see them. Each function runs inside a transaction that its caller opened."""

from datetime import datetime

from ci_common.errors import (
    AlreadyExists,
    Conflict,
    IdempotencyConflict,
    JobFinished,
    JobNotFound,
    PriorityNotAllowed,
    QueueFull,
    TooManyRequests,
    Unauthorized,
)
from ci_common.job_terms import JobStatus, Priority, Reason
from ci_common.models import AuditAction, AuditEvent, Idempotency, Job, JobEvent, QueueLimits
from ci_common.verdict import verdict
from ci_persistence.dialect import LOCKED
from ci_persistence.rows import deadline_text, event_from, job_from, options_text, to_text
from ci_persistence.sql_audit import append_audit
from ci_persistence.sql_connection import Connection
from ci_persistence.sql_endings import end
from ci_persistence.sql_timeline import append_event, lock_job

_PRIORITY_CHANGED = "priority_changed"
_MOST_CHANGES = 20  # of a job's priority by its owner, so that nobody can fill the timeline
_UNFINISHED = tuple(status for status in JobStatus if not status.is_terminal)


def create_job(db: Connection, job: Job, idempotency: Idempotency | None, limits: QueueLimits | None) -> Job:
    """The job is queued; an equal earlier submission under the same idempotency key is returned instead."""
    assert job.status is JobStatus.QUEUED, f"a new job is queued, not {job.status}"
    require_active_owner(db, job.user_id)
    earlier = idempotency and find_idempotent(db, job.user_id, idempotency.key)
    if idempotency and earlier:
        return same_submission(earlier, idempotency)
    if get_job(db, job.id, None) is not None:
        raise AlreadyExists(f"There is a job {job.id} already.")
    require_priority(db, job.user_id, job.options.priority)
    if limits is not None:
        db.execute(f"SELECT 1 FROM installation {LOCKED}")  # noqa: S608  (nobody else's job comes between)
        check_room(db, job.user_id, limits)
    return insert_job(db, job, idempotency)


def check_room(db: Connection, user_id: str, limits: QueueLimits) -> None:
    """The queue has room for one more job of the user; raises TooManyRequests or QueueFull otherwise."""
    if (
        _count(db, "SELECT count(*) FROM jobs WHERE status = 'queued' AND user_id = ?", user_id)
        >= limits.per_user
    ):
        raise TooManyRequests(
            f"You have {limits.per_user} jobs in the queue, which is the limit.", retry_after=10
        )
    if _count(db, "SELECT count(*) FROM jobs WHERE status = 'queued'") >= limits.total:
        raise QueueFull("The queue is full; submit again later.", retry_after=30)


def _count(db: Connection, query: str, *values: str) -> int:
    return int(db.execute(query, values).fetchone()[0])


def require_active_owner(db: Connection, user_id: str) -> None:
    """The user may act; raises Unauthorized for one who was locked out meanwhile."""
    owner = db.execute(f"SELECT is_active FROM users WHERE id = ? {LOCKED}", (user_id,)).fetchone()  # noqa: S608
    if owner is None or not owner["is_active"]:
        raise Unauthorized("There is no valid API key for this request.")


def require_priority(db: Connection, user_id: str, wanted: Priority) -> None:
    """The user may use that priority until the transaction ends; raises PriorityNotAllowed."""
    found = db.execute(f"SELECT max_priority FROM users WHERE id = ? {LOCKED}", (user_id,)).fetchone()  # noqa: S608
    highest = Priority.of_rank(found["max_priority"])
    if not highest.allows(wanted):
        raise PriorityNotAllowed(
            f"You may not use priority {wanted}: the highest for you is {highest}. An operator can allow more.",
            max_priority=highest.value,
        )


def same_submission(earlier: tuple[Job, str], idempotency: Idempotency) -> Job:
    """Return the job that the key stands for; raises IdempotencyConflict if it stands for something else."""
    job, fingerprint = earlier
    if fingerprint != idempotency.fingerprint:
        raise IdempotencyConflict(f"The Idempotency-Key stands for another submission, job {job.id}.")
    return job


def insert_job(
    db: Connection, job: Job, idempotency: Idempotency | None = None, by: str | None = None
) -> Job:
    """The job is queued, whatever limits there are; its timeline says what it repeats, and by whom if not its owner."""
    _insert(db, job, idempotency)
    told = {"repeat_of": job.repeat_of, "by": by}
    data = {name: value for name, value in told.items() if value is not None}
    append_event(db, job.id, JobEvent("submitted", job.created_at, data))
    return _known_job(db, job.id)


def _insert(db: Connection, job: Job, idempotency: Idempotency | None) -> None:
    created_at = to_text(job.created_at)
    db.execute(
        "INSERT INTO jobs (id, user_id, created_at, archive_ref, status, options, priority, pool, queued_since, "
        "queue_deadline, repeat_of, idempotency_key, idempotency_fingerprint) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            job.id,
            job.user_id,
            created_at,
            job.archive_ref,
            job.status,
            options_text(job.options),
            job.options.priority.rank,
            job.options.pool,
            created_at,
            deadline_text(job.options, job.created_at),
            job.repeat_of,
            idempotency.key if idempotency else None,
            idempotency.fingerprint if idempotency else None,
        ),
    )


def find_idempotent(db: Connection, user_id: str, key: str) -> tuple[Job, str] | None:
    """Return the job and the fingerprint that a key of that user stands for."""
    row = db.execute(
        "SELECT * FROM jobs WHERE user_id = ? AND idempotency_key = ?", (user_id, key)
    ).fetchone()
    return None if row is None else (job_from(row), row["idempotency_fingerprint"])


def get_job(db: Connection, job_id: str, user_id: str | None) -> Job | None:
    """Return the job, with `user_id` only if it is that user's."""
    row = db.execute(
        "SELECT * FROM jobs WHERE id = :job AND user_id = coalesce(:user, user_id)",
        {"job": job_id, "user": user_id},
    ).fetchone()
    return None if row is None else job_from(row)


def unfinished_jobs(db: Connection, user_id: str) -> list[str]:
    """Return the ids of the user's jobs that are not terminal."""
    marks = ", ".join("?" * len(_UNFINISHED))
    rows = db.execute(
        f"SELECT id FROM jobs WHERE user_id = ? AND status IN ({marks})",  # noqa: S608  (only question marks)
        (user_id, *_UNFINISHED),
    )
    return [row["id"] for row in rows]


def request_cancel(
    db: Connection,
    job_id: str,
    user_id: str | None,
    by: str,
    now: datetime,
    request_id: str | None = None,
) -> Job:
    """A queued job is cancelled; of one that an attempt holds the cancel is requested."""
    job = _unfinished_job(db, job_id, user_id)
    if job.cancel_requested_at is None:
        db.execute(
            "UPDATE jobs SET cancel_requested_at = ?, cancel_requested_by = ? WHERE id = ?",
            (to_text(now), by, job_id),
        )
        append_event(db, job_id, JobEvent("cancel_requested", now, {"by": by}))
        # Only here: who asks again changes nothing, and must not be able to fill the trail.
        details = {"user_id": job.user_id, "status": job.status.value}
        append_audit(db, AuditEvent(now, by, AuditAction.JOB_CANCEL, job_id, details, request_id))
    if job.status is JobStatus.QUEUED:
        end(db, job_id, verdict(Reason.CANCELLED, f"Cancelled by {by} while it was queued."), now)
    return _known_job(db, job_id)


def set_priority(
    db: Connection,
    job_id: str,
    user_id: str | None,
    priority: Priority,
    by: str,
    now: datetime,
    request_id: str | None,
) -> Job:
    """The job has that priority, by its owner within what is allowed, or by an operator."""
    job = _unfinished_job(db, job_id, user_id)
    before = job.options.priority
    if user_id is not None:
        require_priority(db, user_id, priority)
    if before is priority:
        return job
    if user_id is not None:
        _require_few_changes(db, job_id)
    db.execute("UPDATE jobs SET priority = ? WHERE id = ?", (priority.rank, job_id))
    told = {"from": before.value, "to": priority.value}
    append_event(db, job_id, JobEvent(_PRIORITY_CHANGED, now, {**told, "by": by}))
    if user_id is None:
        details = {"user_id": job.user_id, **told}
        append_audit(db, AuditEvent(now, by, AuditAction.JOB_PRIORITY, job_id, details, request_id))
    return _known_job(db, job_id)


def _require_few_changes(db: Connection, job_id: str) -> None:
    changes = db.execute(
        "SELECT count(*) FROM job_events WHERE job_id = ? AND type = ?", (job_id, _PRIORITY_CHANGED)
    ).fetchone()[0]
    if changes >= _MOST_CHANGES:
        raise Conflict(
            f"The priority of job {job_id} was changed {changes} times already; it stays as it is."
        )


def _unfinished_job(db: Connection, job_id: str, user_id: str | None) -> Job:
    """Return the job, which stays as it is until the transaction ends; raises JobNotFound or JobFinished."""
    lock_job(db, job_id)
    job = get_job(db, job_id, user_id)
    if job is None:
        raise JobNotFound(f"There is no job {job_id}.")
    if job.status.is_terminal:
        raise JobFinished(f"Job {job_id} is {job.status} already.", status=job.status.value)
    return job


def _known_job(db: Connection, job_id: str) -> Job:
    job = get_job(db, job_id, None)
    assert job is not None, "it was there in this transaction"
    return job


def add_event(db: Connection, job_id: str, event: JobEvent) -> None:
    """The event is the last of the job's timeline; raises JobNotFound."""
    lock_job(db, job_id)
    if get_job(db, job_id, None) is None:
        raise JobNotFound(f"There is no job {job_id}.")
    append_event(db, job_id, event)


def get_events(db: Connection, job_id: str, from_index: int) -> list[JobEvent]:
    """Return the timeline from that index on."""
    rows = db.execute(
        "SELECT * FROM job_events WHERE job_id = ? AND position >= ? ORDER BY position", (job_id, from_index)
    )
    return [event_from(row) for row in rows]

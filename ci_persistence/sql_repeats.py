"""SQL of dead letters, and of jobs that take over the archive of an earlier one; inside a transaction of the caller's.

A job that has ended stays as it is: to run it again is a new job, whose row and timeline name the one it repeats.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime

from ci_common.arguments import require_short
from ci_common.dead_letters import DeadLetter, PastAttempt
from ci_common.errors import ArchivePruned, Conflict, JobNotFound
from ci_common.job_terms import JobStatus
from ci_common.models import AuditAction, AuditEvent, Job, QueueLimits, Repeat
from ci_persistence.dialect import LOCKED
from ci_persistence.rows import job_from, past_attempt_from, to_text
from ci_persistence.sql_audit import append_audit
from ci_persistence.sql_connection import Connection, Row
from ci_persistence.sql_jobs import create_job, find_idempotent, insert_job, same_submission

_REPEATED = "(SELECT max(again.id) FROM jobs AS again WHERE again.repeat_of = jobs.id)"
_DEAD = f"""
    SELECT jobs.*, users.email AS owner, {_REPEATED} AS requeued_as
    FROM jobs JOIN users ON users.id = jobs.user_id WHERE jobs.status = 'dead_lettered'
"""  # noqa: S608  (constants of this module)
DEAD_LETTERS = f"{_DEAD} ORDER BY jobs.end_time DESC, jobs.id DESC LIMIT ?"


def repeat_jobs(
    db: Connection, user_id: str, repeats: Sequence[Repeat], now: datetime, limits: QueueLimits | None
) -> list[Job]:
    """Each is queued with the archive and, but for its changes, the options of an earlier job of the user's."""
    return [_repeat(db, user_id, repeat, now, limits) for repeat in repeats]


def _repeat(db: Connection, user_id: str, repeat: Repeat, now: datetime, limits: QueueLimits | None) -> Job:
    earlier = repeat.idempotency and find_idempotent(db, user_id, repeat.idempotency.key)
    if repeat.idempotency and earlier:  # whatever has become of the source meanwhile
        return same_submission(earlier, repeat.idempotency)
    query = f"SELECT * FROM jobs WHERE id = ? AND user_id = ? {LOCKED}"  # noqa: S608
    row = db.execute(query, (repeat.source, user_id)).fetchone()
    if row is None:
        raise JobNotFound(f"There is no job {repeat.source} among yours.")
    _require_archive(row)
    options = replace(job_from(row).options, **repeat.changes)
    require_short(options.pytest_args)  # the source may be of before there was a bound
    job = Job(repeat.job_id, user_id, now, row["archive_ref"], options=options, repeat_of=repeat.source)
    created = create_job(db, job, repeat.idempotency, limits)
    _claim_packs_of(db, created, repeat.source)
    return created


def dead_letters(db: Connection, limit: int) -> list[DeadLetter]:
    """Return the dead-lettered jobs, the one that ended last first."""
    return [_dead_letter(row) for row in db.execute(DEAD_LETTERS, (limit,))]


def dead_letter(db: Connection, job_id: str) -> DeadLetter | None:
    """Return the dead-lettered job of that id with all its attempts."""
    row = db.execute(f"{_DEAD} AND jobs.id = ?", (job_id,)).fetchone()
    return None if row is None else replace(_dead_letter(row), attempts=_past_attempts(db, job_id))


def requeue_dead(db: Connection, again: Mapping[str, str], now: datetime, by: str) -> list[Job]:
    """Each of the dead-lettered jobs is queued as a new one, by an operator's word and beyond every limit."""
    return [_requeue(db, job_id, new_id, now, by) for job_id, new_id in sorted(again.items())]


def _requeue(db: Connection, job_id: str, new_id: str, now: datetime, by: str) -> Job:
    row = db.execute(f"SELECT * FROM jobs WHERE id = ? {LOCKED}", (job_id,)).fetchone()  # noqa: S608
    if row is None:
        raise JobNotFound(f"There is no job {job_id}.")
    _require_archive(row)
    dead = job_from(row)
    _check_requeue(db, dead)
    job = insert_job(
        db, Job(new_id, dead.user_id, now, dead.archive_ref, options=dead.options, repeat_of=job_id), by=by
    )
    _claim_packs_of(db, job, job_id)
    details = {"user_id": dead.user_id, "job_id": new_id}
    append_audit(db, AuditEvent(now, by, AuditAction.JOB_REQUEUE, job_id, details))
    return job


def _check_requeue(db: Connection, dead: Job) -> None:
    if dead.status is not JobStatus.DEAD_LETTERED:
        raise Conflict(f"Job {dead.id} is {dead.status}: only dead-lettered jobs are requeued.")
    earlier = db.execute("SELECT max(id) FROM jobs WHERE repeat_of = ?", (dead.id,)).fetchone()[0]
    if earlier is not None:
        raise Conflict(f"Job {dead.id} was queued again already, as job {earlier}.")
    query = f"SELECT email, is_active FROM users WHERE id = ? {LOCKED}"  # noqa: S608
    owner = db.execute(query, (dead.user_id,)).fetchone()
    if not owner["is_active"]:
        raise Conflict(
            f"The owner of job {dead.id} is deactivated; `ci-admin user activate {owner['email']}` first."
        )


def _require_archive(row: Row) -> None:
    """The archive of the job in that row of `jobs` is kept; raises ArchivePruned."""
    if row["archive_pruned_at"] is not None:
        raise ArchivePruned(
            f"The archive of job {row['id']} is no longer kept; its owner can submit the tree again."
        )


def _claim_packs_of(db: Connection, job: Job, source: str) -> None:
    """What the archive of the source needs stays for the job, too."""
    db.execute(
        "INSERT INTO job_packs (job_id, pack_id) SELECT ?, pack_id FROM job_packs WHERE job_id = ?",
        (job.id, source),
    )
    db.execute(
        "UPDATE packs SET used_at = :at WHERE used_at < :at "
        "AND id IN (SELECT pack_id FROM job_packs WHERE job_id = :job)",
        {"at": to_text(job.created_at), "job": job.id},
    )


def _dead_letter(row: Row) -> DeadLetter:
    return DeadLetter(job_from(row), row["owner"], row["archive_pruned_at"] is not None, row["requeued_as"])


def _past_attempts(db: Connection, job_id: str) -> tuple[PastAttempt, ...]:
    rows = db.execute("SELECT * FROM attempts WHERE job_id = ? ORDER BY number", (job_id,))
    return tuple(past_attempt_from(row) for row in rows)

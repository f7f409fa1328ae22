"""SQL of an attempt's holder: every write names the fence and touches nothing when that is stale."""

from datetime import datetime

from ci_common.job_terms import MOST_UNBEGUN, JobOptions, JobStatus, JobVerdict, Reason
from ci_common.models import Fence, ImageUse, Job, JobEvent, LogSeal, StopIntent
from ci_common.verdict import verdict
from ci_persistence.dialect import LOCKED
from ci_persistence.rows import deadline_text, from_text, job_from, optional_text, stop_from, to_text
from ci_persistence.sql_connection import Connection, Row
from ci_persistence.sql_timeline import HELD_BY, NO_AGENT, end, lock_job, move

IMAGE_USES = f"""
    SELECT image_id, max(started_at) AS last_at, count(*) > count(ended_at) AS is_open FROM attempts
    WHERE image_id IS NOT NULL AND started_at IS NOT NULL AND {HELD_BY} GROUP BY image_id
"""  # noqa: S608
_FENCED = "job_id = :job AND number = :attempt AND token = :token AND ended_at IS NULL"


def _held(db: Connection, fence: Fence) -> Row | None:
    return db.execute(f"SELECT * FROM attempts WHERE {_FENCED} {LOCKED}", _names(fence)).fetchone()  # noqa: S608


def _update(db: Connection, fence: Fence, columns: dict[str, str | int | None]) -> None:
    changes = ", ".join(f"{name} = :{name}" for name in columns)
    sql = f"UPDATE attempts SET {changes} WHERE {_FENCED}"  # noqa: S608  (names of columns, all from this module)
    changed = db.execute(sql, {**columns, **_names(fence)}).rowcount
    assert changed == 1, "the fence was looked at in this transaction"


def _names(fence: Fence) -> dict[str, str | int]:
    return {"job": fence.job_id, "attempt": fence.attempt, "token": fence.token}


def mark_started(
    db: Connection,
    fence: Fence,
    container_id: str,
    image_id: str,
    now: datetime,
    cached: bool | None,
) -> bool:
    """The job runs in that container; again with the same container: True, and nothing changed."""
    held = _held(db, fence)
    if held is None:
        return False
    if held["container_id"] is not None:
        return held["container_id"] == container_id
    event = JobEvent(
        "running",
        now,
        {
            "attempt": fence.attempt,
            "container_id": container_id,
            "image_id": image_id,
            "image_cached": cached,
        },
    )
    image: dict[str, str | int | None] = {
        "image_id": image_id,
        "image_cached": None if cached is None else int(cached),
    }
    if move(db, fence.job_id, JobStatus.RUNNING, {"start_time": to_text(now), **image}, event) is None:
        return False
    _update(db, fence, {"container_id": container_id, "started_at": to_text(now), **image})
    return True


def image_uses(db: Connection, agent_id: str | None) -> dict[str, ImageUse]:
    """Return the last use of every image that an attempt of that holder was started in, by its id."""
    return {
        row["image_id"]: ImageUse(from_text(row["last_at"]), bool(row["is_open"]))
        for row in db.execute(IMAGE_USES, {"agent": agent_id or NO_AGENT})
    }


def mark_begun(db: Connection, fence: Fence, now: datetime) -> bool:
    """The attempt is charged from its first call on."""
    held = _held(db, fence)
    if held is None:
        return False
    if held["begun_at"] is None:
        _update(db, fence, {"begun_at": to_text(now)})
    return True


def record_stop(
    db: Connection, fence: Fence, reason: Reason, message: str | None, now: datetime
) -> StopIntent | None:
    """The first decision to stop stands, and is returned."""
    held = _held(db, fence)
    if held is None:
        return None
    earlier = stop_from(held)
    if earlier is not None:
        return earlier
    _update(db, fence, {"stop_reason": reason, "stop_message": message, "stop_at": to_text(now)})
    return StopIntent(reason, now, message)


def finish_attempt(
    db: Connection, fence: Fence, final: JobVerdict, log: LogSeal | None, now: datetime
) -> bool:
    """The attempt has ended, the job is terminal; False also where the table of transitions forbids it."""
    held = _held(db, fence)
    if held is None or end(db, fence.job_id, final, now, log) is None:
        return False
    if held["agent_id"] is not None:
        db.execute("UPDATE agents SET jobs_completed = jobs_completed + 1 WHERE id = ?", (held["agent_id"],))
    _end_attempt(db, fence, final.reason, final.message, final.exit_code, log, now)
    return True


def release_attempt(
    db: Connection,
    fence: Fence,
    reason: Reason,
    message: str,
    max_attempts: int,
    not_before: datetime | None,
    now: datetime,
    log: LogSeal | None,
) -> JobStatus | None:
    """The attempt has ended without a verdict; the job is queued again, cancelled or dead-lettered."""
    held = _held(db, fence)
    if held is None:
        return None
    begun = held["begun_at"] is not None
    lock_job(db, fence.job_id)
    job = job_from(db.execute("SELECT * FROM jobs WHERE id = ?", (fence.job_id,)).fetchone())
    if job.cancel_requested_at is not None:
        by = job.cancel_requested_by or "someone"
        ended = end(db, job.id, verdict(Reason.CANCELLED, f"Cancelled by {by}. {message}"), now, log)
    elif begun and _charged_attempts(db, job.id) >= (job.options.max_attempts or max_attempts):
        ended = end(db, job.id, verdict(reason, message), now, log)
    elif held["agent_id"] is not None and not begun and _unbegun_attempts(db, job.id) >= MOST_UNBEGUN:
        said = (
            f"{message} That was attempt {MOST_UNBEGUN} of those on agents that ended before its tests began."
        )
        ended = end(db, job.id, verdict(reason, said), now, log)
    else:
        ended = _queue_again(db, fence, job.options, reason, message, not_before, now, fresh_wait=begun)
    assert ended is not None, f"every open job may be released, {job.status} too"
    _end_attempt(db, fence, reason, message, None, log, now)
    return ended.status


def _queue_again(
    db: Connection,
    fence: Fence,
    options: JobOptions,
    reason: Reason,
    message: str,
    not_before: datetime | None,
    now: datetime,
    *,
    fresh_wait: bool,
) -> Job | None:
    # An attempt that never began leaves the clock of queue_timeout as it was: it bounds such releases.
    columns: dict[str, str | int | None] = {
        "not_before": optional_text(not_before),
        "message": message,
        "start_time": None,
        "image_id": None,
        "image_cached": None,
    }
    if fresh_wait:
        columns |= {"queued_since": to_text(now), "queue_deadline": deadline_text(options, now)}
    event = JobEvent("released", now, {"attempt": fence.attempt, "reason": reason, "message": message})
    return move(db, fence.job_id, JobStatus.QUEUED, columns, event)


def _charged_attempts(db: Connection, job_id: str) -> int:
    query = "SELECT count(*) FROM attempts WHERE job_id = ? AND begun_at IS NOT NULL"
    return int(db.execute(query, (job_id,)).fetchone()[0])


def _unbegun_attempts(db: Connection, job_id: str) -> int:
    """Return how many attempts on agents nothing was charged for: a broken agent could make them without end."""
    query = "SELECT count(*) FROM attempts WHERE job_id = ? AND begun_at IS NULL AND agent_id IS NOT NULL"
    return int(db.execute(query, (job_id,)).fetchone()[0])


def _end_attempt(
    db: Connection,
    fence: Fence,
    reason: Reason | None,
    message: str | None,
    exit_code: int | None,
    log: LogSeal | None,
    now: datetime,
) -> None:
    _update(
        db,
        fence,
        {
            "ended_at": to_text(now),
            "reason": reason,
            "message": message,
            "exit_code": exit_code,
            "log_size": log.size if log else None,
            "log_sha256": log.sha256 if log else None,
            "log_truncated": int(log.truncated) if log else None,
        },
    )

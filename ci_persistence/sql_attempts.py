"""SQL of an attempt's holder: every write names the fence and touches nothing when that is stale."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from ci_common.job_terms import MOST_UNBEGUN, JobOptions, JobStatus, JobVerdict, Reason
from ci_common.models import Fence, ImageUse, Job, JobEvent, LogSeal, StopIntent
from ci_common.verdict import verdict
from ci_persistence.dialect import LOCKED, UNLOCKED
from ci_persistence.rows import deadline_text, from_text, job_from, optional_text, stop_from, to_text
from ci_persistence.sql_connection import Connection, Row
from ci_persistence.sql_endings import MAY_END, SAID, VERDICT, Ending, end, end_jobs
from ci_persistence.sql_given import with_given
from ci_persistence.sql_timeline import HELD_BY, NO_AGENT, lock_job, move

IMAGE_USES = f"""
    SELECT image_id, max(started_at) AS last_at, count(*) > count(ended_at) AS is_open FROM attempts
    WHERE image_id IS NOT NULL AND started_at IS NOT NULL AND {HELD_BY} GROUP BY image_id
"""  # noqa: S608
_OPEN_WITH_JOB = "FROM attempts JOIN jobs ON jobs.id = attempts.job_id WHERE attempts.ended_at IS NULL"
_FINISH = f"""
    UPDATE attempts SET ended_at = given.at, {SAID}
    FROM given CROSS JOIN jobs ON jobs.id = given.job
    WHERE attempts.job_id = given.job AND attempts.number = CAST(given.attempt AS integer)
    AND attempts.token = given.token AND attempts.ended_at IS NULL AND ({MAY_END})
"""  # noqa: S608  (constants of this package)
_ENDED = "RETURNING job_id, agent_id"
# The attempts whose fence holds, if the table of transitions lets their jobs end so.
FINISH = f"{_FINISH} {_ENDED}"
# Of these the ones that nobody is just changing.
FINISH_FREE = f"""
    , free AS MATERIALIZED (
        SELECT attempts.job_id {_OPEN_WITH_JOB} AND attempts.job_id IN (SELECT job FROM given) {UNLOCKED}
    )
    {_FINISH} AND given.job IN (SELECT job_id FROM free) {_ENDED}
"""  # noqa: S608  (constants of this package)
_AWAITED = f"SELECT 1 {_OPEN_WITH_JOB} AND attempts.job_id = ? {LOCKED}"
_FREE = f"SELECT attempts.job_id {_OPEN_WITH_JOB} AND {HELD_BY} {UNLOCKED}"
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


@dataclass(frozen=True, slots=True)
class Finish:
    """A verdict on an attempt, by its holder."""

    fence: Fence
    verdict: JobVerdict
    log: LogSeal | None
    at: datetime

    @property
    def job_id(self) -> str:
        return self.fence.job_id

    @property
    def ending(self) -> Ending:
        return Ending(self.job_id, self.verdict, self.at, self.log)


def finish_attempt(db: Connection, finish: Finish) -> bool:
    """The attempt has ended, the job is terminal; False also where the table of transitions forbids it."""
    # Whoever changes it just now is waited for before anything is locked for which others would wait then.
    db.execute(_AWAITED, (finish.job_id,))
    return bool(_finish(db, [finish], FINISH))


def finish_together(db: Connection, finishes: Sequence[Finish]) -> list[bool | None]:
    """The same for several, of a job for the first that may; None: it is to come alone.

    So is what somebody is just changing, who is not waited for, and what has a stale fence or is forbidden.
    """
    answers: list[bool | None] = [None] * len(finishes)
    for places in _one_of_each_job(finishes):
        ended = _finish(db, [finishes[place] for place in places], FINISH_FREE)
        for place in places:
            answers[place] = finishes[place].job_id in ended or None
    return answers


def _one_of_each_job(finishes: Sequence[Finish]) -> Iterable[Sequence[int]]:
    """Return the places of the first of each job, then those of the second ones, and so on."""
    earlier, rounds = Counter[str](), defaultdict[int, list[int]](list)
    for place, one in enumerate(finishes):
        rounds[earlier[one.job_id]].append(place)
        earlier[one.job_id] += 1
    return rounds.values()


def _finish(db: Connection, finishes: Sequence[Finish], statement: str) -> set[str]:
    """Return the jobs that have ended; each is in there once."""
    rows = [(one.job_id, str(one.fence.attempt), one.fence.token, *one.ending.said()) for one in finishes]
    ended = with_given(db, f"job, attempt, token, {VERDICT}", rows, statement).fetchall()
    if not ended:
        return set()
    _count_completed(db, ended)
    jobs = {row["job_id"] for row in ended}
    moved = end_jobs(db, [one.ending for one in finishes if one.job_id in jobs])
    assert moved == jobs, "a job's status changes only where its open attempt is locked"
    return jobs


def _count_completed(db: Connection, ended: Iterable[Row]) -> None:
    """Agents before daily totals, as whoever gives back what a lost one held, or the two could wait for each other."""
    agents = Counter(row["agent_id"] for row in ended if row["agent_id"] is not None)
    for agent, count in sorted(agents.items()):
        db.execute("UPDATE agents SET jobs_completed = jobs_completed + ? WHERE id = ?", (count, agent))


def free_attempts(db: Connection, agent_id: str) -> set[str]:
    """Return the jobs the agent holds that nobody is just changing, as nobody does until the transaction ends."""
    return {row["job_id"] for row in db.execute(_FREE, {"agent": agent_id})}


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
    lock_job(db, fence.job_id)
    job = job_from(db.execute("SELECT * FROM jobs WHERE id = ?", (fence.job_id,)).fetchone())
    begun = held["begun_at"] is not None
    final = _last_word(db, held, job, reason, message, max_attempts)
    if final is None:
        done = _queue_again(db, fence, job.options, reason, message, not_before, now, fresh_wait=begun)
    else:
        done = end(db, job.id, final, now, log)
    assert done, f"every open job may be released, {job.status} too"
    _end_attempt(db, fence, reason, message, None, log, now)
    return final.status if final else JobStatus.QUEUED


def _last_word(
    db: Connection, held: Row, job: Job, reason: Reason, message: str, max_attempts: int
) -> JobVerdict | None:
    """Return the verdict on a job whose attempt is given back; None: another attempt may follow."""
    begun = held["begun_at"] is not None
    if job.cancel_requested_at is not None:
        by = job.cancel_requested_by or "someone"
        return verdict(Reason.CANCELLED, f"Cancelled by {by}. {message}")
    if begun and _charged_attempts(db, job.id) >= (job.options.max_attempts or max_attempts):
        return verdict(reason, message)
    if held["agent_id"] is not None and not begun and _unbegun_attempts(db, job.id) >= MOST_UNBEGUN:
        said = (
            f"{message} That was attempt {MOST_UNBEGUN} of those on agents that ended before its tests began."
        )
        return verdict(reason, said)
    return None


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
) -> bool:
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
    return move(db, fence.job_id, JobStatus.QUEUED, columns, event) is not None


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

"""SQL of the control plane: the controller row, claiming, expiry. Only the holder of the lease changes anything."""

import secrets
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import groupby, islice

from ci_common.job_terms import DEFAULT_POOL, Reason
from ci_common.models import Attempt, ControllerLease, ControllerState, Fence, JobEvent
from ci_common.verdict import verdict
from ci_persistence.dialect import LOCKED
from ci_persistence.rows import attempt_from, from_text, job_from, options_from, to_text
from ci_persistence.sql_connection import Connection
from ci_persistence.sql_endings import Ending, end_jobs
from ci_persistence.sql_given import slices, with_given
from ci_persistence.sql_pause import queue_pause
from ci_persistence.sql_queue import COUNT_QUEUED, take_jobs, times
from ci_persistence.sql_timeline import HELD_BY, NO_AGENT, OPEN, append_events

OPEN_ATTEMPTS = f"""
    SELECT attempts.* FROM attempts JOIN jobs ON jobs.id = attempts.job_id
    WHERE attempts.ended_at IS NULL AND jobs.status IN {OPEN} AND {HELD_BY}
    ORDER BY attempts.claimed_at, attempts.job_id
"""  # noqa: S608
ENDED = f"""
    SELECT container_id, job_id, number FROM attempts
    WHERE container_id IN ({{names}}) AND ended_at IS NOT NULL AND {HELD_BY}
"""  # noqa: S608
_ADD_ATTEMPTS = """
    INSERT INTO attempts (job_id, number, holder, token, claimed_at, agent_id)
    SELECT job, CAST(number AS integer), holder, token, at, agent FROM given
"""
_NAMES_AT_ONCE = 500
# Who comes first, or comes after somebody: then the epoch rises, and nothing of what that one said is left.
FIRST = (
    "INSERT INTO controller (id, epoch, holder, heartbeat_at, runs_on, runs_jobs) "
    "VALUES (1, 1, :holder, :now, :runs_on, :runs_jobs) ON CONFLICT (id)"
)
NEXT = (
    "epoch = controller.epoch + 1, holder = :holder, heartbeat_at = :now, note = NULL, released_at = NULL, "
    "runs_on = :runs_on, runs_jobs = :runs_jobs"
)
EXPIRED = "SELECT id FROM jobs WHERE status = 'queued' AND queued_since < ? ORDER BY queued_since"
OVERDUE = (
    "SELECT id, options, priority, pool FROM jobs WHERE status = 'queued' AND queue_deadline < ? "
    "AND queue_deadline IS NOT NULL ORDER BY queue_deadline"
)


def new_token() -> str:
    """Return a claim token nobody can guess."""
    return secrets.token_hex(16)


def instance_id(db: Connection) -> str:
    """Return the identity that the migrator gave this installation."""
    return str(db.execute("SELECT instance_id FROM installation").fetchone()[0])


def take_over(
    db: Connection, holder: str, now: datetime, runs_on: str | None = None, *, runs_jobs: bool = True
) -> ControllerLease:
    """The holder is the controller and every open attempt that no agent holds has a new token."""
    epoch = db.execute(
        f"{FIRST} DO UPDATE SET {NEXT} RETURNING epoch",
        _successor(holder, now, runs_on, runs_jobs=runs_jobs),
    ).fetchone()[0]
    renew_tokens(db, None, holder)
    return ControllerLease(epoch, holder)


def succeed(
    db: Connection,
    seen: ControllerState | None,
    holder: str,
    now: datetime,
    runs_on: str | None,
    *,
    runs_jobs: bool,
) -> ControllerLease | None:
    """The same, unless the controller is no longer what was seen of it."""
    told = _successor(holder, now, runs_on, runs_jobs=runs_jobs)
    if seen is None:
        row = db.execute(f"{FIRST} DO NOTHING RETURNING epoch", told).fetchone()
    else:
        unchanged = "epoch = :epoch AND heartbeat_at = :heartbeat"
        told |= {"epoch": seen.epoch, "heartbeat": to_text(seen.heartbeat_at)}
        row = db.execute(
            f"UPDATE controller SET {NEXT} WHERE {unchanged} RETURNING epoch",  # noqa: S608  (constants)
            told,
        ).fetchone()
    if row is None:
        return None
    renew_tokens(db, None, holder)
    return ControllerLease(row["epoch"], holder)


def _successor(
    holder: str, now: datetime, runs_on: str | None, *, runs_jobs: bool
) -> dict[str, str | int | None]:
    return {"holder": holder, "now": to_text(now), "runs_on": runs_on, "runs_jobs": int(runs_jobs)}


def release(db: Connection, lease: ControllerLease, note: str, now: datetime) -> bool:
    """The lease is nobody's; False: it was another one's by now."""
    changed = db.execute(
        "UPDATE controller SET heartbeat_at = :now, released_at = :now, note = :note "
        "WHERE epoch = :epoch AND holder = :holder",
        {"now": to_text(now), "note": note, "epoch": lease.epoch, "holder": lease.holder},
    )
    return changed.rowcount == 1


def renew_tokens(db: Connection, agent_id: str | None, holder: str) -> None:
    """Whoever held the agent's open attempts (None: the controller's) until now can write nothing about them."""
    held = f"SELECT job_id, number FROM attempts WHERE ended_at IS NULL AND {HELD_BY}"  # noqa: S608
    for row in db.execute(held, {"agent": agent_id or NO_AGENT}).fetchall():
        db.execute(
            "UPDATE attempts SET token = ?, holder = ? WHERE job_id = ? AND number = ?",
            (new_token(), holder, row["job_id"], row["number"]),
        )


def heartbeat(db: Connection, lease: ControllerLease, now: datetime, note: str | None) -> bool:
    """The heartbeat is renewed; False: the lease is somebody else's by now."""
    changed = db.execute(
        "UPDATE controller SET heartbeat_at = ?, note = ? WHERE epoch = ? AND holder = ? AND released_at IS NULL",
        (to_text(now), note, lease.epoch, lease.holder),
    )
    return changed.rowcount == 1


def controller_state(db: Connection) -> ControllerState | None:
    """Return what is known of the controller."""
    row = db.execute("SELECT * FROM controller").fetchone()
    if row is None:
        return None
    return ControllerState(
        row["epoch"],
        row["holder"],
        from_text(row["heartbeat_at"]),
        row["note"],
        row["released_at"] is not None,
        row["runs_on"],
        bool(row["runs_jobs"]),
    )


def holds(db: Connection, lease: ControllerLease) -> bool:
    """Tell whether the lease is the valid one, as it then is until the transaction ends."""
    query = f"SELECT 1 FROM controller WHERE epoch = ? AND holder = ? AND released_at IS NULL {LOCKED}"  # noqa: S608
    return db.execute(query, (lease.epoch, lease.holder)).fetchone() is not None


def count_queued(db: Connection, now: datetime, pool: str = DEFAULT_POOL) -> int:
    """Return how many jobs of the pool could be claimed now."""
    return int(db.execute(COUNT_QUEUED, times(now, pool)).fetchone()[0])


@dataclass(frozen=True, slots=True)
class Claim:
    """What a controller asks for: so many jobs, by its lease."""

    lease: ControllerLease
    limit: int
    at: datetime


def claim_jobs(db: Connection, lease: ControllerLease, limit: int, now: datetime) -> list[Attempt]:
    """Up to `limit` jobs are claimed, as users take turns; none when the lease is stale."""
    return claim_together(db, [Claim(lease, limit, now)])[0]


def claim_together(db: Connection, claims: Sequence[Claim]) -> list[list[Attempt]]:
    """The same for several in their order. They exclude each other anyway: together they hold nobody up for longer."""
    answers: list[list[Attempt]] = []
    for lease, group in groupby(claims, key=lambda claim: claim.lease):
        some = list(group)
        taken = iter(_claimed(db, lease, sum(claim.limit for claim in some), some[-1].at))
        answers += [list(islice(taken, claim.limit)) for claim in some]
    return answers


def _claimed(db: Connection, lease: ControllerLease, limit: int, now: datetime) -> list[Attempt]:
    if not holds(db, lease):  # once: within a transaction it stays as it is
        return []
    return claim_for(db, Claimant(lease.holder), limit, now)


@dataclass(frozen=True, slots=True)
class Claimant:
    """Who claims, and from which pool."""

    holder: str
    agent_id: str | None = None
    pool: str = DEFAULT_POOL


def claim_for(db: Connection, claimant: Claimant, limit: int, now: datetime) -> list[Attempt]:
    """Up to `limit` jobs are the claimant's, whose right to it was looked at."""
    taken = [job_from(row) for row in take_jobs(db, claimant.pool, limit, now)]
    tokens = {job.id: new_token() for job in taken}
    rows = [
        (job.id, str(job.attempt), claimant.holder, tokens[job.id], to_text(now), claimant.agent_id)
        for job in taken
    ]
    for some in slices(rows):
        with_given(db, "job, number, holder, token, at, agent", some, _ADD_ATTEMPTS)
    told = [
        (job.id, JobEvent("claimed", now, {"attempt": job.attempt, "holder": claimant.holder}))
        for job in taken
    ]
    append_events(db, told)
    return [Attempt(Fence(job.id, job.attempt, tokens[job.id]), job, claimed_at=now) for job in taken]


def open_attempts(db: Connection, agent_id: str | None = None) -> list[Attempt]:
    """Return every claimed or running attempt of that holder with its job."""
    return [
        attempt_from(
            row, job_from(db.execute("SELECT * FROM jobs WHERE id = ?", (row["job_id"],)).fetchone())
        )
        for row in db.execute(OPEN_ATTEMPTS, {"agent": agent_id or NO_AGENT}).fetchall()
    ]


def ended_attempts(
    db: Connection, containers: Collection[str], agent_id: str | None
) -> dict[str, tuple[str, int]]:
    """Return the attempts of that holder that were recorded in these containers and have ended, by container."""
    found, asked = dict[str, tuple[str, int]](), list(containers)
    for start in range(0, len(asked), _NAMES_AT_ONCE):
        names = {f"c{n}": name for n, name in enumerate(asked[start : start + _NAMES_AT_ONCE])}
        query = ENDED.format(names=", ".join(f":{name}" for name in names))
        for row in db.execute(query, {**names, "agent": agent_id or NO_AGENT}):
            found[row["container_id"]] = (row["job_id"], row["number"])
    return found


def expire_queued(
    db: Connection, lease: ControllerLease, queue_timeout: timedelta, now: datetime, lenience: timedelta
) -> list[str]:
    """Jobs that have waited longer than that, or than they were to wait, are failed; returns their ids."""
    if not holds(db, lease) or queue_pause(db):
        return []
    limit = to_text(now - lenience - queue_timeout)
    late = {row["id"]: queue_timeout.total_seconds() for row in db.execute(EXPIRED, (limit,))}
    for row in db.execute(OVERDUE, (to_text(now - lenience),)):
        late[row["id"]] = (
            options_from(row["options"], row["priority"], row["pool"]).queue_timeout_seconds or 0.0
        )
    expired = end_jobs(db, [_expiry(job_id, seconds, now) for job_id, seconds in late.items()])
    return [job_id for job_id in late if job_id in expired]


def _expiry(job_id: str, seconds: float, now: datetime) -> Ending:
    message = f"It waited in the queue for more than {seconds / 60:g} minutes."
    return Ending(job_id, verdict(Reason.QUEUE_TIMEOUT, message), now)

"""SQL of the control plane: the controller row, claiming, expiry. Only the holder of the lease changes anything."""

import secrets
from collections.abc import Collection
from datetime import datetime, timedelta

from ci_common.job_terms import Reason
from ci_common.models import Attempt, ControllerLease, ControllerState, JobEvent
from ci_common.verdict import verdict
from ci_persistence.dialect import LOCKED
from ci_persistence.rows import attempt_from, from_text, job_from, options_from, to_text
from ci_persistence.sql_connection import Connection
from ci_persistence.sql_pause import queue_pause
from ci_persistence.sql_queue import CLAIM, COUNT_QUEUED, TAKE_TURN, times
from ci_persistence.sql_timeline import OPEN, append_event, end

OPEN_ATTEMPTS = f"""
    SELECT attempts.* FROM attempts JOIN jobs ON jobs.id = attempts.job_id
    WHERE attempts.ended_at IS NULL AND jobs.status IN {OPEN} ORDER BY attempts.claimed_at, attempts.job_id
"""  # noqa: S608
EXPIRED = "SELECT id FROM jobs WHERE status = 'queued' AND queued_since < ? ORDER BY queued_since"
OVERDUE = (
    "SELECT id, options, priority FROM jobs WHERE status = 'queued' AND queue_deadline < ? "
    "AND queue_deadline IS NOT NULL ORDER BY queue_deadline"
)


def new_token() -> str:
    """Return a claim token nobody can guess."""
    return secrets.token_hex(16)


def instance_id(db: Connection) -> str:
    """Return the identity that the migrator gave this installation."""
    return str(db.execute("SELECT instance_id FROM installation").fetchone()[0])


def take_over(db: Connection, holder: str, now: datetime) -> ControllerLease:
    """The holder is the controller and every open attempt has a new token."""
    epoch = db.execute(
        "INSERT INTO controller (id, epoch, holder, heartbeat_at) VALUES (1, 1, :holder, :now) "
        "ON CONFLICT (id) DO UPDATE SET epoch = controller.epoch + 1, holder = :holder, heartbeat_at = :now, "
        "note = NULL RETURNING epoch",
        {"holder": holder, "now": to_text(now)},
    ).fetchone()[0]
    for row in db.execute("SELECT job_id, number FROM attempts WHERE ended_at IS NULL").fetchall():
        db.execute(
            "UPDATE attempts SET token = ?, holder = ? WHERE job_id = ? AND number = ?",
            (new_token(), holder, row["job_id"], row["number"]),
        )
    return ControllerLease(epoch, holder)


def heartbeat(db: Connection, lease: ControllerLease, now: datetime, note: str | None) -> bool:
    """The heartbeat is renewed; False: the lease is somebody else's by now."""
    changed = db.execute(
        "UPDATE controller SET heartbeat_at = ?, note = ? WHERE epoch = ? AND holder = ?",
        (to_text(now), note, lease.epoch, lease.holder),
    )
    return changed.rowcount == 1


def controller_state(db: Connection) -> ControllerState | None:
    """Return what is known of the controller."""
    row = db.execute("SELECT * FROM controller").fetchone()
    if row is None:
        return None
    return ControllerState(row["epoch"], row["holder"], from_text(row["heartbeat_at"]), row["note"])


def holds(db: Connection, lease: ControllerLease) -> bool:
    """Tell whether the lease is the valid one, as it then is until the transaction ends."""
    query = f"SELECT 1 FROM controller WHERE epoch = ? AND holder = ? {LOCKED}"  # noqa: S608
    return db.execute(query, (lease.epoch, lease.holder)).fetchone() is not None


def count_queued(db: Connection, now: datetime) -> int:
    """Return how many jobs could be claimed now."""
    return int(db.execute(COUNT_QUEUED, times(now)).fetchone()[0])


def claim_jobs(db: Connection, lease: ControllerLease, limit: int, now: datetime) -> list[Attempt]:
    """Up to `limit` jobs are claimed, as users take turns; none when the lease is stale."""
    claimed: list[Attempt] = []
    if not holds(db, lease):  # once: within a transaction it stays as it is
        return claimed
    while len(claimed) < limit and (attempt := _claim_one(db, lease, now)):
        claimed.append(attempt)
    return claimed


def _claim_one(db: Connection, lease: ControllerLease, now: datetime) -> Attempt | None:
    row = db.execute(CLAIM, times(now)).fetchone()
    if row is None:
        return None
    job = job_from(row)
    db.execute(TAKE_TURN, (job.user_id,))
    inserted = db.execute(
        "INSERT INTO attempts (job_id, number, holder, token, claimed_at) VALUES (?, ?, ?, ?, ?) RETURNING *",
        (job.id, job.attempt, lease.holder, new_token(), to_text(now)),
    ).fetchone()
    append_event(db, job.id, JobEvent("claimed", now, {"attempt": job.attempt, "holder": lease.holder}))
    return attempt_from(inserted, job)


def open_attempts(db: Connection) -> list[Attempt]:
    """Return every claimed or running attempt with its job."""
    return [
        attempt_from(
            row, job_from(db.execute("SELECT * FROM jobs WHERE id = ?", (row["job_id"],)).fetchone())
        )
        for row in db.execute(OPEN_ATTEMPTS).fetchall()
    ]


def ended_attempts(db: Connection, containers: Collection[str]) -> dict[str, tuple[str, int]]:
    """Return the attempts that were recorded in these containers and have ended, by container."""
    query = "SELECT job_id, number FROM attempts WHERE container_id = ? AND ended_at IS NOT NULL"
    rows = {container: db.execute(query, (container,)).fetchone() for container in containers}
    return {container: (row["job_id"], row["number"]) for container, row in rows.items() if row}


def expire_queued(
    db: Connection, lease: ControllerLease, queue_timeout: timedelta, now: datetime, lenience: timedelta
) -> list[str]:
    """Jobs that have waited longer than that, or than they were to wait, are failed; returns their ids."""
    if not holds(db, lease) or queue_pause(db):
        return []
    limit = to_text(now - lenience - queue_timeout)
    late = {row["id"]: queue_timeout.total_seconds() for row in db.execute(EXPIRED, (limit,))}
    for row in db.execute(OVERDUE, (to_text(now - lenience),)):
        late[row["id"]] = options_from(row["options"], row["priority"]).queue_timeout_seconds or 0.0
    return [job_id for job_id, seconds in late.items() if _expire(db, job_id, seconds, now)]


def _expire(db: Connection, job_id: str, seconds: float, now: datetime) -> bool:
    message = f"It waited in the queue for more than {seconds / 60:g} minutes."
    return end(db, job_id, verdict(Reason.QUEUE_TIMEOUT, message), now) is not None

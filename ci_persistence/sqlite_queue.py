"""Whose job is next: users take turns. SQL and the rule that it follows.

First come those of whose jobs the fewest are being run now, among them the one whose last claim is longest
ago, and of each user the oldest job. So a user with one job waits for at most one job of every other user,
however many those have queued.
"""

import sqlite3
from dataclasses import dataclass
from datetime import datetime, timedelta

from ci_common.job_terms import JobStatus
from ci_persistence.rows import to_text
from ci_persistence.sqlite_timeline import OPEN, predecessors, status_list

# Longer than any job backs off: what is to wait beyond that was written before the wall clock was set back.
_LONGEST_BACKOFF = timedelta(minutes=10)
CLAIMABLE = (
    "status = 'queued' AND cancel_requested_at IS NULL"
    " AND (not_before IS NULL OR not_before <= :now OR not_before > :unbelievable)"
)

# Every user with a queued job, by one step in the index each; a DISTINCT would read all of the queue.
_WAITING = """
    WITH RECURSIVE waiting (user_id) AS (
        SELECT (SELECT min(user_id) FROM jobs WHERE status = 'queued')
        UNION ALL
        SELECT (SELECT min(user_id) FROM jobs WHERE status = 'queued' AND user_id > waiting.user_id)
        FROM waiting WHERE waiting.user_id IS NOT NULL
    )
"""
_HELD = f"(SELECT count(*) FROM jobs AS held WHERE held.user_id = users.id AND held.status IN {OPEN})"  # noqa: S608

# One statement chooses and takes, so no two claims can take the same job.
CLAIM = f"""
    {_WAITING}
    UPDATE jobs SET status = 'claimed', attempt = attempt + 1, not_before = NULL, message = NULL,
        start_time = NULL, image_id = NULL
    WHERE id = (
        SELECT head.id FROM waiting CROSS JOIN users ON users.id = waiting.user_id
        CROSS JOIN jobs AS head ON head.id = (
            SELECT id FROM jobs AS queued WHERE queued.user_id = users.id AND {CLAIMABLE}
            ORDER BY created_at, id LIMIT 1
        )
        ORDER BY {_HELD}, users.last_claim, head.created_at, head.id LIMIT 1
    ) AND status IN {status_list(predecessors(JobStatus.CLAIMED))}
    RETURNING *
"""  # noqa: S608  (constants of this package)
TAKE_TURN = "UPDATE users SET last_claim = (SELECT max(last_claim) FROM users) + 1 WHERE id = ?"

_QUEUES = f"""
    {_WAITING}
    SELECT users.id, {_HELD} AS held, users.last_claim,
        (SELECT count(*) FROM jobs WHERE user_id = users.id AND status = 'queued') AS queued,
        (SELECT min(created_at) FROM jobs WHERE user_id = users.id AND status = 'queued') AS since
    FROM waiting CROSS JOIN users ON users.id = waiting.user_id
"""  # noqa: S608


def times(now: datetime) -> dict[str, str]:
    """Return the parameters of CLAIMABLE."""
    return {"now": to_text(now), "unbelievable": to_text(now + _LONGEST_BACKOFF)}


@dataclass(frozen=True, slots=True)
class UserQueue:
    """What decides on a user's turn."""

    user_id: str
    held: int  # jobs that are claimed or running
    last_claim: int
    queued: int
    since: str

    def turn(self, ahead: int) -> tuple[int, int, int, str, str]:
        """Return what orders the claim of the job with so many of the user's own ahead of it.

        Claiming raises what a user holds and takes the turn; of two who then hold as many, the one who held
        more from the start was not claimed from for longer.
        """
        return (self.held + ahead, -self.held, self.last_claim, self.since, self.user_id)


def claims_before(queue: UserQueue, ahead: int, others: list[UserQueue]) -> int:
    """Return how many jobs are claimed before that one if no job ends and none is added meanwhile."""
    turn = queue.turn(ahead)
    before = ahead
    for other in others:
        level = queue.held + ahead - other.held  # the other's claims below it come first, one at it may
        if level >= 0:
            before += min(other.queued, level + (other.turn(level) < turn))
    return before


def queue_position(db: sqlite3.Connection, job_id: str) -> int | None:
    """Return how many queued jobs come before this one as things stand, None if it is not queued."""
    row = db.execute(
        "SELECT user_id, created_at FROM jobs WHERE id = ? AND status = 'queued'", (job_id,)
    ).fetchone()
    if row is None:
        return None
    ahead = db.execute(
        "SELECT count(*) FROM jobs WHERE user_id = ? AND status = 'queued' AND (created_at, id) < (?, ?)",
        (row["user_id"], row["created_at"], job_id),
    ).fetchone()[0]
    queues = [UserQueue(*found) for found in db.execute(_QUEUES)]
    [mine] = [queue for queue in queues if queue.user_id == row["user_id"]]
    return claims_before(mine, ahead, [queue for queue in queues if queue is not mine])

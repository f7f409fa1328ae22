"""Whose job is next: the most urgent class, in which users take turns. SQL; `turns.py` foretells what it does.

Within a class come first those of whose jobs the fewest are being run now, among them the one whose last claim is
longest ago, and of each user the oldest job. So a user with one job waits for at most one job of every other user,
however many those have queued.
"""

from datetime import datetime, timedelta

from ci_common.job_terms import DEFAULT_POOL, JobStatus
from ci_persistence.dialect import UNLOCKED_HEAD
from ci_persistence.rows import to_text
from ci_persistence.sql_connection import Connection
from ci_persistence.sql_timeline import OPEN, predecessors, status_list
from ci_persistence.turns import Foresight, UserQueue

# Longer than any job backs off: what is to wait beyond that was written before the wall clock was set back.
_LONGEST_BACKOFF = timedelta(minutes=10)
CLAIMABLE = (
    "status = 'queued' AND pool = :pool AND cancel_requested_at IS NULL"
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

_NO_PAUSE = "NOT EXISTS (SELECT 1 FROM queue_pause WHERE id = 1)"
_POOL_ROOM = f"""
    (SELECT max_running - (SELECT count(*) FROM jobs AS held WHERE held.pool = pools.name AND held.status IN {OPEN})
    FROM pools WHERE name = :pool)
"""  # noqa: S608  (null: any number)
_POOL_HAS_ROOM = f"coalesce({_POOL_ROOM}, 1) > 0"
_HAS_ROOM = f"(users.max_running IS NULL OR {_HELD} < users.max_running)"

COUNT_QUEUED = f"""
    SELECT CASE WHEN pool_room IS NULL OR pool_room > queued THEN queued WHEN pool_room > 0 THEN pool_room ELSE 0 END
    FROM (
        SELECT {_POOL_ROOM} AS pool_room, coalesce(
            sum(CASE WHEN room IS NULL OR room > queued THEN queued WHEN room > 0 THEN room ELSE 0 END), 0
        ) AS queued
        FROM (
            SELECT found.queued, users.max_running - {_HELD} AS room
            FROM (SELECT user_id, count(*) AS queued FROM jobs WHERE {CLAIMABLE} GROUP BY user_id) AS found
            JOIN users ON users.id = found.user_id
        ) AS by_user WHERE {_NO_PAUSE}
    ) AS in_pool
"""  # noqa: S608  (constants of this package)

# One statement chooses and takes, so no two claims can take the same job. Of each user it looks at one job, the best
# that may be claimed: the best of these is the best of all.
CLAIM = f"""
    {_WAITING}
    UPDATE jobs SET status = 'claimed', attempt = attempt + 1, not_before = NULL, message = NULL,
        start_time = NULL, image_id = NULL
    WHERE id = (
        SELECT head.id FROM waiting CROSS JOIN users ON users.id = waiting.user_id AND {_HAS_ROOM}
        CROSS JOIN jobs AS head ON head.id = (
            SELECT id FROM jobs AS queued WHERE queued.user_id = users.id AND {CLAIMABLE}
            ORDER BY priority, created_at, id LIMIT 1
        ) AND head.status = 'queued'
        ORDER BY head.priority, {_HELD}, users.last_claim, head.created_at, head.id LIMIT 1 {UNLOCKED_HEAD}
    ) AND {_NO_PAUSE} AND {_POOL_HAS_ROOM} AND status IN {status_list(predecessors(JobStatus.CLAIMED))}
    RETURNING *
"""  # noqa: S608  (constants of this package)
TAKE_TURN = "UPDATE users SET last_claim = (SELECT max(last_claim) FROM users) + 1 WHERE id = ?"

# Of a pool, up to a class, for every user and class: what decides on the user's turns.
_QUEUES = f"""
    SELECT users.id, queued.priority, {_HELD} AS held, users.last_claim, queued.jobs, queued.since,
        users.max_running
    FROM (
        SELECT user_id, priority, count(*) AS jobs, min(created_at) AS since FROM jobs
        WHERE status = 'queued' AND pool = ? AND priority <= ? GROUP BY user_id, priority
    ) AS queued JOIN users ON users.id = queued.user_id
"""  # noqa: S608  (constants of this package)


def times(now: datetime, pool: str = DEFAULT_POOL) -> dict[str, str]:
    """Return the parameters of CLAIMABLE."""
    return {"now": to_text(now), "unbelievable": to_text(now + _LONGEST_BACKOFF), "pool": pool}


def queue_position(db: Connection, job_id: str) -> int | None:
    """Return how many queued jobs of its pool come before this one as things stand, None if it is not queued."""
    row = db.execute(
        "SELECT user_id, pool, priority, created_at FROM jobs WHERE id = ? AND status = 'queued'", (job_id,)
    ).fetchone()
    if row is None:
        return None
    ahead = db.execute(
        "SELECT count(*) FROM jobs WHERE user_id = ? AND pool = ? AND priority = ? AND status = 'queued' "
        "AND (created_at, id) < (?, ?)",
        (row["user_id"], row["pool"], row["priority"], row["created_at"], job_id),
    ).fetchone()[0]
    foresight = Foresight(row["user_id"], user_queues(db, row["pool"], row["priority"]))
    return foresight.claims_before(row["priority"], ahead)


def user_queues(db: Connection, pool: str, rank: int) -> list[UserQueue]:
    """Return what is queued in the pool, by user and class, up to the class of that rank."""
    return [UserQueue(*found) for found in db.execute(_QUEUES, (pool, rank))]

"""Whose job is next: the most urgent class, in which users take turns. SQL; the rule itself is in `turns.py`.

Within a class come first those of whose jobs the fewest are being run now, among them the one whose last claim is
longest ago, and of each user the oldest job. So a user with one job waits for at most one job of every other user,
however many those have queued.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import datetime, timedelta

from ci_common.job_terms import DEFAULT_POOL, JobStatus
from ci_persistence.dialect import UNLOCKED
from ci_persistence.rows import to_text
from ci_persistence.sql_connection import Connection, Row
from ci_persistence.sql_given import slices, with_given
from ci_persistence.sql_timeline import OPEN, predecessors, status_list
from ci_persistence.turns import Contender, Foresight, Head, Turn, UserQueue, turns

# Longer than any job backs off: what is to wait beyond that was written before the wall clock was set back.
_LONGEST_BACKOFF = timedelta(minutes=10)
CLAIMABLE = (
    "status = 'queued' AND pool = :pool AND cancel_requested_at IS NULL"
    " AND (not_before IS NULL OR not_before <= :now OR not_before > :unbelievable)"
)

# Every user with a queued job, by one step in the index each; a DISTINCT would read all of the queue. The whole order
# of the index is said, or PostgreSQL takes one that has the jobs that ended, too.
_NEXT_USER = """
    SELECT user_id FROM jobs WHERE status = 'queued' {}
    ORDER BY user_id, pool, priority, created_at, id LIMIT 1
"""
_WAITING = f"""
    WITH RECURSIVE waiting (user_id) AS (
        SELECT ({_NEXT_USER.format("AND user_id IS NOT NULL")})
        UNION ALL
        SELECT ({_NEXT_USER.format("AND user_id > waiting.user_id")})
        FROM waiting WHERE waiting.user_id IS NOT NULL
    )
"""  # noqa: S608  (constants of this module)
_HELD = f"(SELECT count(*) FROM jobs AS held WHERE held.user_id = users.id AND held.status IN {OPEN})"  # noqa: S608

_NO_PAUSE = "NOT EXISTS (SELECT 1 FROM queue_pause WHERE id = 1)"
# None: any number.
_POOL_ROOM = f"""
    (SELECT max_running - (SELECT count(*) FROM jobs AS held WHERE held.pool = pools.name AND held.status IN {OPEN})
    FROM pools WHERE name = :pool)
"""  # noqa: S608  (constants of this package)

# What orders a user's jobs, in one value: a join with `jobs` would let PostgreSQL read all of the queue.
_HEAD = "priority || created_at || id"
_TIME = 27  # characters of a stored time

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

# Of each user the first job, whatever the queue holds: the best of these is the best of all. Who is to have so many
# turns needs no more of them, since each turn puts one user behind.
STANDINGS = f"""
    {_WAITING}, standing AS MATERIALIZED (
        SELECT users.id, users.last_claim, {_HELD} AS held, users.max_running, (
            SELECT {_HEAD} FROM jobs WHERE jobs.user_id = users.id AND {CLAIMABLE}
            ORDER BY priority, created_at, id LIMIT 1
        ) AS head
        FROM waiting CROSS JOIN users ON users.id = waiting.user_id WHERE {_NO_PAUSE}
    )
    SELECT standing.*, (SELECT max(last_claim) FROM users) AS latest, {_POOL_ROOM} AS pool_room FROM standing
    WHERE head IS NOT NULL AND (max_running IS NULL OR held < max_running)
    ORDER BY substr(head, 1, 1), held, last_claim, head LIMIT :limit
"""  # noqa: S608  (constants of this package)
# Of one user what comes behind the first.
FOLLOWING = f"""
    SELECT {_HEAD} AS head FROM jobs WHERE user_id = :user AND {CLAIMABLE}
    ORDER BY priority, created_at, id LIMIT :more OFFSET 1
"""  # noqa: S608  (constants of this package)
# No two claims can take the same job: it must be claimable still, and who is just changing it is not waited for.
TAKE = f"""
    WITH free AS MATERIALIZED (SELECT id FROM jobs WHERE id IN ({{ids}}) AND {CLAIMABLE} {UNLOCKED})
    UPDATE jobs SET status = 'claimed', attempt = attempt + 1, not_before = NULL, message = NULL,
        start_time = NULL, image_id = NULL
    WHERE id IN ({{ids}}) AND id IN (SELECT id FROM free)
    AND status IN {status_list(predecessors(JobStatus.CLAIMED))} RETURNING *
"""  # noqa: S608  (constants of this package)
TAKE_TURNS = (
    "UPDATE users SET last_claim = CAST(given.turn AS bigint) FROM given WHERE users.id = given.user_id"
)

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


def take_jobs(db: Connection, pool: str, limit: int, now: datetime) -> list[Row]:
    """Up to so many jobs are claimed, as users take turns; returns their rows in that order."""
    taken: list[Row] = []
    passed_over = set[str]()  # users whose next job somebody is just changing: another one's is next
    while len(taken) < limit:
        chosen, latest = _chosen(db, times(now, pool), limit - len(taken), passed_over)
        if not chosen:
            break
        got = _taken(db, times(now, pool), chosen)
        taken += [got[turn.job_id] for turn in chosen if turn.job_id in got]
        last = {turn.user_id: place for place, turn in enumerate(chosen, latest + 1) if turn.job_id in got}
        for some in slices((user, str(place)) for user, place in last.items()):
            with_given(db, "user_id, turn", some, TAKE_TURNS)
        passed_over |= {turn.user_id for turn in chosen if turn.job_id not in got}
    return taken


def _chosen(
    db: Connection, claimable: Mapping[str, str], limit: int, without: Collection[str]
) -> tuple[Sequence[Turn], int]:
    """Return the next turns, but for those of some users, and the number of the last turn so far."""
    first = {**claimable, "limit": limit + len(without)}
    rows = [row for row in db.execute(STANDINGS, first) if row["id"] not in without]

    def following(user_id: str, more: int) -> Iterator[Head]:
        for row in db.execute(FOLLOWING, {**claimable, "user": user_id, "more": more}).fetchall():
            yield _head(row["head"])

    contenders = [
        Contender(row["id"], _head(row["head"]), row["held"], row["last_claim"], row["max_running"])
        for row in rows
    ]
    if not rows:
        return [], 0
    latest, room = rows[0]["latest"], rows[0]["pool_room"]
    return turns(contenders, limit if room is None else min(limit, room), latest, following), latest


def _head(text: str) -> Head:
    return Head(int(text[0]), text[1 : 1 + _TIME], text[1 + _TIME :])


def _taken(db: Connection, claimable: Mapping[str, str], chosen: Sequence[Turn]) -> dict[str, Row]:
    """Those of the jobs that may be claimed still are, and come back by their ids."""
    names = {f"job_{number}": turn.job_id for number, turn in enumerate(chosen)}
    take = TAKE.format(ids=", ".join(f":{name}" for name in names))
    return {row["id"]: row for row in db.execute(take, {**claimable, **names})}


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

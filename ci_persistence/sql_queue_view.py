"""SQL of what one user is told of the queue: the places of the user's jobs, and what decides on them."""

from collections import Counter
from collections.abc import Iterator, Sequence
from statistics import median

from ci_common.job_terms import JobStatus
from ci_common.models import Job, QueuePlace, QueueView
from ci_persistence.rows import from_text, job_from
from ci_persistence.sql_agents import pool_heartbeats
from ci_persistence.sql_connection import Connection
from ci_persistence.sql_control import controller_state
from ci_persistence.sql_pause import queue_pause
from ci_persistence.sql_pools import full_pools
from ci_persistence.sql_queue import user_queues
from ci_persistence.sql_timeline import OPEN
from ci_persistence.turns import Foresight

_RECENT = 50  # completed jobs whose runs say how long the next ones may take
_LOOKED_AT = 500  # ended jobs among which they are: nobody makes this slow by cancelling many

MINE = """
    SELECT * FROM jobs WHERE user_id = ? AND status = 'queued' ORDER BY priority, created_at, id LIMIT ?
"""
RUNS = f"""
    SELECT start_time, end_time FROM (
        SELECT start_time, end_time, status FROM jobs WHERE end_time IS NOT NULL
        ORDER BY end_time DESC LIMIT {_LOOKED_AT}
    ) AS ended WHERE start_time IS NOT NULL AND status = '{JobStatus.COMPLETED}'
    ORDER BY end_time DESC LIMIT {_RECENT}
"""  # noqa: S608  (constants of this module)


def queue_view(db: Connection, user_id: str, limit: int) -> QueueView:
    """Return the places of the user's first queued jobs."""
    jobs = [job_from(row) for row in db.execute(MINE, (user_id, limit))]
    held = f"SELECT count(*) FROM jobs WHERE user_id = ? AND status IN {OPEN}"  # noqa: S608
    under_way = "SELECT count(*) FROM attempts WHERE ended_at IS NULL"
    return QueueView(
        places=tuple(_places(db, user_id, jobs)),
        running=int(db.execute(held, (user_id,)).fetchone()[0]),
        under_way=int(db.execute(under_way).fetchone()[0]),
        run_seconds=_median_run(db),
        pause=queue_pause(db),
        controller=controller_state(db),
        pools=pool_heartbeats(db),
        full_pools=full_pools(db),
    )


def _places(db: Connection, user_id: str, jobs: Sequence[Job]) -> Iterator[QueuePlace]:
    last_ranks = {job.options.pool: job.options.priority.rank for job in jobs}  # of each pool the last one's
    foresights = {pool: Foresight(user_id, user_queues(db, pool, rank)) for pool, rank in last_ranks.items()}
    ahead = Counter[tuple[str, int]]()  # of the user's own jobs, by pool and class
    for job in jobs:
        pool, rank = job.options.pool, job.options.priority.rank
        yield QueuePlace(job, foresights[pool].claims_before(rank, ahead[pool, rank]))
        ahead[pool, rank] += 1


def _median_run(db: Connection) -> float | None:
    runs = [
        (from_text(row["end_time"]) - from_text(row["start_time"])).total_seconds()
        for row in db.execute(RUNS)
    ]
    return median(runs) if runs else None

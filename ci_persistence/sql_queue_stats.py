"""SQL of the queue's statistics: what is in it now, and what ended in a window of time."""

from collections.abc import Iterator
from datetime import datetime

from ci_common.job_terms import JobStatus, Priority
from ci_common.queue_stats import Depth, Ended, QueueFigures
from ci_persistence.rows import from_text, to_text
from ci_persistence.sql_connection import Connection
from ci_persistence.sql_timeline import OPEN

_MEASURED = 10_000  # jobs whose waits and runs are looked at: a busy week makes nobody wait

# Two halves, so that each is found in its index and nothing reads the jobs that have ended.
DEPTHS = f"""
    SELECT status, pool, priority, count(*) AS jobs FROM jobs WHERE status = 'queued' GROUP BY status, pool, priority
    UNION ALL
    SELECT status, pool, priority, count(*) AS jobs FROM jobs WHERE status IN {OPEN} GROUP BY status, pool, priority
"""  # noqa: S608  (constants of this package)
ENDED = """
    SELECT status, success, count(*) AS jobs FROM jobs
    WHERE end_time IS NOT NULL AND end_time > ? GROUP BY status, success
"""
MEASURED = f"""
    SELECT created_at, start_time, end_time FROM jobs
    WHERE end_time IS NOT NULL AND end_time > ? AND start_time IS NOT NULL AND status <> '{JobStatus.CANCELLED}'
    ORDER BY end_time DESC, id DESC LIMIT {_MEASURED}
"""  # noqa: S608  (constants of this module)
OLDEST = "SELECT created_at FROM jobs WHERE status = 'queued' ORDER BY created_at, id LIMIT 1"


def queue_figures(db: Connection, since: datetime) -> QueueFigures:
    """Return what the queue holds, and what ended after that time."""
    measured = list(_measured(db, since))
    oldest = db.execute(OLDEST).fetchone()
    return QueueFigures(
        depths=tuple(
            Depth(JobStatus(row["status"]), row["pool"], Priority.of_rank(row["priority"]), row["jobs"])
            for row in db.execute(DEPTHS)
        ),
        ended=tuple(
            Ended(JobStatus(row["status"]), bool(row["success"]), row["jobs"])
            for row in db.execute(ENDED, (to_text(since),))
        ),
        waits=tuple(wait for wait, _ in measured),
        runs=tuple(run for _, run in measured),
        oldest_at=from_text(oldest["created_at"]) if oldest else None,
    )


def _measured(db: Connection, since: datetime) -> Iterator[tuple[float, float]]:
    """Yield wait and run of each; a clock that was set back makes neither less than nothing."""
    for row in db.execute(MEASURED, (to_text(since),)):
        created, started, ended = (from_text(row[name]) for name in ("created_at", "start_time", "end_time"))
        yield (
            max(0.0, (started - created).total_seconds()),
            max(0.0, (ended - started).total_seconds()),
        )

"""SQL of the daily totals: how many jobs of each user ended how on which day, whatever is pruned later."""

from datetime import date

from ci_common.job_terms import Reason
from ci_common.models import DailyTotal, Job
from ci_persistence.rows import to_text
from ci_persistence.sql_connection import Connection

PASSED = "passed"  # the outcome of a job without a reason


def count_end(db: Connection, job: Job) -> None:
    """The job, which ended in this transaction, is counted."""
    assert job.end_time is not None, f"job {job.id} is {job.status}"
    db.execute(
        "INSERT INTO daily_totals (day, user_id, outcome, jobs) VALUES (?, ?, ?, 1) "
        "ON CONFLICT (day, user_id, outcome) DO UPDATE SET jobs = daily_totals.jobs + 1",
        (to_text(job.end_time)[:10], job.user_id, job.reason or PASSED),
    )


def daily_totals(db: Connection, since: date | None) -> list[DailyTotal]:
    """Return the totals from that day on, the latest day first."""
    rows = db.execute(
        "SELECT * FROM daily_totals WHERE day >= ? ORDER BY day DESC, user_id, outcome",
        (since.isoformat() if since else "",),
    )
    return [
        DailyTotal(date.fromisoformat(row["day"]), row["user_id"], _reason(row["outcome"]), row["jobs"])
        for row in rows
    ]


def _reason(outcome: str) -> Reason | None:
    return None if outcome == PASSED else Reason(outcome)

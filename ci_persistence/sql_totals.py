"""SQL of the daily totals: how many jobs of each user ended how on which day, whatever is pruned later."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date, datetime

from ci_common.job_terms import Reason
from ci_common.models import DailyTotal
from ci_persistence.rows import to_text
from ci_persistence.sql_connection import Connection
from ci_persistence.sql_given import slices

PASSED = "passed"  # the outcome of a job without a reason


@dataclass(frozen=True, slots=True, order=True)
class End:
    """What is counted of the end of a job."""

    day: str
    user_id: str
    outcome: str

    @classmethod
    def of(cls, user_id: str, reason: Reason | None, at: datetime) -> "End":
        return cls(to_text(at)[:10], user_id, reason or PASSED)


def count_ends(db: Connection, ends: Iterable[End]) -> None:
    """The jobs, which ended in this transaction, are counted; whoever counts several takes the rows in one order."""
    rows = sorted(Counter(ends).items())
    for some in slices(rows):
        db.execute(
            f"INSERT INTO daily_totals (day, user_id, outcome, jobs) VALUES {', '.join(['(?, ?, ?, ?)'] * len(some))} "  # noqa: S608  (placeholders only)
            "ON CONFLICT (day, user_id, outcome) DO UPDATE SET jobs = daily_totals.jobs + excluded.jobs",
            [value for end, jobs in some for value in (end.day, end.user_id, end.outcome, jobs)],
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

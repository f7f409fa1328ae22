"""How a job's status changes: the table of transitions as a guard in SQL, and the event of the same transaction."""

from collections.abc import Mapping, Sequence

from ci_common.job_terms import TRANSITIONS, JobStatus
from ci_common.models import Job, JobEvent
from ci_persistence.dialect import LOCKED
from ci_persistence.rows import data_text, job_from, to_text
from ci_persistence.sql_connection import Connection
from ci_persistence.sql_given import slices, with_given

Value = str | int | None


def predecessors(status: JobStatus) -> tuple[JobStatus, ...]:
    """Return the statuses from which the table lets a job come into that one."""
    return tuple(before for before, after in TRANSITIONS.items() if status in after)


def status_list(statuses: tuple[JobStatus, ...]) -> str:
    """Return statuses as a list for `IN`; they are words of our own, so they need no binding."""
    return "(" + ", ".join(f"'{status.value}'" for status in statuses) + ")"


OPEN = status_list((JobStatus.CLAIMED, JobStatus.RUNNING))
# Whose attempts: those of `:agent`, of the controller where that is NO_AGENT. (SQLite and PostgreSQL compare nulls
# differently.)
HELD_BY = "coalesce(attempts.agent_id, '') = :agent"
NO_AGENT = ""
_APPEND = """
    INSERT INTO job_events (job_id, position, type, timestamp, data)
    SELECT job, (SELECT coalesce(max(position), -1) + 1 FROM job_events WHERE job_id = job), type, at, data FROM given
"""


def lock_job(db: Connection, job_id: str) -> None:
    """Nobody else changes the job or its timeline until the transaction ends."""
    db.execute(f"SELECT 1 FROM jobs WHERE id = ? {LOCKED}", (job_id,))  # noqa: S608


def append_event(db: Connection, job_id: str, event: JobEvent) -> None:
    """The event stands at the end of the job's timeline."""
    append_events(db, [(job_id, event)])


def append_events(db: Connection, events: Sequence[tuple[str, JobEvent]]) -> None:
    """Each event stands at the end of its job's timeline; of a job there is one at most."""
    rows = [(job, event.type, to_text(event.timestamp), data_text(event.data)) for job, event in events]
    for some in slices(rows):
        with_given(db, "job, type, at, data", some, _APPEND)


def move(
    db: Connection,
    job_id: str,
    to: JobStatus,
    columns: Mapping[str, Value],
    event: JobEvent,
) -> Job | None:
    """The job has that status, those columns and that event; None: its status did not allow it, nothing changed."""
    changes = ", ".join(f"{name} = :{name}" for name in columns)
    row = db.execute(
        f"UPDATE jobs SET status = :to, {changes} "  # noqa: S608  (names of columns, all from this package)
        f"WHERE id = :job AND status IN {status_list(predecessors(to))} RETURNING *",
        {**columns, "to": to.value, "job": job_id},
    ).fetchone()
    if row is None:
        return None
    append_event(db, job_id, event)
    return job_from(row)

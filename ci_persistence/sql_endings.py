"""SQL of how jobs end, any number of them at once: the verdict, the event, the daily total."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from ci_common.job_terms import JobStatus, JobVerdict
from ci_common.models import JobEvent, LogSeal
from ci_persistence.rows import to_text
from ci_persistence.sql_connection import Connection
from ci_persistence.sql_given import number_text, slices, with_given
from ci_persistence.sql_timeline import append_events, predecessors, status_list
from ci_persistence.sql_totals import End, count_ends

# The table of transitions, as far as it is about ends.
MAY_END = " OR ".join(
    f"given.status = '{status.value}' AND jobs.status IN {status_list(predecessors(status))}"
    for status in JobStatus
    if status.is_terminal
)
# What a verdict says, in the columns of `given`, and what becomes of it in those of `attempts` and `jobs` alike.
VERDICT = "status, success, reason, exit_code, message, at, log_size, log_sha256, log_truncated"
SAID = """
    reason = given.reason, exit_code = CAST(given.exit_code AS bigint), message = given.message,
    log_size = CAST(given.log_size AS bigint), log_sha256 = given.log_sha256,
    log_truncated = CAST(given.log_truncated AS integer)
"""
END = f"""
    UPDATE jobs SET status = given.status, success = CAST(given.success AS integer), end_time = given.at,
    not_before = NULL, {SAID} FROM given WHERE jobs.id = given.job AND ({MAY_END}) RETURNING id, user_id
"""  # noqa: S608  (constants of this package)


@dataclass(frozen=True, slots=True)
class Ending:
    """The end of a job: the verdict, when, and its log."""

    job_id: str
    verdict: JobVerdict
    at: datetime
    log: LogSeal | None = None

    @property
    def event(self) -> JobEvent:
        said = self.verdict
        data = {"success": said.success, "reason": said.reason, "message": said.message}
        return JobEvent(said.status.value, self.at, {**data, "exit_code": said.exit_code})

    def said(self) -> tuple[str | None, ...]:
        """Return the columns of VERDICT."""
        final, log = self.verdict, self.log
        return (
            final.status.value,
            number_text(final.success),
            final.reason,
            number_text(final.exit_code),
            final.message,
            to_text(self.at),
            number_text(log.size) if log else None,
            log.sha256 if log else None,
            number_text(log.truncated) if log else None,
        )


def end(db: Connection, job_id: str, verdict: JobVerdict, now: datetime, log: LogSeal | None = None) -> bool:
    """The job is terminal with that verdict and that log; False: its status did not allow it."""
    return job_id in end_jobs(db, [Ending(job_id, verdict, now, log)])


def end_jobs(db: Connection, endings: Sequence[Ending]) -> set[str]:
    """Those of the jobs whose status allowed it are terminal, and returned; each is named once."""
    users: dict[str, str] = {}
    for some in slices(endings):
        rows = [(one.job_id, *one.said()) for one in some]
        users |= {row["id"]: row["user_id"] for row in with_given(db, f"job, {VERDICT}", rows, END)}
        append_events(db, [(one.job_id, one.event) for one in some if one.job_id in users])
    # Exactly once: the table of transitions lets no job end twice.
    count_ends(
        db,
        [End.of(users[one.job_id], one.verdict.reason, one.at) for one in endings if one.job_id in users],
    )
    return set(users)

"""The SQL of job listings: filters, newest first, pages that continue at a key and not at a count."""

import base64
from dataclasses import dataclass, field

from ci_common.errors import InvalidRequest
from ci_common.models import Job, JobFilter, JobPage
from ci_persistence.rows import from_text, job_from, to_text
from ci_persistence.sql_connection import Connection

_LONGEST_CURSOR = 400


def encode_cursor(job: Job) -> str:
    """Return the opaque name of the place after that job in the order of listings."""
    return cursor_after(to_text(job.created_at), job.id)


def cursor_after(created_at: str, job_id: str) -> str:
    """Return the same, of a job by the columns of its row."""
    return base64.urlsafe_b64encode(f"{created_at} {job_id}".encode()).decode().rstrip("=")


def decode_cursor(cursor: str) -> tuple[str, str]:
    """Return the (created_at, id) that a cursor names; raises InvalidRequest for what we never made."""
    try:
        if len(cursor) > _LONGEST_CURSOR:
            raise ValueError("too long")
        padded = cursor + "=" * (-len(cursor) % 4)
        created_at, job_id = base64.b64decode(padded, altchars=b"-_", validate=True).decode().split(" ")
        return to_text(from_text(created_at)), job_id
    except (ValueError, OverflowError) as error:  # the latter: a date that UTC has no year for
        raise InvalidRequest("The cursor is not one that a listing returned.") from error


@dataclass(slots=True)
class _Where:
    """Conditions and their values, in step."""

    terms: list[str] = field(default_factory=list[str])
    values: list[str] = field(default_factory=list[str])

    def add(self, term: str, *values: str) -> None:
        self.terms.append(term)
        self.values.extend(values)

    def __str__(self) -> str:
        return "WHERE " + " AND ".join(self.terms) if self.terms else ""


def _where(job_filter: JobFilter) -> _Where:
    where = _Where()
    if job_filter.user_id is not None:
        where.add("user_id = ?", job_filter.user_id)
    if job_filter.statuses:
        marks = ", ".join("?" * len(job_filter.statuses))
        where.add(f"status IN ({marks})", *sorted(job_filter.statuses))
    if job_filter.created_after is not None:
        where.add("created_at >= ?", to_text(job_filter.created_after))
    if job_filter.created_before is not None:
        where.add("created_at < ?", to_text(job_filter.created_before))
    if job_filter.cursor is not None:
        where.add("(created_at, id) < (?, ?)", *decode_cursor(job_filter.cursor))
    return where


def listing_query(job_filter: JobFilter, columns: str = "*") -> tuple[str, list[str | int]]:
    """Return the query for a page and one job more (which tells whether another page follows).

    Raises InvalidRequest.
    """
    if job_filter.limit is not None and job_filter.limit < 1:
        raise InvalidRequest("The limit of a listing is at least 1.")
    where = _where(job_filter)
    # The conditions are constants of this module, their values are bound.
    sql = f"SELECT {columns} FROM jobs {where} ORDER BY created_at DESC, id DESC"  # noqa: S608
    if job_filter.limit is None:
        return sql, [*where.values]
    return f"{sql} LIMIT ?", [*where.values, job_filter.limit + 1]


def list_jobs(db: Connection, job_filter: JobFilter) -> JobPage:
    """Return one page, newest first."""
    jobs = [job_from(row) for row in db.execute(*listing_query(job_filter))]
    if job_filter.limit is None or len(jobs) <= job_filter.limit:
        return JobPage(tuple(jobs))
    page = tuple(jobs[: job_filter.limit])
    return JobPage(page, encode_cursor(page[-1]))
